"""Scenes: what is known about driving situations, where they come from and how they are kept."""
