"""The log of a run: ``metrics.jsonl`` (the truth) and TensorBoard (a view of it)."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vla_models.errors import DivergenceError


class MetricsLog:
    """Appends rows to ``metrics.jsonl`` and to ``tensorboard/`` of a run folder.

    Args:
        run_dir: the run.
        keep_bytes: how much of an existing ``metrics.jsonl`` to keep: where the checkpoint was taken that the run goes on
            from. The rest is cut off, and TensorBoard's files are written anew from what is kept, so both hold each step once.
    """

    def __init__(self, run_dir: Path, keep_bytes: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._path = Path(run_dir) / "metrics.jsonl"
        self._path.touch()
        with self._path.open("r+b") as file:
            file.truncate(keep_bytes)
        shutil.rmtree(Path(run_dir) / "tensorboard", ignore_errors=True)
        self._board = SummaryWriter(str(Path(run_dir) / "tensorboard"))
        for row in read_metrics(run_dir):
            self._plot(row)
        self._file = self._path.open("ab")

    def write(self, row: dict[str, Any]) -> None:
        """Add a row: "phase", "step" and numbers. A number that is not finite stops the run: it means divergence."""
        bad = [name for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)]
        if bad:
            raise DivergenceError(
                f"{row['phase']} step {row['step']}: {', '.join(bad)} is not finite; lower the learning rate, or resume from "
                "the last checkpoint with another seed"
            )
        self._file.write(json.dumps(row).encode() + b"\n")
        self._file.flush()
        self._plot(row)

    def size(self) -> int:
        """Bytes written so far: what a checkpoint remembers."""
        return self._file.tell()

    def _plot(self, row: dict[str, Any]) -> None:
        for name, value in row.items():
            if isinstance(value, (int, float)) and name not in ("step", "wall_s"):
                self._board.add_scalar(f"{row['phase']}/{name}", value, row["step"], walltime=row.get("wall_s"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        self._board.close()


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """All rows of a run's ``metrics.jsonl``; a last line that was cut off by a kill is left out."""
    path = Path(run_dir) / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1] if line]
