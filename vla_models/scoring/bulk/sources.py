"""What is to be scored: scenes and proposals on disk, matched, without reading them all into memory.

Scenes are ``pdm-scene/1`` files (one, a folder of them, a glob) or a scene store (a file or a folder). Proposals are

- one ``.npy`` [N, 8, 3] for every scene, or [S, N, 8, 3] in the scenes' order (file names sorted; a store's own order);
- one ``.npz`` with ``proposals`` [N, 8, 3] for every scene, with ``tokens`` [S] and ``proposals`` [S, N, 8, 3], or with one
  array [N, 8, 3] a scene under the scene's name;
- a folder or a glob of such ``.npy`` and ``.npz`` files, each for the scene of the same name.

A scene's name is its file's without ``.json`` or ``.json.gz``; in a store it is the token.
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vla_models.errors import PlanError, SceneError
from vla_models.scenes.neutral import parse_scene, read_scene
from vla_models.scenes.scene import PLAN_STEPS, Scene
from vla_models.scenes.store import MANIFEST, SceneStore

FloatArray = npt.NDArray[np.float64]

_ARROW_MAGIC: Final = b"ARROW1"
_SCENE_ENDINGS: Final = (".json.gz", ".json")
_PLAN_ENDINGS: Final = (".npy", ".npz")
_WANTED: Final = f"[N, {PLAN_STEPS}, 3] (x, y, heading in the ego frame, 0.5 s apart)"


@dataclass(frozen=True)
class SceneRef:
    """A scene that can be loaded: a file, or a row of a store."""

    name: str
    path: Path
    row: int | None
    """Row in the store ``path``; None for a file."""
    digest: str
    """Changes with the scene's content."""
    content: bytes | Scene | None = None
    """The file's bytes or the store's scene, where they travel with the reference (``carried``)."""

    def load(self) -> Scene:
        """The scene, without its images. Raises SceneError."""
        if isinstance(self.content, Scene):
            return self.content
        if self.content is not None:
            return parse_scene(self.content, self.path)
        return read_scene(self.path) if self.row is None else _store(self.path)[self.row].with_(images={})

    def carried(self) -> SceneRef:
        """The same with its content, for a machine that cannot read ``path``; left as it is where the file is unreadable."""
        try:
            return replace(self, content=self.path.read_bytes() if self.row is None else self.load())
        except (OSError, SceneError):
            return self


@dataclass(frozen=True)
class PlansRef:
    """Proposals of one scene that can be loaded: (a part of) a file."""

    path: Path
    key: str | None
    """Array in an ``.npz``; None for an ``.npy``."""
    row: int | None
    """Index along a leading dimension over scenes, if the array has one."""
    digest: str
    """Changes with the file's content."""
    content: FloatArray | None = None

    def load(self) -> FloatArray:
        """Proposals [N, 8, 3], N at least 1; finite or not. Raises PlanError."""
        if self.content is not None:
            return self.content
        array = _array(self.path, self.key)
        if self.row is not None:
            array = array[self.row]
        where = f"{self.path}" if self.key is None else f"{self.path}, array {self.key!r}"
        if array.dtype.kind not in "fiu":
            raise PlanError(f"{where}: holds {array.dtype}, expected numbers {_WANTED}")
        if array.ndim != 3 or array.shape[1:] != (PLAN_STEPS, 3):
            raise PlanError(f"{where}: proposals have shape {array.shape}, expected {_WANTED}")
        if len(array) == 0:
            raise PlanError(f"{where}: holds no proposals (shape {array.shape}); at least one is needed")
        return np.array(array, dtype=np.float64)

    def carried(self) -> PlansRef:
        """The same with its content, for a machine that cannot read ``path``."""
        try:
            return replace(self, content=self.load())
        except PlanError:
            return self


@dataclass(frozen=True)
class Job:
    """A scene and its proposals."""

    scene: SceneRef
    plans: PlansRef | None
    problem: str = ""
    """Why there are no ``plans``."""

    def carried(self) -> Job:
        """The same with everything that a machine without these files needs."""
        return replace(self, scene=self.scene.carried(), plans=None if self.plans is None else self.plans.carried())


