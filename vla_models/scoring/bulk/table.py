"""Scores as a table, a row a (scene, proposal), and its files: ``.npz``, ``.csv``, ``.parquet``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vla_models.errors import OutputError
from vla_models.files import atomic_path

ENDINGS: Final = (".npz", ".csv", ".parquet")
"""Files that a table can be written to."""

_TEXT: Final = ("token", "error")
_STAMPED: Final = ("scorer", "score", "traffic", "source_sha256")
"""Provenance that a CSV, which has no place for metadata, repeats in each row …"""
_STAMP_LENGTH: Final = 48  # … cut to so many characters


@dataclass(frozen=True)
class ScoreTable:
    """R rows in the order of the scenes and, within a scene, of its proposals."""

    columns: Mapping[str, npt.NDArray[Any]]
    """``token`` str, ``proposal`` int64 (position among the scene's), ``score`` and the sub-scores float64 (NaN where there is
    none), ``error`` str (empty where all is well); all [R]."""
    provenance: Mapping[str, Any]
    """How the numbers came about: score and its definition, version and hash of the scorer, hashes of
    the scenes and the proposals."""

    def __len__(self) -> int:
        return len(self.columns["token"])

    def problems(self) -> dict[str, list[str]]:
        """Scene -> what is wrong with it, each complaint once, with the proposals that it is about (unless it is all)."""
        rows_of: dict[str, dict[str, list[int]]] = {}
        for row in np.flatnonzero(self.columns["error"] != ""):
            told = rows_of.setdefault(str(self.columns["token"][row]), {})
            told.setdefault(str(self.columns["error"][row]), []).append(int(self.columns["proposal"][row]))
        if not rows_of:
            return {}
        counts = dict(zip(*np.unique(self.columns["token"], return_counts=True), strict=True))
        return {
            token: [text if len(rows) == counts[token] else f"proposals {rows}: {text}" for text, rows in told.items()]
            for token, told in rows_of.items()
        }

    def means(self) -> dict[str, float]:
        """Mean of every number over the rows that have a score; NaN where there are none."""
        scored = np.isfinite(self.columns["score"])
        numbers = [n for n in self.columns if n not in (*_TEXT, "proposal", "nc_idx", "ttc_idx")]
        return {name: float(self.columns[name][scored].mean()) if scored.any() else float("nan") for name in numbers}

    def write(self, path: Path) -> None:
        """Write the table in the format of ``path``'s ending, with its provenance, never half of it. Raises OutputError."""
        ending = check_ending(path)
        if ending == ".npz":
            write_arrays(path, self.columns, self.provenance)
            return
        try:
            with atomic_path(path) as temporary:
                (self._write_csv if ending == ".csv" else self._write_parquet)(temporary)
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error}") from error

    def _write_csv(self, path: Path) -> None:
        from pyarrow import csv

        stamp = {name: np.full(len(self), str(self.provenance[name])[:_STAMP_LENGTH]) for name in _STAMPED}
        csv.write_csv(self._arrow({f"{name}_version" if name == "score" else name: v for name, v in stamp.items()}), str(path))

    def _write_parquet(self, path: Path) -> None:
        import pyarrow.parquet as pq

        table = self._arrow({}).replace_schema_metadata({"provenance": json.dumps(dict(self.provenance))})
        pq.write_table(table, str(path))

    def _arrow(self, more: Mapping[str, npt.NDArray[Any]]) -> Any:
        import pyarrow as pa

        return pa.table({name: pa.array(values, from_pandas=False) for name, values in {**self.columns, **more}.items()})


def check_ending(path: Path) -> str:
    """The ending of ``path``; OutputError if no table can be written to such a file."""
    if path.suffix not in ENDINGS:
        raise OutputError(f"results can be written to {', '.join(ENDINGS)}, not to {path.name!r}")
    return path.suffix


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]], provenance: Mapping[str, Any] | None = None) -> None:
    """Write ``arrays`` (with ``provenance`` as JSON) to the ``.npz`` file ``path``, never half of it. Raises OutputError."""
    stamp = {} if provenance is None else {"provenance": np.array(json.dumps(dict(provenance)))}
    try:
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays, **stamp)  # type: ignore[arg-type]  # its stub takes keywords for its own options
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error}") from error


def joined(parts: Sequence[Mapping[str, npt.NDArray[Any]]]) -> dict[str, npt.NDArray[Any]]:
    """Columns of tables one after the other; a number that one of them lacks is NaN in its rows."""
    names = [name for name in dict.fromkeys(name for part in parts for name in part) if name != "error"] + ["error"]
    return {
        name: np.concatenate([part[name] if name in part else np.full(len(part["token"]), np.nan) for part in parts])
        for name in names
    }
