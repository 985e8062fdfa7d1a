"""Scenes on disk: Arrow IPC files, memory-mapped, one row per scene; a store is one such file or a folder of them.

Opening reads footers only; a row's arrays are views into the file's pages, nothing is copied (the pages are mapped
copy-on-write, so that a view counts as writable for compiled kernels although nobody writes). Pages that were read are given
back now and then, so that resident memory does not grow with the store. Each row carries a checksum, compared when the row is
first read: a damaged file is an error that names it, never a wrong scene.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vla_models.errors import SceneError
from vla_models.files import atomic_path
from vla_models.scenes.scene import TRACK_STEPS, AgentPaths, Polygons, RedLights, Scene, Tracks

SCHEMA_VERSION: Final = "vla_models.scenes/3"
"""Changes whenever the columns do."""
BATCH_ROWS: Final = 256
BATCH_BYTES: Final = 64 << 20
"""A record batch ends after so many scenes or bytes, whichever comes first."""
MANIFEST: Final = "store.json"
"""In a folder of files: their names and the provenance; written last, so that a folder without it is not finished."""
RESIDENT_BYTES: Final = 256 << 20
"""After so many bytes were handed out, the pages that hold them leave resident memory (they stay in the page cache)."""

_STRINGS: Final = ("token", "town", "kind")
_LISTS: Final = ("polygon_ids", "track_ids", "image_names")


@dataclass(frozen=True)
class _Column:
    """An array of a scene as a column: element type, and shape without its leading, free dimension."""

    dtype: str
    tail: tuple[int, ...] = ()
    optional: bool = False


_ARRAYS: Final[dict[str, _Column]] = {
    "scalars": _Column("f8"),  # origin x, y, speed limit, command, time_us (whole numbers up to 2^53 are exact)
    "ego": _Column("f8"),
    "ego_history": _Column("f8", (11,), optional=True),
    "ego_history_us": _Column("i8", optional=True),
    "centerline": _Column("f8", (3,)),
    "polygon_vertices": _Column("f8", (2,)),
    "polygon_offsets": _Column("i8"),
    "polygon_layer": _Column("i1"),
    "polygon_on_route": _Column("u1"),
    "track_kind": _Column("i1"),
    "track_size": _Column("f8", (3,)),
    "track_states": _Column("f8", (TRACK_STEPS, 5)),
    "red_polygon": _Column("i8"),
    "red_steps": _Column("u1", (TRACK_STEPS,)),
    "reference": _Column("f8", (3,), optional=True),
    "human": _Column("f8", (3,), optional=True),
    "light_heads": _Column("f8", (4,)),
    "route": _Column("f8", (2,)),
    "agent_path_points": _Column("f8", (3,), optional=True),
    "agent_path_offsets": _Column("i8", optional=True),
    "agent_path_rows": _Column("f8", (6,), optional=True),  # progress, snapped pose, speed limit, in_lane
    "image_shapes": _Column("i8", (3,)),
    "image_data": _Column("u1"),
}
_ARROW: Final = {"f8": pa.float64(), "i8": pa.int64(), "i1": pa.int8(), "u1": pa.uint8(), "u4": pa.uint32()}


def _schema(provenance: Mapping[str, str]) -> pa.Schema:
    fields = [pa.field(name, pa.string()) for name in _STRINGS]
    fields += [pa.field(name, pa.list_(pa.string())) for name in _LISTS]
    fields += [pa.field(name, pa.large_list(_ARROW[column.dtype])) for name, column in _ARRAYS.items()]
    fields.append(pa.field("checksum", pa.uint32()))
    return pa.schema(fields, metadata={"schema": SCHEMA_VERSION, "provenance": json.dumps(dict(provenance), sort_keys=True)})


def _arrays(scene: Scene) -> dict[str, npt.NDArray[Any] | None]:
    """A scene's arrays by column, in their columns' types."""
    images = list(scene.images.values())
    for name, image in scene.images.items():
        if image.dtype != np.uint8 or image.ndim != 3:
            raise SceneError(f"scene {scene.token!r}: image {name!r} must be uint8 [H, W, 3], got {image.dtype} {image.shape}")
    lanes = scene.agent_paths
    found: dict[str, npt.NDArray[Any] | None] = {
        "agent_path_points": None if lanes is None else lanes.points,
        "agent_path_offsets": None if lanes is None else lanes.offsets,
        "agent_path_rows": None
        if lanes is None
        else np.column_stack([lanes.progress, lanes.snapped, lanes.speed_limit, lanes.in_lane]),
        "scalars": np.array([*scene.origin, scene.speed_limit, scene.command, scene.time_us]),
        "ego": scene.ego,
        "ego_history": scene.ego_history,
        "ego_history_us": scene.ego_history_us,
        "centerline": scene.centerline,
        "polygon_vertices": scene.polygons.vertices,
        "polygon_offsets": scene.polygons.offsets,
        "polygon_layer": scene.polygons.layer,
        "polygon_on_route": scene.polygons.on_route,
        "track_kind": scene.tracks.kind,
        "track_size": scene.tracks.size,
        "track_states": scene.tracks.states,
        "red_polygon": scene.red_lights.polygon,
        "red_steps": scene.red_lights.red,
        "reference": scene.reference,
        "human": scene.human,
        "light_heads": scene.light_heads,
        "route": scene.route,
        "image_shapes": np.array([image.shape for image in images], dtype=np.int64).reshape(-1, 3),
        "image_data": np.concatenate([image.ravel() for image in images]) if images else np.zeros(0, dtype=np.uint8),
    }
    out: dict[str, npt.NDArray[Any] | None] = {}
    for name, column in _ARRAYS.items():
        array = found[name]
        if array is None:
            out[name] = None
            continue
        if array.shape[1:] != column.tail:
            wanted = ", ".join(["n", *map(str, column.tail)])
            raise SceneError(f"scene {scene.token!r}: {name} must have shape [{wanted}], got {array.shape}")
        out[name] = np.ascontiguousarray(array, dtype=column.dtype).reshape(-1)
    return out


def _checksum(arrays: Iterable[npt.NDArray[Any] | None], texts: Iterable[str]) -> int:
    """CRC-32 of all arrays and texts of a row."""
    value = zlib.crc32("\0".join(texts).encode())
    for array in arrays:
        if array is not None and array.size:
            value = zlib.crc32(array.data, value)
    return value


def _texts(scene: Scene) -> list[str]:
    """All strings of a row, in the order of its columns."""
    return [scene.token, scene.town, scene.kind, *scene.polygons.ids, *scene.tracks.ids, *scene.images]


def _batch(rows: list[tuple[Scene, dict[str, npt.NDArray[Any] | None]]], schema: pa.Schema) -> pa.RecordBatch:
    columns: list[pa.Array] = [pa.array([getattr(scene, name) for scene, _ in rows], pa.string()) for name in _STRINGS]
    columns.append(pa.array([list(scene.polygons.ids) for scene, _ in rows], pa.list_(pa.string())))
    columns.append(pa.array([list(scene.tracks.ids) for scene, _ in rows], pa.list_(pa.string())))
    columns.append(pa.array([list(scene.images) for scene, _ in rows], pa.list_(pa.string())))
    for name, column in _ARRAYS.items():
        parts = [arrays[name] for _, arrays in rows]
        sizes = [0 if part is None else part.size for part in parts]
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        values = np.concatenate([p for p in parts if p is not None] or [np.zeros(0, dtype=column.dtype)])
        mask = pa.array([part is None for part in parts]) if column.optional else None
        flat = pa.array(values, _ARROW[column.dtype], from_pandas=False)  # NaN stays NaN
        columns.append(pa.LargeListArray.from_arrays(pa.array(offsets), flat, mask=mask))
    columns.append(pa.array([_checksum(arrays.values(), _texts(scene)) for scene, arrays in rows], pa.uint32()))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def write_scenes(path: Path, scenes: Iterable[Scene], provenance: Mapping[str, str] | None = None) -> SceneStore:
    """Write ``scenes`` to the file ``path`` as they come (a batch of them is in memory at a time) and open it.

    ``provenance`` (where the scenes come from) is kept in the file. Nothing is left at ``path`` unless all went well; an
    existing file is replaced. Raises ``SceneError`` for a scene whose arrays have wrong shapes, or a token that comes twice.
    """
    path = Path(path)
    schema = _schema(provenance or {})
    tokens: set[str] = set()
    with atomic_path(path) as temporary, pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        rows: list[tuple[Scene, dict[str, npt.NDArray[Any] | None]]] = []
        size = 0
        for scene in scenes:
            if scene.token in tokens:
                raise SceneError(f"{path}: two scenes have the token {scene.token!r}; tokens must be unique")
            tokens.add(scene.token)
            arrays = _arrays(scene)
            rows.append((scene, arrays))
            size += sum(array.nbytes for array in arrays.values() if array is not None)
            if len(rows) == BATCH_ROWS or size >= BATCH_BYTES:
                writer.write_batch(_batch(rows, schema))
                rows, size = [], 0
        if rows:
            writer.write_batch(_batch(rows, schema))
    return SceneStore.open(path)


class _File:
    """An open scene file: its batches, as NumPy views made on first use."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise SceneError(f"there is no scene file {path}")
        try:
            with path.open("rb") as file:
                self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            self.reader = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(self.map)))
            metadata = self.reader.schema.metadata or {}
        except (pa.ArrowException, ValueError, OSError) as error:
            raise SceneError(f"{path} is not a scene file, or is cut short ({error}); delete it and make it again") from error
        found = metadata.get(b"schema", b"unknown").decode(errors="replace")
        if found != SCHEMA_VERSION:
            raise SceneError(f"{path} has schema {found!r}, this version reads {SCHEMA_VERSION!r}; delete it and make it again")
        self.provenance: dict[str, str] = json.loads(metadata.get(b"provenance", b"{}"))
        self.base = pa.py_buffer(self.map).address
        self.batches: list[dict[str, Any] | None] = [None] * self.reader.num_record_batches
        try:
            counts = [self.reader.get_batch(k).num_rows for k in range(self.reader.num_record_batches)]
        except (pa.ArrowException, OSError) as error:
            raise self.damaged(str(error)) from error
        self.starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self.checked = bytearray(int(self.starts[-1]))

    def damaged(self, what: str) -> SceneError:
        return SceneError(f"{self.path} is damaged ({what}); delete it and make it again")

    def _view(self, buffer: pa.Buffer | None, dtype: str) -> npt.NDArray[Any]:
        if buffer is None or buffer.size == 0:
            return np.zeros(0, dtype=dtype)
        count = buffer.size // np.dtype(dtype).itemsize
        return np.ndarray((count,), dtype=dtype, buffer=self.map, offset=buffer.address - self.base)

    def batch(self, k: int) -> dict[str, Any]:
        """Record batch ``k``: name -> (offsets, values, valid or None), plus the Arrow string columns."""
        known = self.batches[k]
        if known is not None:
            return known
        try:
            batch = self.reader.get_batch(k)
            batch.validate()
        except (pa.ArrowException, OSError) as error:
            raise self.damaged(str(error)) from error
        columns: dict[str, Any] = {name: batch.column(name) for name in (*_STRINGS, *_LISTS)}
        for name, column in _ARRAYS.items():
            array = batch.column(name)
            _, offsets, _, values = array.buffers()
            valid = array.is_valid().to_numpy(zero_copy_only=False) if array.null_count else None
            columns[name] = (self._view(offsets, "i8"), self._view(values, column.dtype), valid)
        columns["checksum"] = batch.column("checksum").to_numpy()
        self.batches[k] = columns
        return columns

    def scene(self, row: int) -> tuple[Scene, int]:
        """Scene ``row`` and the bytes that its arrays have."""
        k = int(np.searchsorted(self.starts, row, side="right")) - 1
        columns, i = self.batch(k), row - int(self.starts[k])
        flat: dict[str, npt.NDArray[Any] | None] = {}
        for name in _ARRAYS:
            offsets, values, valid = columns[name]
            flat[name] = values[offsets[i] : offsets[i + 1]] if valid is None or valid[i] else None
        try:
            text = {name: columns[name][i].as_py() for name in (*_STRINGS, *_LISTS)}
            if not self.checked[row]:
                texts = [*(text[name] for name in _STRINGS), *(part for name in _LISTS for part in text[name])]
                if _checksum(flat.values(), texts) != int(columns["checksum"][i]):
                    raise self.damaged(f"scene {row} does not match its checksum")
                self.checked[row] = 1
            a = {n: None if v is None else v.reshape(-1, *_ARRAYS[n].tail) for n, v in flat.items()}
        except (UnicodeDecodeError, TypeError) as error:
            raise self.damaged(f"scene {row}: {error}") from error
        return _scene(a, text), sum(v.nbytes for v in flat.values() if v is not None)

    def column(self, name: str) -> list[Any]:
        """A string column or the checksums, of all rows."""
        found = (self.batch(k)[name] for k in range(len(self.batches)))
        return [value for part in found for value in (part.tolist() if name == "checksum" else part.to_pylist())]


