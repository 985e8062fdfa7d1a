"""Action distributions: what turns a model's features or hidden states into plans, and replays their probabilities."""

from vla_models.heads.build import HEADS, make_codebook, make_head, plan_horizon

__all__ = ["HEADS", "make_codebook", "make_head", "plan_horizon"]
