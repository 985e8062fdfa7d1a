"""Lets siiRL 0.2.0 run on a CPU, for tests alone: every process that imports this module is told that it may.

siiRL has no CPU path: it asks for an accelerator's collectives, and Ray for a GPU. Here the collectives are gloo's, and Ray is
told of GPUs that do not exist. This is a test double, not support. The variables of ``cpu_shim.json`` bring it into siiRL's
processes.
"""

from __future__ import annotations

import importlib
from typing import Any


def use_cpu() -> None:
    """Patch siiRL in this process."""
    from vla_models.frameworks.siirl.compat import before_import

    before_import()
    device: Any = importlib.import_module("siirl.utils.extras.device")
    device.get_nccl_backend = lambda: "gloo"
    dagworker: Any = importlib.import_module("siirl.dag_worker.dagworker")
    dagworker.get_nccl_backend = device.get_nccl_backend
    dagworker.get_device_name = lambda: "cuda"  # names a second backend beside the CPU's


use_cpu()
