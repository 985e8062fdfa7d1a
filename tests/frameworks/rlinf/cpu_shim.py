"""Lets RLinf 0.3.0 run on a CPU, for tests alone: ``RLINF_EXT_MODULE=cpu_shim`` (this folder on PYTHONPATH).

RLinf has no CPU path: its workers ask the accelerator's platform for a device. Here "no accelerator" gets a platform that says
"cpu". This is a test double, not support.
"""

from __future__ import annotations

from typing import Any

import torch


class CpuPlatform:
    """The calls of ``torch.cuda`` that RLinf makes, for a machine without."""

    def current_device(self) -> torch.device:
        return torch.device("cpu")

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def is_initialized(self) -> bool:
        return False

    def get_rng_state(self, *_: Any) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, *_: Any) -> None:
        torch.set_rng_state(state)

    def memory_allocated(self, *_: Any) -> int:
        return 0

    memory_reserved = memory_allocated

    def set_device(self, *_: Any) -> None:
        pass

    synchronize = empty_cache = ipc_collect = set_device

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(torch.cpu, name)


def register() -> None:
    """The plugin, and the platform in this process."""
    from vla_models.frameworks.rlinf import plugin

    use_cpu()
    plugin.register()


def use_cpu() -> None:
    from rlinf.scheduler import Worker
    from rlinf.scheduler.hardware.accelerators.accelerator import AcceleratorType, AcceleratorUtil

    platform = CpuPlatform()
    platform_of, device_of = AcceleratorUtil.get_torch_platform, AcceleratorUtil.get_device_type
    none = AcceleratorType.NO_ACCEL
    AcceleratorUtil.get_torch_platform = staticmethod(lambda kind: platform if kind == none else platform_of(kind))
    AcceleratorUtil.get_device_type = staticmethod(lambda kind: "cpu" if kind == none else device_of(kind))
    if Worker.torch_platform is None:
        Worker.torch_platform, Worker.torch_device_type = platform, "cpu"
    if getattr(Worker.__init__, "on_cpu", False):
        return
    original = Worker.__init__

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        if getattr(self, "torch_platform", None) is None:
            self.torch_platform, self.torch_device_type = platform, "cpu"
        original(self, *args, **kwargs)

    __init__.on_cpu = True  # type: ignore[attr-defined]
    Worker.__init__ = __init__
