"""Bench2Drive's metrics, exactly as its formulas have them, over routes in an embedded kinematic world.

``criteria`` judges an episode tick by tick, ``score`` makes the official numbers of its events, ``comfort`` measures
smoothness, ``results`` writes the official JSON. Numbers from here are named ``WORLD`` and are no leaderboard results.
"""

from typing import Final

WORLD: Final = "Bench2Drive routes, kinematic world"
"""What every table, file and report calls these scores."""
