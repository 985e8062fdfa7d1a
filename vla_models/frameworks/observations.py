"""Observations of any environment as three arrays and a list of texts, and back, without loss.

RL frameworks carry images, one vector of numbers and a prompt. ``ObservationLayout`` is read off an environment's observation
space, travels to the model's side as JSON, and gives back exactly the dict that the environment made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from vla_models.errors import ConfigError, SceneError


@dataclass(frozen=True)
class Packed:
    """N observations."""

    main: npt.NDArray[np.uint8] | None
    """[N, H, W, 3] the first camera."""
    extra: npt.NDArray[np.uint8] | None
    """[N, cameras - 1, H, W, 3] the others, smaller pictures filled up with black below and on the right."""
    states: npt.NDArray[np.float32]
    """[N, D] everything else that is a number, in the order of ``ObservationLayout.arrays``."""
    text: list[str] | None

    def row(self, i: int) -> Packed:
        """Observation ``i`` alone; its arrays are views."""
        only = slice(i, i + 1)
        return Packed(
            main=None if self.main is None else self.main[only],
            extra=None if self.extra is None else self.extra[only],
            states=self.states[only],
            text=None if self.text is None else self.text[only],
        )


@dataclass(frozen=True)
class ObservationLayout:
    """Which parts an observation has, in order."""

    cameras: Mapping[str, tuple[int, int, int]]
    """camera -> (height, width, 3)."""
    arrays: Mapping[str, tuple[tuple[int, ...], str]]
    """name -> (shape of one row, dtype)."""
    text: bool

    @classmethod
    def of(cls, space: spaces.Space[Any]) -> Self:
        """Layout of a ``single_observation_space``; ``ConfigError`` names a part that float32 cannot carry exactly."""
        if not isinstance(space, spaces.Dict):
            raise ConfigError(f"environment: its observation is a {type(space).__name__}, the contract asks for a Dict")
        cameras: dict[str, tuple[int, int, int]] = {}
        arrays: dict[str, tuple[tuple[int, ...], str]] = {}
        for name, part in space.spaces.items():
            if name == "images":
                cameras = {camera: box.shape for camera, box in part.spaces.items()}  # type: ignore[attr-defined]
            elif isinstance(part, spaces.Text):
                if name != "text":
                    raise ConfigError(f"environment: the observation {name!r} is text; only 'text' can be")
            elif isinstance(part, spaces.Discrete) and part.start + part.n <= 2**24:
                arrays[name] = (), "int64"
            elif isinstance(part, spaces.Box) and part.dtype in (np.float32, np.uint8, np.int16, np.bool_):
                arrays[name] = part.shape, str(part.dtype)
            else:
                raise ConfigError(f"environment: the observation {name!r} is {part}, which float32 cannot carry exactly")
        return cls(cameras, arrays, "text" in space.spaces)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; ``from_dict`` reads it."""
        return {
            "cameras": {name: list(shape) for name, shape in self.cameras.items()},
            "arrays": {name: {"shape": list(shape), "dtype": dtype} for name, (shape, dtype) in self.arrays.items()},
            "text": self.text,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """What ``to_dict`` wrote."""
        return cls(
            {name: (int(s[0]), int(s[1]), int(s[2])) for name, s in data["cameras"].items()},
            {name: (tuple(int(n) for n in part["shape"]), str(part["dtype"])) for name, part in data["arrays"].items()},
            bool(data["text"]),
        )

    @property
    def width(self) -> int:
        """D of ``Packed.states``."""
        return sum(math.prod(shape) for shape, _ in self.arrays.values())

    def pack(self, observation: Mapping[str, Any]) -> Packed:
        """The observation [N rows] of an environment whose space this is the layout of."""
        images: Mapping[str, npt.NDArray[np.uint8]] = observation.get("images", {})
        parts = {
            **{f"images.{k}": images[k].shape[1:] for k in images},
            **{k: np.shape(observation[k])[1:] for k in self.arrays},
        }
        wanted = {f"images.{k}": shape for k, shape in self.cameras.items()} | {k: s for k, (s, _) in self.arrays.items()}
        if parts != wanted:
            raise SceneError(f"the environment's observation has the parts {parts}, its space says {wanted}")
        columns = [np.asarray(observation[name], dtype=np.float32) for name in self.arrays]
        rows = len(columns[0]) if columns else len(next(iter(images.values())))
        flat = [column.reshape(rows, -1) for column in columns] or [np.zeros((rows, 0), dtype=np.float32)]
        first, *others = [*self.cameras, None]
        return Packed(
            main=None if first is None else images[first],
            extra=self._stack(images, rows) if len(others) > 1 else None,
            states=np.concatenate(flat, axis=1),
            text=[str(t) for t in observation["text"]] if self.text else None,
        )

    def unpack(self, packed: Packed) -> dict[str, Any]:
        """The observation that was packed; pictures are views."""
        observation: dict[str, Any] = {}
        if self.cameras:
            first, *others = self.cameras
            images = {first: packed.main}
            for i, camera in enumerate(others):
                assert packed.extra is not None
                height, width, _ = self.cameras[camera]
                images[camera] = packed.extra[:, i, :height, :width]
            observation["images"] = images
        at = 0
        for name, (shape, dtype) in self.arrays.items():
            size = math.prod(shape)
            observation[name] = packed.states[:, at : at + size].reshape(-1, *shape).astype(dtype, copy=False)
            at += size
        if self.text:
            observation["text"] = packed.text
        return observation

    def _stack(self, images: Mapping[str, npt.NDArray[np.uint8]], rows: int) -> npt.NDArray[np.uint8]:
        others = list(self.cameras)[1:]
        height, width = (max(self.cameras[camera][axis] for camera in others) for axis in (0, 1))
        stacked = np.zeros((rows, len(others), height, width, 3), dtype=np.uint8)
        for i, camera in enumerate(others):
            h, w, _ = self.cameras[camera]
            stacked[:, i, :h, :w] = images[camera]
        return stacked


def concatenate(parts: Sequence[Packed]) -> Packed:
    """Packed observations one after the other."""

    def joined(arrays: Sequence[Any]) -> Any:
        return None if arrays[0] is None else np.concatenate(arrays)

    return Packed(
        main=joined([part.main for part in parts]),
        extra=joined([part.extra for part in parts]),
        states=joined([part.states for part in parts]),
        text=None if parts[0].text is None else [text for part in parts for text in part.text or ()],
    )
