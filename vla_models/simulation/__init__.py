"""Traffic and vehicles in motion."""
