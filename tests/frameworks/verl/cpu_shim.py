"""Lets verl 0.9.1 run on a CPU, for tests alone: ``VERL_USE_EXTERNAL_MODULES=cpu_shim`` and ``VERL_PLATFORM=cpu``.

verl has no CPU path: its workers ask for an accelerator, and Ray for a GPU. Here a platform (verl's own extension point) says
"cpu", process groups are gloo's, and memory cannot be pinned. This is a test double, not support.
"""

from __future__ import annotations

import contextlib
import json
import os
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

ENVIRONMENT = json.loads(Path(__file__).with_suffix(".json").read_text())
"""Variables of a run on the shim. verl's own engines are registered for "cuda", and it asks Ray for a GPU, which is not
touched."""


class CpuModule(types.ModuleType):
    """The calls of ``torch.cuda`` that verl makes, for a machine without."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if hasattr(torch.cpu, name):
            return getattr(torch.cpu, name)
        if name == "mem_get_info":
            return lambda *_: (0, 0)
        if name == "get_device_name":
            return lambda *_: "CPU"
        return lambda *_, **__: 0 if "memory" in name else None


def register() -> None:
    from verl.plugin.platform import PlatformBase, PlatformRegistry

    class CpuPlatform(PlatformBase):  # type: ignore[misc]
        device_name = vendor_name = "cpu"
        device_module = CpuModule("torch_cpu")

        def is_available(self) -> bool:
            return True

        def is_platform_available(self, use_smi_check: bool = False) -> bool:
            return False

        def current_device(self) -> str:
            return "cpu"

        def device_count(self) -> int:
            return 1

        def set_device(self, *_: Any) -> None:
            pass

        synchronize = set_allocator_settings = empty_cache = profiler_start = profiler_stop = set_device

        def manual_seed(self, seed: int) -> None:
            torch.manual_seed(seed)

        manual_seed_all = manual_seed

        def get_device_capability(self, *_: Any) -> tuple[None, None]:
            return None, None

        def communication_backend_name(self) -> str:
            return "gloo"

        def visible_devices_envvar(self) -> str:
            return "CUDA_VISIBLE_DEVICES"

        @contextlib.contextmanager
        def nvtx_range(self, *_: Any) -> Iterator[None]:
            yield

        def ray_resource_name(self) -> str:
            return "GPU"

        def ray_noset_envvars(self) -> list[str]:
            return []

        def is_ipc_supported(self) -> bool:
            return False

        def cudart(self) -> None:
            return None

    PlatformRegistry.register(platform="cpu")(CpuPlatform)
    import verl.utils.distributed as distributed

    original = distributed.initialize_global_process_group_ray

    def gloo(timeout_second: int | None = None, backend: str | None = None) -> None:
        original(timeout_second, "gloo")  # verl would ask for "cpu:gloo,cpu:gloo"

    distributed.initialize_global_process_group_ray = gloo
    from verl.workers.engine.fsdp import transformer_impl

    unpinned = transformer_impl.CPUOffloadPolicy
    transformer_impl.CPUOffloadPolicy = lambda pin_memory=True: unpinned(pin_memory=False)


for _name, _value in ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)
register()
