"""What goes into a driving VLA and what comes out: ``VLAInput``, ``VLAPrediction``, ``VLASpec``, ``VLAOutput``.

Plain NumPy at the borders (images, routes, plans); only what a gradient may pass through is a torch tensor. This module does
not import torch, so that environments can use it without.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from vla_models.errors import ImageError, PlanError, SceneError
from vla_models.scenes.scene import COMMANDS

if TYPE_CHECKING:
    import PIL.Image
    import torch

EGO_FEATURES: Final = ("speed", "acceleration", "lateral_acceleration", "steering", "yaw_rate")
"""Columns of an observation's ``ego`` [N, 5] and the keys of ``VLAInput.ego_state``: m/s, m/s², m/s², rad, rad/s."""

INSTRUCTION: Final = "Drive safely to the destination"
"""NavSim's task in words; the same for every scene (what differs is in ego, command and route)."""

INVALID_PLAN: Final = 0.0
"""What environments are given in place of an answer that is no plan: all poses zero, so the car brakes until a plan comes."""

Image: TypeAlias = "str | Path | PIL.Image.Image | npt.NDArray[Any] | torch.Tensor"
"""One picture: a file, a PIL image, or an array [H, W, 3] / [H, W] (uint8, or float in 0…1)."""
Images: TypeAlias = "Image | Sequence[Image] | Mapping[str, Image]"
"""The pictures of one input: one, a list in the order of the model's cameras, or a dict by camera."""


@dataclass(frozen=True)
class VLASpec:
    """What a model is, as far as environments, heads and frameworks must know."""

    head: str = "waypoints"
    """How plans are made: "tokens", "gaussian", "waypoint", "flow", "ddim" (room ``heads``), or "waypoints" for a model
    without a distribution."""
    horizon: int = 5
    """T: poses in a plan."""
    dt: float = 0.5
    """Seconds between two poses of a plan."""
    cameras: tuple[str, ...] = ("front",)
    """Names of the cameras it looks at, in its order."""
    image_size: tuple[int, int] = (224, 224)
    """(height, width) to which each picture is brought."""
    history: int = 1
    """Frames per camera that it looks at (1: only the present)."""
    controller: str = "pid"
    """What turns its plans into steer, throttle and brake: "pid" (Bench2Drive's own) or "tracker" (``control``)."""
    has_value: bool = False
    """Whether ``evaluate_actions(values=True)`` and predictions give state values (PPO needs them)."""


@dataclass
class VLAInput:
    """What a model may know before it plans. The caller fills in all it has; a model reads only what it needs."""

    text: str = ""
    """The instruction."""
    images: Images | None = None
    """A file, PIL image, array, list in camera order, or dict by camera."""
    ego_state: Mapping[str, Any] | None = None
    """Keys of ``EGO_FEATURES`` (each optional), and optionally "position" (x, y in metres) and "heading" (radians)."""
    route: npt.NDArray[np.float32] | None = None
    """[R, 2] points of the route ahead, metres, ego frame (x forward, y left)."""
    command: str | None = None
    """One of "left", "straight", "right", "unknown"."""
    history: npt.NDArray[np.float32] | None = None
    """[H, 3] past ego poses (x, y, heading) in the ego frame, oldest first."""

    @classmethod
    def batch(cls, observation: Mapping[str, Any]) -> list[VLAInput]:
        """The rows of an environment's observation (``images``, ``ego``, ``route``, ``command``, ``text``), one input each.

        Arrays are views, nothing is copied. A key that the environment does not give stays None.
        """
        images: Mapping[str, Any] = observation.get("images") or {}
        ego, route, command, text = (observation.get(k) for k in ("ego", "route", "command", "text"))
        sizes = {
            k: len(v)
            for k, v in {**images, "ego": ego, "route": route, "command": command, "text": text}.items()
            if v is not None
        }
        if len(set(sizes.values())) != 1:
            raise SceneError(f"the parts of an observation differ in length: {sizes or 'it is empty'}")
        rows = []
        for i in range(next(iter(sizes.values()))):
            rows.append(
                cls(
                    text=str(text[i]) if text is not None else "",
                    images={camera: pictures[i] for camera, pictures in images.items()} or None,
                    ego_state=None if ego is None else {k: float(v) for k, v in zip(EGO_FEATURES, ego[i], strict=True)},
                    route=None if route is None else np.asarray(route[i], dtype=np.float32),
                    command=None if command is None else COMMANDS[int(command[i])],
                )
            )
        return rows


@dataclass
class VLAPrediction:
    """What a model decided. Checked when made: plans are finite and of shape [..., T, 3], else ``PlanError``."""

    waypoints: npt.NDArray[np.float32]
    """[T, 3] for one input with one sample, else [B, T, 3] with B = inputs × samples, an input's samples side by side:
    x, y (metres), heading (radians) in the ego frame at t = dt, 2·dt, … T·dt."""
    dt: float = 0.5
    """Seconds between two poses."""
    text: list[str] | None = None
    """[B] generated text (reasoning), if the model writes any."""
    logprobs: torch.Tensor | None = None
    """[B, *S] float32 log-probability of each decision's parts under the sampling distribution."""
    values: torch.Tensor | None = None
    """[B] float32 state values."""
    record: dict[str, torch.Tensor] | None = None
    """Flat dict of batch-first tensors from which ``evaluate_actions`` recomputes the log-probabilities."""
    controls: dict[str, float] | None = None
    """{"steer", "throttle", "brake"} if the model itself decides them."""
    valid: npt.NDArray[np.bool_] | None = None
    """[B] False where what the model wrote is no plan; its waypoints are then zeros and must not be driven. None: all are."""

    def __post_init__(self) -> None:
        self.waypoints = check_plan(self.waypoints)