def find_scenes(source: str | Path) -> list[SceneRef]:
    """The scenes that ``source`` (a file, a folder, a glob, a store) names, in order. Raises SceneError if there are none."""
    path = Path(source)
    if (path / MANIFEST).is_file():
        return _in_store(path)
    if path.is_file():
        with path.open("rb") as file:
            stored = file.read(len(_ARROW_MAGIC)) == _ARROW_MAGIC
        return _in_store(path) if stored else [_in_file(path)]
    files = _files(source, _SCENE_ENDINGS, lambda text: SceneError(f"scene {text}"))
    _distinct(files, _SCENE_ENDINGS, SceneError)
    return [_in_file(file) for file in files]


def find_jobs(scenes: Sequence[SceneRef], proposals: str | Path) -> list[Job]:
    """Each scene with its proposals, in the scenes' order.

    Raises PlanError if ``proposals`` cannot be used at all. A scene that lacks its own becomes a job with a ``problem``.
    """
    path = Path(proposals)
    if not path.is_file():
        files = _files(proposals, _PLAN_ENDINGS, lambda text: PlanError(f"proposals {text}"))
        _distinct(files, _PLAN_ENDINGS, PlanError)
        by_name = {_stem(file, _PLAN_ENDINGS): file for file in files}
        return [_matched_file(scene, by_name, path) for scene in scenes]
    digest = _plans_digest(path)
    if path.suffix != ".npz":
        array = _array(path, None)
        if array.ndim == 4:
            return _by_row(scenes, PlansRef(path, None, None, digest), len(array))
        return [Job(scene, PlansRef(path, None, None, digest)) for scene in scenes]
    names = _archive(path).files
    if "proposals" not in names:
        known = set(names)
        missing = f"{path} has no array of that name"
        return [
            Job(scene, PlansRef(path, scene.name, None, digest)) if scene.name in known else Job(scene, None, missing)
            for scene in scenes
        ]
    if "tokens" not in names:
        array = _array(path, "proposals")
        if array.ndim == 4:
            return _by_row(scenes, PlansRef(path, "proposals", None, digest), len(array))
        return [Job(scene, PlansRef(path, "proposals", None, digest)) for scene in scenes]
    tokens = [str(token) for token in np.atleast_1d(_array(path, "tokens"))]
    array = _array(path, "proposals")
    if array.ndim != 4 or len(array) != len(tokens):
        raise PlanError(
            f"{path}: {len(tokens)} tokens, but proposals of shape {array.shape}; expected [{len(tokens)}, N, 8, 3]"
        )
    row_of = {token: row for row, token in enumerate(tokens)}
    if len(row_of) != len(tokens):
        raise PlanError(f"{path}: names {_first_double(tokens)!r} twice in 'tokens'; tokens must be unique")
    return [
        Job(scene, PlansRef(path, "proposals", row_of[scene.name], digest))
        if scene.name in row_of
        else Job(scene, None, f"{path} has no such token")
        for scene in scenes
    ]


def source_digest(scenes: Iterable[SceneRef]) -> str:
    """sha256 over the contents of all scenes."""
    whole = hashlib.sha256()
    for scene in scenes:
        whole.update(f"{scene.name} {scene.digest}\n".encode())
    return whole.hexdigest()


def _by_row(scenes: Sequence[SceneRef], plans: PlansRef, rows: int) -> list[Job]:
    if rows != len(scenes):
        raise PlanError(
            f"{plans.path}: proposals for {rows} scenes, but there are {len(scenes)}; give [N, 8, 3] for all of them, "
            "or an .npz with one array a scene"
        )
    return [Job(scene, replace(plans, row=row)) for row, scene in enumerate(scenes)]


def _matched_file(scene: SceneRef, by_name: dict[str, Path], where: Path) -> Job:
    file = by_name.get(scene.name)
    if file is None:
        return Job(scene, None, f"{where} has no {scene.name}.npy or {scene.name}.npz")
    try:
        return Job(scene, PlansRef(file, "proposals" if file.suffix == ".npz" else None, None, _plans_digest(file)))
    except PlanError as error:
        return Job(scene, None, str(error))


