"""verl's dataset: the scenes of a run, one row each (``data.custom_cls``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from verl.experimental.agent_loop.agent_loop import _agent_loop_registry

from vla_models.errors import ConfigError, SceneError, did_you_mean


class DrivingDataset(Dataset):  # type: ignore[type-arg]
    """Rows from a file that ``launch`` wrote: {"part", "source", "agent_name", "scenes"}.

    verl constructs it with what it has (verl/trainer/ppo/utils.py, ``create_rl_dataset``). Every row names its agent loop:
    where a row does not, verl silently takes a default one.
    """

    def __init__(
        self, data_files: Any, tokenizer: Any = None, processor: Any = None, config: Any = None, max_samples: int = -1
    ) -> None:
        file = Path(data_files if isinstance(data_files, str) else data_files[0])
        data = json.loads(file.read_text(encoding="utf-8"))
        self.part, self.source, self.agent = data["part"], data["source"], data.get("agent_name")
        if self.agent not in _agent_loop_registry:
            raise ConfigError(f"{file}: agent_name {self.agent!r}; {did_you_mean(str(self.agent), _agent_loop_registry)}")
        self.scenes: list[str] = data["scenes"][: max_samples if max_samples > 0 else None]
        if not self.scenes:
            raise SceneError(f"{file} has no scenes")

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {
            "raw_prompt": [{"role": "user", "content": self.scenes[i]}],
            "dummy_tensor": torch.tensor([i]),  # verl measures a batch by its tensors
            "index": i,
            "data_source": self.source,
            "reward_model": {"style": "environment", "ground_truth": ""},
            "scene": self.scenes[i],
            "part": self.part,
            "agent_name": self.agent,
        }