def check_plan(plan: Any, horizon: int | None = None, what: str = "the plan", columns: int = 3) -> npt.NDArray[np.float32]:
    """``plan`` (array or tensor [..., T, 3]) as float32 NumPy; ``PlanError`` unless it is finite and T == ``horizon``.

    columns: how many of x, y, heading it must at least have; with 3 it must have exactly these.
    """
    array = as_numpy(plan)
    wide = array.ndim >= 2 and (array.shape[-1] == 3 or columns <= array.shape[-1] < 3)
    if not wide or array.shape[-2] == 0 or array.dtype.kind not in "fiu":
        raise PlanError(f"{what} has shape {list(array.shape)} ({array.dtype}); expected [T, 3] or [B, T, 3]: x, y, heading")
    if horizon is not None and array.shape[-2] != horizon:
        raise PlanError(f"{what} has {array.shape[-2]} poses; expected {horizon}")
    bad = ~np.isfinite(array).all(axis=(-2, -1))
    if bad.any():
        rows = f"rows {np.flatnonzero(bad)[:10].tolist()} of {bad.size} contain" if array.ndim > 2 else "it contains"
        raise PlanError(f"{what} is not finite: {rows} NaN or infinity. Check the model's weights and its learning rate")
    return array.astype(np.float32, copy=False)


@dataclass
class VLAOutput:
    """What ``forward`` returns; a model fills in what it has."""

    logits: torch.Tensor | None = None
    """[B, L, V] next-token scores."""
    values: torch.Tensor | None = None
    """[B] state values."""
    hidden: torch.Tensor | None = None
    """[B, L, D] last hidden states."""


def load_image(image: Image, camera: str = "front") -> npt.NDArray[np.uint8]:
    """One picture as RGB uint8 [H, W, 3]; ``ImageError`` names the file or the camera if it cannot be had."""
    if isinstance(image, (str, Path)):
        return _read_image(Path(image), camera)
    if hasattr(image, "convert"):  # PIL, without importing it
        return np.asarray(image.convert("RGB"), dtype=np.uint8)
    array = as_numpy(image)
    if array.ndim == 3 and array.shape[0] == 3 and array.shape[2] not in (3, 4):  # a torch-style [3, H, W]
        array = array.transpose(1, 2, 0)
    if array.ndim == 2:
        array = np.repeat(array[:, :, None], 3, axis=2)
    if array.ndim != 3 or array.shape[2] not in (3, 4) or 0 in array.shape:
        raise ImageError(
            f"camera {camera!r}: an array of shape {list(array.shape)} is no picture; expected [H, W, 3] or [H, W]"
        )
    array = array[:, :, :3]
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f":
        raise ImageError(f"camera {camera!r}: pixels are {array.dtype}; expected uint8, or float in 0…1")
    if not (np.isfinite(array).all() and array.min() >= 0.0 and array.max() <= 1.0):
        raise ImageError(
            f"camera {camera!r}: float pixels must be finite and in 0…1 (normalise inside the model, not before it)"
        )
    return np.round(array * 255.0).astype(np.uint8)


def load_images(images: Images | None, cameras: Sequence[str] = ("front",)) -> dict[str, npt.NDArray[np.uint8]]:
    """The pictures of one input as {camera: RGB uint8 [H, W, 3]}, exactly one for each of ``cameras``.

    A single picture serves a model with one camera; a list is in the order of ``cameras``; a dict may hold more cameras than
    the model looks at. ``ImageError`` names what is missing.
    """
    if images is None:
        raise ImageError(f"no images were given; the model looks at {', '.join(cameras)}")
    if isinstance(images, Mapping):
        missing = [c for c in cameras if c not in images]
        if missing:
            raise ImageError(f"no image for camera {', '.join(missing)}; given: {', '.join(images) or 'none'}")
        return {c: load_image(images[c], c) for c in cameras}
    listed: list[Any] = list(images) if isinstance(images, (list, tuple)) else [images]
    if len(listed) != len(cameras):
        raise ImageError(
            f"{len(listed)} images for {len(cameras)} cameras ({', '.join(cameras)}); give one for each, in this order"
        )
    return {c: load_image(image, c) for c, image in zip(cameras, listed, strict=True)}


def _read_image(path: Path, camera: str) -> npt.NDArray[np.uint8]:
    import PIL.Image

    if not path.is_file():
        raise ImageError(f"camera {camera!r}: there is no image file {str(path)!r} (looked in {Path.cwd()})")
    try:
        with PIL.Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"), dtype=np.uint8)
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as e:  # PIL raises SyntaxError on broken PNGs
        raise ImageError(f"camera {camera!r}: {str(path)!r} cannot be read as an image: {e}") from e


def as_numpy(value: Any) -> npt.NDArray[Any]:
    """Any array-like, torch tensors (on a device, with gradients, bfloat16) included, as NumPy."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if not value.dtype.is_floating_point or value.dtype.itemsize >= 4:
            return np.asarray(value)
        return np.asarray(value.float())
    return np.asarray(value)
