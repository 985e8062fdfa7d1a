"""``vla-models score``: NavSim's PDM score of proposals on disk, and why one of them lost its points."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from vla_models.cli.app import app, console
from vla_models.errors import ConfigError, OutputError, PlanError, SceneError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from vla_models.scenes.scene import Scene
    from vla_models.scoring.bulk import Job, Options, ScoreTable

    FloatArray = npt.NDArray[np.float64]


class Version(StrEnum):
    """Versions of the PDM score."""

    v1 = "v1"
    v2 = "v2"


class OnError(StrEnum):
    """What becomes of rows that cannot be scored."""

    stop = "raise"
    mark = "mark"


class Engine(StrEnum):
    """Who does the work."""

    local = "local"
    ray = "ray"


class Traffic(StrEnum):
    """How the other agents move."""

    log_replay = "log_replay"
    constant_velocity = "constant_velocity"
    reactive_idm = "reactive_idm"


_MEANINGS: Final = {
    "score": "total",
    "nc": "no at-fault collision",
    "dac": "drivable area",
    "ddc": "driving direction",
    "tlc": "traffic lights",
    "ep": "progress, compared with PDM-Closed's",
    "ttc": "time to collision",
    "lk": "lane keeping",
    "comfort": "comfort",
    "hc": "comfort with history",
    "mult": "product of the factors",
    "progress_raw": "metres along the route",
    "reverse": "metres driven backwards",
    "ref_progress_raw": "metres along the route, PDM-Closed",
}
"""What the summary shows, in this order."""


@app.command(
    epilog="Examples:\n\n"
    "  vla-models score --scene S.json.gz --proposals P.npy --version v2 --out O.npz\n\n"
    "  vla-models score --scene 'scenes/*.json.gz' --proposals plans/ --version v1 --out scores.parquet\n\n"
    "  vla-models score --scene S.json.gz --proposals P.npy --version v2 --explain S --row 3 --picture why.png"
)
def score(
    scene: Annotated[
        str, typer.Option(help="A pdm-scene/1 file (.json, .json.gz), a folder or a quoted glob of them, or a store.")
    ],
    proposals: Annotated[
        str,
        typer.Option(
            help="A .npy [N, 8, 3] for every scene or [S, N, 8, 3]; an .npz with an array a scene name; a folder or a quoted "
            "glob of such files, matched by scene name."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where to: .npz, .csv or .parquet. For one scene file an .npz has every array, else rows.", show_default=False
        ),
    ] = None,
    version: Annotated[Version, typer.Option(help="NavSim v1.1 or v2.2.")] = Version.v1,
    human_filter: Annotated[
        bool, typer.Option("--human-filter", help="v2: add columns f_*, after the official human filter.")
    ] = False,
    traffic: Annotated[Traffic, typer.Option(help="How other agents move (v1: log_replay only).")] = Traffic.log_replay,
    threads: Annotated[int, typer.Option(min=0, help="Processors to use; 0: all of this machine's.")] = 0,
    on_error: Annotated[
        OnError, typer.Option(help="What cannot be scored: refuse and name it all, or mark it NaN and score the rest.")
    ] = OnError.stop,
    engine: Annotated[
        Engine, typer.Option(help="Processes of this machine, or Ray (the cluster of RAY_ADDRESS, if set).")
    ] = Engine.local,
    explain: Annotated[
        str | None, typer.Option(metavar="TOKEN", help="Say why a proposal of this scene lost its points.", show_default=False)
    ] = None,
    row: Annotated[int, typer.Option(min=0, help="Which proposal --explain is about.")] = 0,
    picture: Annotated[
        Path | None, typer.Option(help="PNG for --explain; left out, it lies beside --out.", show_default=False)
    ] = None,
) -> None:
    """Score proposals with NavSim's PDM score, exactly as the official code does.

    A run over many scenes that was stopped or killed goes on where it was: start the same command again.
    """
    from vla_models.scoring.bulk import Options, find_jobs, find_scenes

    _check(out, version, human_filter, traffic, explain, picture)
    options = Options(version.value, traffic.value, human_filter)
    scenes = find_scenes(scene)
    jobs = find_jobs(scenes, proposals)
    wanted = None if explain is None else _wanted(jobs, explain, row)
    if out is not None:
        if len(jobs) == 1 and jobs[0].scene.row is None and Path(scene).is_file() and out.suffix == ".npz":
            _score_one(jobs[0], options, on_error is OnError.mark, out)
        else:
            table = _score_many(jobs, options, on_error, out, engine.value, threads or len(os.sched_getaffinity(0)))
            _print_means(table, out)
    if wanted is not None:
        _explain(wanted, row, options, picture or _beside(out, wanted[0].token, row))


def _check(
    out: Path | None, version: Version, human_filter: bool, traffic: Traffic, explain: str | None, picture: Path | None
) -> None:
    """Complain now about what would fail only at the end."""
    from vla_models.scoring.bulk.table import check_ending

    if out is None and explain is None:
        raise ConfigError("say where the scores should go: --out O.npz (or .csv, .parquet)")
    if picture is not None and explain is None:
        raise ConfigError("--picture shows what --explain TOKEN explains; name the scene")
    if version is Version.v1 and human_filter:
        raise ConfigError("--human-filter belongs to version 2 of the score: add --version v2")
    if version is Version.v1 and traffic is not Traffic.log_replay:
        raise ConfigError(f"--traffic {traffic.value} belongs to version 2 of the score: add --version v2")
    if out is not None:
        check_ending(out)
    for path in (out, picture):
        if path is None:
            continue
        if path.is_dir():
            raise OutputError(f"{path} is a folder; name a file in it")
        if not path.parent.is_dir():
            raise OutputError(f"there is no folder {path.parent} for {path.name}; make it: mkdir -p {path.parent}")
        if not os.access(path.parent, os.W_OK):
            raise OutputError(f"folder {path.parent} cannot be written to; choose another place for {path.name}")


def _score_one(job: Job, options: Options, mark: bool, out: Path) -> None:
    """One scene file: every official array by its own name."""
    import numpy as np

    from vla_models.scoring.bulk.official import official_arrays
    from vla_models.scoring.bulk.run import provenance
    from vla_models.scoring.bulk.table import write_arrays

    if job.plans is None:
        raise PlanError(f"there are no proposals for scene {job.scene.name!r}: {job.problem}")
    plans = job.plans.load()
    scene = job.scene.load()
    arrays = official_arrays(scene, plans, options, mark)
    write_arrays(out, {"token": np.array(scene.token), **arrays}, provenance([job], options))
    valid = arrays["valid"]
    means = {name: float(values[valid].mean()) for name, values in arrays.items() if _is_summed(name, values) and valid.any()}
    _print_table(means, f"{scene.token}: means over {int(valid.sum())} proposals, {options.version}")
    if not valid.all():
        _warn(
            f"{int((~valid).sum())} of {len(valid)} proposals cannot be scored and are NaN: {np.flatnonzero(~valid).tolist()}"
        )
    _say(f"wrote {out}")


def _is_summed(name: str, values: Any) -> bool:
    return values.ndim == 1 and name not in ("valid", "nc_idx", "ttc_idx", "ec_pairs")


def _score_many(jobs: Sequence[Job], options: Options, on_error: OnError, out: Path, engine: Any, workers: int) -> ScoreTable:
    """Rows of all scenes, written to ``out``. Finished work is kept beside it until then."""
    from vla_models.scoring.bulk.run import discard, score_jobs

    keep = out.with_name(f".{out.name}.parts")
    try:
        with _progress(len(jobs)) as advance:
            table = score_jobs(jobs, options, keep=keep, engine=engine, workers=workers, advance=advance)
    except KeyboardInterrupt:
        _warn("stopped; the same command goes on from here")
        raise typer.Exit(130) from None
    problems = table.problems()
    lines = [f"  {token}: {text}" for token, texts in problems.items() for text in texts]
    if problems and on_error is OnError.stop:
        raise SceneError(
            f"{len(problems)} of {len(jobs)} scenes cannot be scored as they are:\n" + "\n".join(lines) + "\nMend them and run "
            "the same command again (what is finished is kept), or score the rest with --on-error mark. Nothing was written."
        )
    table.write(out)
    discard(keep)
    if problems:
        _warn(f"{len(problems)} of {len(jobs)} scenes have rows without a score (NaN):\n" + "\n".join(lines))
    return table


@contextmanager
def _progress(scenes: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr where a person looks at it."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("scenes"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(stderr=True)) as bar:
        task = bar.add_task("scenes", total=scenes)
        yield lambda count: bar.advance(task, count)


def _print_means(table: ScoreTable, out: Path) -> None:
    import numpy as np

    scored = int(np.isfinite(table.columns["score"]).sum())
    scenes = table.provenance["scenes"]
    _print_table(table.means(), f"means over {scored} proposals in {scenes} scenes, {table.provenance['score']}")
    _say(f"wrote {out}: {len(table)} rows")


def _print_table(means: dict[str, float], title: str) -> None:
    """A line a number: its mean, the one after the human filter, and what it is."""
    from rich.table import Table

    filtered = {name.removeprefix("f_"): value for name, value in means.items() if name.startswith("f_")}
    table = Table("", "mean", *(["filtered"] if filtered else []), "", box=None, header_style="bold")
    for name, what in _MEANINGS.items():
        if name in means:
            cells = [f"{filtered[name]:.4f}" if name in filtered else ""] if filtered else []
            table.add_row(name, f"{means[name]:.4f}", *cells, what)
    terminal = console()
    terminal.print(title, highlight=False, soft_wrap=True, markup=False)
    terminal.print(table)


def _say(text: str) -> None:
    console().print(text, soft_wrap=True, highlight=False, markup=False)


def _warn(text: str) -> None:
    console(stderr=True).print(text, soft_wrap=True, highlight=False, markup=False, style="yellow")


def _wanted(jobs: Sequence[Job], token: str, row: int) -> tuple[Scene, FloatArray]:
    """The scene and the proposal [8, 3] that --explain asks about."""
    from difflib import get_close_matches

    job = next((job for job in jobs if job.scene.name == token), None)
    if job is None and len(jobs) == 1 and jobs[0].scene.load().token == token:  # a file that is named otherwise
        job = jobs[0]
    if job is None:
        near = get_close_matches(token, [job.scene.name for job in jobs])
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"the first is {jobs[0].scene.name!r}"
        raise SceneError(f"--explain {token!r}: there is no such scene among the {len(jobs)}; {hint}")
    if job.plans is None:
        raise PlanError(f"there are no proposals for scene {token!r}: {job.problem}")
    plans = job.plans.load()
    if row >= len(plans):
        raise PlanError(f"--row {row}: scene {token!r} has proposals 0 to {len(plans) - 1}")
    return job.scene.load(), plans[row]


def _beside(out: Path | None, token: str, row: int) -> Path | None:
    return None if out is None else out.with_name(f"{out.stem}.{token.replace('/', '_')}.{row}.png")


def _explain(wanted: tuple[Scene, FloatArray], row: int, options: Options, picture: Path | None) -> None:
    """Why a proposal lost its points: a line a reason, and a picture."""
    from vla_models.report.explanation import explained, title, write_picture
    from vla_models.scoring.pdm import human_terms
    from vla_models.scoring.pdm.explain import explain

    scene, plan = wanted
    explanation = explain(scene, plan, options.version, options.traffic)
    lines = explained(scene, explanation, human_terms(scene, options.traffic) if options.human_filter else None)
    _say(title(explanation, row))
    for line in lines:
        _say(f"  {line.term:<8}{line.value:.3f}  {line.cost:<13}  {line.text}")
    if not lines:
        _say("  nothing was lost")
    if picture is None:
        _say("  (--picture FILE.png draws it)")
    else:
        write_picture(picture, scene, plan, explanation, lines, row)
        _say(f"wrote {picture}")