class _Files:
    """The files of a store, one after the other."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.is_dir():
            names, self.provenance = read_manifest(path)
            self.files = [_File(path / name) for name in names]
        else:
            self.files = [_File(path)]
            self.provenance = self.files[0].provenance
        self.starts = np.cumsum([0, *(int(file.starts[-1]) for file in self.files)])
        self.handed_out = 0

    def scene(self, row: int) -> Scene:
        f = int(np.searchsorted(self.starts, row, side="right")) - 1
        scene, size = self.files[f].scene(row - int(self.starts[f]))
        self.handed_out += size
        if self.handed_out > RESIDENT_BYTES and hasattr(mmap, "MADV_DONTNEED"):
            self.handed_out = 0
            for file in self.files:
                file.map.madvise(mmap.MADV_DONTNEED)  # nobody wrote: the next access reads the file again
        return scene

    def column(self, name: str) -> list[Any]:
        return [value for file in self.files for value in file.column(name)]


def read_manifest(folder: Path) -> tuple[list[str], dict[str, str]]:
    """File names and provenance of a store that is a folder."""
    path = folder / MANIFEST
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return [str(name) for name in data["files"]], {str(k): str(v) for k, v in data["provenance"].items()}
    except FileNotFoundError:
        raise SceneError(
            f"{folder} is no finished scene store: it has no {MANIFEST}. If an import was interrupted, run it again as it was: "
            "vla-models scenes import … --out " + str(folder)
        ) from None
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise SceneError(f"{path} is damaged ({error})") from error


def write_manifest(folder: Path, files: Sequence[str], provenance: Mapping[str, str]) -> SceneStore:
    """Make a store of a folder's scene files, in this order, and open it."""
    text = json.dumps({"files": list(files), "provenance": dict(provenance)}, indent=2, sort_keys=True)
    with atomic_path(folder / MANIFEST) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    return SceneStore.open(folder)


