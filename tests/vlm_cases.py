"""What the tests of hf_vlm share: inputs, and one tiny model for each family and head."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn

from vla_models.inputs import EGO_FEATURES, VLAInput, VLAPrediction
from vla_models.model_registry import create_model
from vla_models.models.hf_vlm import HFVLM
from vla_models.models.vlm.tiny import FAMILIES

HEADS = {"tokens": {"type": "tokens"}, "gaussian": {"type": "gaussian"}}
CASES = [(family, head) for family in FAMILIES for head in HEADS]
SIZES = {"qwen2_5_vl": (56, 84), "qwen3_vl": (64, 96)}
"""Small pictures for the families that take any; the others have one size."""


def some_inputs(count: int, seed: int = 0, cameras: tuple[str, ...] = ("front",)) -> list[VLAInput]:
    rng = np.random.default_rng(seed)
    return [
        VLAInput(
            text="Drive on." + "!" * int(rng.integers(0, 30)),
            images={camera: rng.integers(0, 256, (60, 80, 3), dtype=np.uint8) for camera in cameras},
            ego_state={key: float(rng.uniform(0, 1)) * (10.0 if key == "speed" else 0.2) for key in EGO_FEATURES},
            route=np.cumsum(rng.uniform(0, 4, (3, 2)), axis=0).astype(np.float32),
            command=("left", "straight", "right", "unknown")[i % 4],
        )
        for i in range(count)
    ]


def make(family: str, head: Any = "tokens", **options: Any) -> HFVLM:
    """A fresh tiny model, sharper than its random weights are, so that probabilities differ."""
    torch.manual_seed(0)
    if "image_size" not in options and family in SIZES:
        options["image_size"] = SIZES[family]
    language = {"base_model": f"tiny:{family}", **options.pop("language_model", {})}
    model = create_model(
        "hf_vlm", language_model=language, policy_head=HEADS[head] if isinstance(head, str) else head, **options
    )
    assert isinstance(model, HFVLM)
    with torch.no_grad():
        if model.backbone.actions is not None:
            model.backbone.actions.output.mul_(20.0)
            model.backbone.actions.embedding.mul_(20.0)
        model.backbone.model.get_input_embeddings().weight.mul_(20.0)  # prompts must matter, too
    return model


@cache
def shared(family: str, head: str) -> HFVLM:
    """A model that tests only look at."""
    return make(family, head)


def draw(model: HFVLM, inputs: Any, seed: int = 0, **options: Any) -> VLAPrediction:
    return model.predict(inputs, generator=torch.Generator().manual_seed(seed), **options)


def vision(model: nn.Module) -> list[str]:
    """Names of the vision tower's parameters."""
    towers = ("visual", "vision_tower", "vision_model")
    return [name for name, _ in model.named_parameters() if any(part in towers for part in name.split("."))]
