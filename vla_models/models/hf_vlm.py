"""``hf_vlm``: any transformers image-text-to-text model as a driving VLA, with any head.

The prompt is one user message with the cameras' pictures (``vlm.prompts``). The plan is either written by the language model,
as codes ``<action_i>`` or as numbers in words, or drawn by a head that reads the last hidden state. Before it the model may
write reasoning. Families of models differ in ``vlm.families`` only; nothing here knows them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, Self, cast

import numpy as np
import torch
from torch import Tensor

from vla_models.errors import ConfigError, PlanError, SceneError, VLAModelsError
from vla_models.heads import PlanHead, ValueHead, make_codebook, make_head, plan_horizon
from vla_models.heads.warpers import ACTION, TEXT, counted
from vla_models.interface import VLAForDriving, VLAInput, VLAOutput, VLAPrediction, VLASpec, check_plan
from vla_models.lora import LoraSettings, add_lora, merge_lora
from vla_models.model_registry import register_vla_model
from vla_models.models.vlm.backbone import ActionTokens, Backbone
from vla_models.models.vlm.base import Base, load_backbone, read_base
from vla_models.models.vlm.families import family_of
from vla_models.models.vlm.pictures import load_frames
from vla_models.models.vlm.prompts import PromptTemplate
from vla_models.models.vlm.text_plan import TOKENS_PER_POSE, read_plan, write_plan
from vla_models.models.vlm.writing import GIVEN, Grammar, Writer, replay

BASE_FOLDER: Final = "base"
"""Folder in a checkpoint with the base model's config, tokenizer and picture settings."""
MARKER: Final = "<plan>"
"""Token between reasoning and plan."""
