"""Environments: gymnasium vector environments, registered with gymnasium when this package is imported."""

from __future__ import annotations

import gymnasium

if "NavSim-v0" not in gymnasium.registry:
    gymnasium.register(id="NavSim-v0", vector_entry_point="vla_models.envs.navsim:NavSimEnv")
if "Bench2Drive-v0" not in gymnasium.registry:
    gymnasium.register(id="Bench2Drive-v0", vector_entry_point="vla_models.envs.bench2drive:Bench2DriveEnv")
