"""Scores: NavSim's PDM score and the rewards made from it."""
