"""AReaL's trainer, started on a native configuration in this process, with our run folder listening."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors.torch import load_file
from torch import Tensor

from vla_models.errors import CheckpointError, ConfigError
from vla_models.frameworks.areal.native import EXPERIMENT, TRIAL
from vla_models.frameworks.areal.recording import Recorder
from vla_models.frameworks.ray_head import ray_head
from vla_models.frameworks.variables import variables

if TYPE_CHECKING:
    from vla_models.frameworks.run_folder import FrameworkRun

log = logging.getLogger(__name__)

SETTINGS: Final = "settings.json"
"""In ``areal/``: what the workflow needs, in whatever process it runs."""
SERVERS: Final = "AREAL_LLM_SERVER_ADDRS"
"""AReaL's variable with the addresses of inference servers."""
SCENES: Final = "scenes.json"
"""In ``areal/``: names of scenes in the order in which they are driven."""


def run(
    native: Mapping[str, Any], record: FrameworkRun, train_scenes: Sequence[str], heldout_scenes: Sequence[str]
) -> dict[str, float]:
    """Train to the end in AReaL; returns the means of its last evaluation (empty without one).

    The model of ``record`` holds the trained weights afterwards (the last update's checkpoint is always kept).
    """
    config = structured(native)
    if native["vla"]["route"] == "tokens" and config.scheduler.type is None and not os.environ.get(SERVERS):
        raise ConfigError(
            f"framework_options.vla.route: tokens needs an inference server; start SGLang on {config.actor.path} and set "
            f"{SERVERS}=host:port, or let AReaL start it with framework_options.scheduler.type: local"
        )
    done = record.done()
    scheduler = config.scheduler.type  # None: everything in this process
    # left to itself, AReaL joins any Ray that runs on this machine
    cluster = ray_head() if scheduler == "ray" else contextlib.nullcontext()
    with cluster, _environment(controller=scheduler is not None):
        from areal.utils import name_resolve

        from vla_models.frameworks.areal import trainer as trainers
        from vla_models.frameworks.areal.workflow import DrivingWorkflow

        write_tokenizer(Path(config.tokenizer_path))
        _clean_names(config.cluster.name_resolve, record.path)
        name_resolve.reconfigure(config.cluster.name_resolve)
        settings = str((record.path / "areal" / SETTINGS).resolve())
        kind: Any = trainers.RecordTrainer
        recorder = Recorder(record, lambda step: read_weights(record.path, step))
        if native["vla"]["route"] == "tokens":
            from vla_models.frameworks.areal import tokens

            kind = trainers.TokenTrainer
            recorder.weights = lambda step: tokens.read_weights(record.config, record.path, step)
        workflows: list[Any] = [DrivingWorkflow(settings, "train"), DrivingWorkflow(settings, "heldout")]
        arguments: dict[str, Any] = {}
        if scheduler is not None:  # made by the workers
            if scheduler == "slurm":
                log.warning("scheduler.type: slurm was never run with vla_models; local and ray were")
            workflows = [f"{DrivingWorkflow.__module__}.{DrivingWorkflow.__name__}"] * 2
            arguments = {
                "workflow_kwargs": {"settings": settings, "part": "train"},
                "eval_workflow_kwargs": {"settings": settings, "part": "heldout"},
            }
        trainer = kind(config, recorder, train_scenes, heldout_scenes, *workflows)
        try:
            began = 0 if trainer.recover_info is None else trainer.recover_info.last_step_info.global_step + 1
            if began != done:
                raise CheckpointError(
                    f"{record.path}: AReaL would go on after {began} updates, and the last whole checkpoint is that of {done}; "
                    "start a new run from checkpoints/update-<n> with model.checkpoint_path"
                )
            trainer.run(**arguments)
        finally:
            trainer.close()
            for workflow in workflows:
                if isinstance(workflow, DrivingWorkflow):
                    workflow.close()
    return recorder.evaluation


def structured(native: Mapping[str, Any]) -> Any:
    """AReaL's ``GRPOConfig``; ``ConfigError`` for a key or a value that it does not take."""
    from areal.api.cli_args import GRPOConfig, to_structured_cfg
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    plain = {key: value for key, value in native.items() if key != "vla"}
    try:
        return OmegaConf.to_object(to_structured_cfg(OmegaConf.create(plain), GRPOConfig))
    except (OmegaConfBaseException, ValueError, TypeError) as e:
        raise ConfigError(f"framework_options: AReaL does not take this configuration: {e}") from e


def checkpoints(run: Path) -> Path:
    """Where AReaL keeps what a run goes on from (areal/utils/saver.py), whoever the user is."""
    root = run / "areal" / "run" / "checkpoints"
    users = sorted(p for p in root.glob("*") if (p / EXPERIMENT / TRIAL).is_dir())
    if not users:
        raise CheckpointError(f"{root} has no checkpoint of AReaL's")
    return users[0] / EXPERIMENT / TRIAL


def read_weights(run: Path, step: int) -> dict[str, Tensor]:
    """The model's weights, under its own names, from AReaL's checkpoint after ``step`` updates (record route)."""
    file = checkpoints(run) / "default" / "recover_checkpoint" / f"version-{step:07d}" / "weights.safetensors"
    if not file.is_file():
        raise CheckpointError(f"AReaL's checkpoint {file} is missing: it was not written to its end")
    weights: dict[str, Tensor] = load_file(file)
    return weights


def adopt(record: FrameworkRun) -> None:
    """Copy AReaL's newest checkpoint into the run folder, if the run was killed before that was done."""
    try:
        info = checkpoints(record.path) / "recover_info" / "step_info.json"
        step = int(json.loads(info.read_text())["global_step"]) + 1
    except (CheckpointError, OSError, ValueError):
        return
    if step > record.done():
        record.keep_checkpoint(step, read_weights(record.path, step))


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of three words: AReaL's trainer loads one whatever it trains, and the record route never uses it."""
    if folder.exists():
        return
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<eos>": 1, "<unk>": 2}
    made = Tokenizer(WordLevel(words, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>").save_pretrained(
        folder
    )


def _clean_names(resolve: Any, run: Path) -> None:
    """Remove what an earlier process of this run left in AReaL's name service; in a foreign place, name it instead."""
    if resolve.type != "nfs":
        return
    root = Path(resolve.nfs_record_root)
    if root.resolve().is_relative_to(run.resolve()):
        shutil.rmtree(root, ignore_errors=True)
        return
    if left := sorted(str(p) for p in root.rglob(f"*{EXPERIMENT}/{TRIAL}*") if p.exists()):
        raise ConfigError(
            f"framework_options.cluster.name_resolve.nfs_record_root: {left[0]} is left from another run, and AReaL would take "
            "its servers for this one's, or fail; remove it, or leave the key out (it is then inside the run folder)"
        )


def _environment(controller: bool) -> contextlib.AbstractContextManager[None]:
    """The variables with which AReaL runs in this process alone (SPMD with one process), or with workers of its own."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    wanted = {"WANDB_MODE": "disabled", "TOKENIZERS_PARALLELISM": "false"}
    wanted |= {"AREAL_SPMD_MODE": "0"} if controller else {"AREAL_SPMD_MODE": "1", **alone}
    if not torch.cuda.is_available():
        wanted["TORCHDYNAMO_DISABLE"] = "1"  # compiling takes minutes on a CPU
    return variables(wanted)
