"""The pictures of one input: every camera, every frame, all of one size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vla_models.errors import ImageError
from vla_models.inputs import load_image, load_images


def load_frames(
    images: Any, cameras: Sequence[str], frames: int, size: tuple[int, int], resample: int
) -> npt.NDArray[np.uint8]:
    """RGB uint8 [cameras × frames, H, W, 3], camera by camera, oldest frame first.

    images: as ``VLAInput.images``; with more than one frame, a list of ``frames`` pictures (oldest first) or an array
    [frames, H, W, 3] takes the place of each picture. size: (height, width) of every picture. resample: PIL's filter.

    ``ImageError`` names the camera that is missing, has another number of frames, or cannot be read.
    """
    if frames == 1:
        pictures = list(load_images(images, cameras).values())
    else:
        pictures = [load_image(p, c) for c, film in _films(images, cameras).items() for p in _frames(film, c, frames)]
    return np.stack([_resized(picture, size, resample) for picture in pictures])


def _films(images: Any, cameras: Sequence[str]) -> dict[str, Any]:
    if images is None:
        raise ImageError(f"no images were given; the model looks at {', '.join(cameras)}")
    if isinstance(images, Mapping):
        if missing := [c for c in cameras if c not in images]:
            raise ImageError(f"no image for camera {', '.join(missing)}; given: {', '.join(images) or 'none'}")
        return {c: images[c] for c in cameras}
    films = [images] if len(cameras) == 1 else list(images)
    if len(films) != len(cameras):
        raise ImageError(f"{len(films)} lists of frames for {len(cameras)} cameras ({', '.join(cameras)}); give one for each")
    return dict(zip(cameras, films, strict=True))


def _frames(film: Any, camera: str, frames: int) -> list[Any]:
    several = isinstance(film, (list, tuple)) or getattr(film, "ndim", 0) == 4
    given = len(film) if several else 1
    if given != frames:
        raise ImageError(
            f"camera {camera!r}: {given} {'frame was' if given == 1 else 'frames were'} given; the model looks at {frames}, "
            "oldest first (at the beginning of an episode repeat the first)"
        )
    return list(film)


def _resized(picture: npt.NDArray[np.uint8], size: tuple[int, int], resample: int) -> npt.NDArray[np.uint8]:
    if picture.shape[:2] == size:
        return picture
    import PIL.Image

    return np.asarray(PIL.Image.fromarray(picture).resize((size[1], size[0]), PIL.Image.Resampling(resample)))