def _in_file(path: Path) -> SceneRef:
    try:
        digest = _digest(path)
    except OSError:  # the same trouble, by name, when the scene is read
        digest = "unreadable"
    return SceneRef(_stem(path, _SCENE_ENDINGS), path, None, digest)


def _in_store(path: Path) -> list[SceneRef]:
    store = _store(path)
    if len(store) == 0:
        raise SceneError(f"scene store {path} is empty")
    return [
        SceneRef(token, path, row, f"{checksum:08x}")
        for row, (token, checksum) in enumerate(zip(store.tokens, store.checksums(), strict=True))
    ]


def _files(source: str | Path, endings: tuple[str, ...], complain: Callable[[str], Exception]) -> list[Path]:
    """Files with one of ``endings`` in a folder or matched by a glob, sorted by path."""
    path = Path(source)
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.name.endswith(endings) and not p.name.startswith("."))
        if not found:
            raise complain(f"folder {path} holds no {' or '.join(endings)} files")
        return found
    if not glob.has_magic(str(source)):
        raise complain(f"file {path} does not exist" if not path.exists() else f"{path} is neither a file nor a folder")
    found = sorted(Path(p) for p in glob.glob(str(source), recursive=True) if p.endswith(endings) and Path(p).is_file())
    if not found:
        raise complain(f"glob {str(source)!r} matches no {' or '.join(endings)} files")
    return found


def _distinct(files: Sequence[Path], endings: tuple[str, ...], kind: type[SceneError] | type[PlanError]) -> None:
    names = [_stem(file, endings) for file in files]
    if len(set(names)) != len(names):
        twice = _first_double(names)
        where = ", ".join(str(file) for file, name in zip(files, names, strict=True) if name == twice)
        raise kind(f"several files are named {twice!r}: {where}; names must be unique")


def _first_double(names: Sequence[str]) -> str:
    seen: set[str] = set()
    return next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]


def _stem(path: Path, endings: tuple[str, ...]) -> str:
    ending = next((e for e in endings if path.name.endswith(e)), path.suffix)
    return path.name.removesuffix(ending)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plans_digest(path: Path) -> str:
    try:
        return _digest(path)
    except OSError as error:
        raise PlanError(f"{path} cannot be read: {error}") from error


# Files stay open (memory-mapped where they can be) while they are used; one that was written anew is another one.


def _store(path: Path) -> SceneStore:
    return _opened_store(path, _stamp(path))


def _archive(path: Path) -> Any:
    return _opened_archive(path, _stamp(path))


def _array(path: Path, key: str | None) -> npt.NDArray[Any]:
    return _opened_array(path, key, _stamp(path))


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=4)
def _opened_store(path: Path, _: tuple[int, int]) -> SceneStore:
    return SceneStore.open(path)


@lru_cache(maxsize=4)
def _opened_archive(path: Path, _: tuple[int, int]) -> Any:
    try:
        archive = np.load(path, allow_pickle=False)
    except Exception as error:  # a damaged zip raises many kinds
        raise PlanError(f"{path} is no .npz file: {error}") from error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise PlanError(f"{path} is no .npz file, but one array; name it .npy")
    return archive


@lru_cache(maxsize=4)
def _opened_array(path: Path, key: str | None, _: tuple[int, int]) -> npt.NDArray[Any]:
    if key is None:
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # ValueError, EOFError, OSError, …
            raise PlanError(f"{path} is no .npy file with numbers: {error}") from error
        if not isinstance(array, np.ndarray):
            raise PlanError(f"{path} is an .npz file; name it so")
        return array
    archive = _archive(path)
    if key not in archive.files:
        raise PlanError(f"{path} has no array {key!r}; it holds {', '.join(archive.files[:8]) or 'nothing'}")
    try:
        return np.asarray(archive[key])
    except Exception as error:  # pickled objects, a damaged zip member, …
        raise PlanError(f"{path}: array {key!r} cannot be read: {error}") from error