def _scene(a: dict[str, Any], text: dict[str, Any]) -> Scene:
    images, begin = {}, 0
    for name, shape in zip(text["image_names"], a["image_shapes"], strict=True):
        end = begin + int(np.prod(shape))
        images[name] = a["image_data"][begin:end].reshape(shape)
        begin = end
    return Scene(
        token=text["token"],
        origin=a["scalars"][:2],
        ego=a["ego"],
        ego_history=a["ego_history"],
        ego_history_us=a["ego_history_us"],
        centerline=a["centerline"],
        speed_limit=float(a["scalars"][2]),
        polygons=Polygons(
            vertices=a["polygon_vertices"],
            offsets=a["polygon_offsets"],
            layer=a["polygon_layer"],
            on_route=a["polygon_on_route"].view(np.bool_),
            ids=tuple(text["polygon_ids"]),
        ),
        tracks=Tracks(kind=a["track_kind"], size=a["track_size"], states=a["track_states"], ids=tuple(text["track_ids"])),
        red_lights=RedLights(polygon=a["red_polygon"], red=a["red_steps"].view(np.bool_)),
        reference=a["reference"],
        human=a["human"],
        agent_paths=_agent_paths(a),
        command=int(a["scalars"][3]),
        images=images,
        light_heads=a["light_heads"],
        route=a["route"],
        time_us=int(a["scalars"][4]),
        town=text["town"],
        kind=text["kind"],
    )


def _agent_paths(a: dict[str, Any]) -> AgentPaths | None:
    rows = a["agent_path_rows"]
    if rows is None:
        return None
    progress, snapped, limit = (np.ascontiguousarray(rows[:, k]) for k in (0, slice(1, 4), 4))
    return AgentPaths(a["agent_path_points"], a["agent_path_offsets"], progress, snapped, limit, in_lane=rows[:, 5] != 0.0)


class SceneStore(Sequence[Scene]):
    """A sequence of scenes in a file or a folder of files. A slice, or ``select``, is a store over the same files.

    ``store[i]`` builds the scene anew each time, in well under a millisecond, from views into the file. It can be pickled
    (the path travels, not the scenes) and read from many processes at once.
    """

    def __init__(self, files: _Files, rows: npt.NDArray[np.int64]) -> None:
        self._files = files
        self._rows = rows
        self._index: tuple[npt.NDArray[np.bytes_], npt.NDArray[np.int64]] | None = None

    @classmethod
    def open(cls, path: Path) -> SceneStore:
        """Open what ``write_scenes`` or an import made. Raises ``SceneError`` if it is missing, unfinished, damaged or of
        another version."""
        files = _Files(Path(path))
        return cls(files, np.arange(int(files.starts[-1])))

    @property
    def path(self) -> Path:
        """The file or folder."""
        return self._files.path

    @property
    def provenance(self) -> dict[str, str]:
        """Where the scenes come from, as given when they were written."""
        return self._files.provenance

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """Tokens of all scenes, in order (kept once asked for: 10 MB for 100,000)."""
        return tuple(self._column("token"))

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of all scenes, in order."""
        return tuple(self._column("kind"))

    def checksums(self) -> npt.NDArray[np.uint32]:
        """[S] CRC-32 of each scene's content, in order: equal scenes have equal ones."""
        return np.array(self._column("checksum"), dtype=np.uint32)

    @property
    def towns(self) -> tuple[str, ...]:
        """Towns of all scenes, in order."""
        return tuple(self._column("town"))

    @cached_property
    def hash(self) -> str:
        """16 hex digits that name what is in the scenes (tokens and contents, in order), for stamping results. It does not
        depend on the path, on how the scenes are split into files, or on the provenance."""
        digest = hashlib.sha256(SCHEMA_VERSION.encode())
        for token, checksum in zip(self._column("token"), self._column("checksum"), strict=True):
            digest.update(f"{token}\0{checksum}\n".encode())
        return digest.hexdigest()[:16]

    def _column(self, name: str) -> list[Any]:
        every = self._files.column(name)
        return every if len(self) == len(every) and self._is_whole() else [every[row] for row in self._rows]

    def _is_whole(self) -> bool:
        return bool((self._rows == np.arange(len(self._rows))).all())

    def row_of(self, token: str) -> int:
        """Position of the scene with this token; ``SceneError`` if there is none."""
        if self._index is None:
            names = np.array([name.encode() for name in self._column("token")] or [b""])
            order = np.argsort(names, kind="stable")
            self._index = names[order], order
        names, order = self._index
        at = int(np.searchsorted(names, token.encode()))
        if not len(self) or at == len(names) or names[at] != token.encode():
            raise SceneError(f"{self.path} has no scene {token!r} among its {len(self)}")
        return int(order[at])

    def by_token(self, token: str) -> Scene:
        """The scene with this token; ``SceneError`` if there is none."""
        return self[self.row_of(token)]

    def select(self, rows: npt.ArrayLike) -> SceneStore:
        """The scenes at the given positions, as a store."""
        return SceneStore(self._files, self._rows[np.asarray(rows, dtype=np.int64)])

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Scene: ...
    @overload
    def __getitem__(self, index: slice) -> SceneStore: ...
    def __getitem__(self, index: int | slice) -> Scene | SceneStore:
        if isinstance(index, slice):
            return SceneStore(self._files, self._rows[index])
        if not -len(self) <= index < len(self):
            raise IndexError(f"scene {index} of {len(self)}")
        return self._files.scene(int(self._rows[index]))

    def __iter__(self) -> Iterator[Scene]:
        return (self._files.scene(int(row)) for row in self._rows)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.path, self._rows)

    def __repr__(self) -> str:
        return f"SceneStore({len(self)} scenes in {self.path})"


def _reopen(path: Path, rows: npt.NDArray[np.int64]) -> SceneStore:
    """Unpickle: open the file again."""
    return SceneStore(_Files(path), rows)
