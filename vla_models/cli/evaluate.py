"""``vla-models eval``: a model or a baseline on held-out scenes or routes, beside the planners that need no model."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from vla_models.cli.app import app, console, log_to_terminal
from vla_models.cli.policies import Policy, baselines, find_policy
from vla_models.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from vla_models.training.evaluate_routes import RouteEvaluation

_COLUMNS: Final = {
    "driving_score": ("score", 1.0, 1),
    "success": ("success %", 100.0, 1),
    "route_completion": ("route %", 1.0, 1),
    "infraction_penalty": ("penalty", 1.0, 2),
    "efficiency": ("speed %", 1.0, 1),
    "smoothness": ("smooth %", 100.0, 1),
}
"""Number of a route -> its column's title, the factor with which it is shown, and its decimals."""

_SHORT: Final = {"Emergency_Brake": "brake", "Give_Way": "give way", "Traffic_Signs": "signs"}
"""Abilities whose names are too long for a terminal of 80 columns."""


@app.command(
    "eval",
    epilog="Examples:\n\n"
    "  vla-models eval runs/local-navsim-grpo-20260101-120000\n\n"
    "  vla-models eval my_checkpoint environment.heldout_scenes=500 --output scores.json\n\n"
    "  vla-models eval my_checkpoint environment.type=bench2drive environment.routes=routes.xml --results results\n\n"
    "  vla-models eval rule_based --per-scenario",
)
def evaluate(
    what: Annotated[
        str,
        typer.Argument(
            metavar="RUN_OR_CHECKPOINT",
            help="A run's folder, one that save_pretrained wrote, or a baseline: constant_velocity, pdm_closed (NavSim), "
            "blind_follower, rule_based (Bench2Drive).",
        ),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Replace configuration values.", show_default=False)
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file with the environment; left out, the run's own, else the defaults.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Also write the means as JSON into this file.")] = None,
    results: Annotated[
        Path | None,
        typer.Option(help="Bench2Drive: write what its own merge, ability and comfort scripts read into this folder."),
    ] = None,
    per_scenario: Annotated[
        bool, typer.Option("--per-scenario", help="Bench2Drive: also a line for each scenario type.")
    ] = False,
    rows: Annotated[int, typer.Option(min=1, help="Bench2Drive: routes driven at a time, one batch for the model.")] = 16,
) -> None:
    """Score a model on the held-out scenes or routes, beside the baselines.

    NavSim: PDM score, beside constant velocity and PDM-Closed. Bench2Drive: driving score, success, efficiency, comfort and
    abilities in the kinematic world, beside constant velocity, a blind and a rule-based driver.
    """
    policy = find_policy(what, config, overrides or [])
    for path in (output, results):
        _check_place(path, folder=path is results)
    log_to_terminal()
    if policy.settings.environment.type == "bench2drive":
        written = _on_routes(policy, rows, results, per_scenario)
    elif results is not None or per_scenario:
        raise ConfigError("--results and --per-scenario are about Bench2Drive's routes: add environment.type=bench2drive")
    else:
        written = _on_scenes(policy)
    if output is not None:
        from vla_models.files import atomic_path

        with atomic_path(output) as temporary:
            temporary.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


def _check_place(path: Path | None, *, folder: bool) -> None:
    """Complain now about what would fail only at the end."""
    if path is None:
        return
    if folder and path.exists() and not path.is_dir():
        raise OutputError(f"{path} is a file; name a folder for --results")
    if not folder and path.is_dir():
        raise OutputError(f"{path} is a folder; name a file in it for --output")
    there = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not os.access(there, os.W_OK):
        raise OutputError(f"{there} cannot be written to; choose another place for {path.name}")


# -- NavSim ----------------------------------------------------------------------------------------------------------------


def _on_scenes(policy: Policy) -> dict[str, Any]:
    """PDM scores of all planners on the held-out scenes; returns what ``--output`` writes."""
    from vla_models.training.evaluate import evaluate_baseline, evaluate_model
    from vla_models.training.scenes import build_scenes

    settings = policy.settings
    model = None if policy.is_baseline else policy.load()
    scenes = build_scenes(settings, "heldout")
    threads = settings.training.threads or len(os.sched_getaffinity(0))
    options: dict[str, Any] = {"version": settings.environment.score_version, "threads": threads}
    means = {name: evaluate_baseline(name, scenes, **options).means() for name in baselines("navsim")}
    if model is not None:
        means[policy.name] = evaluate_model(model, scenes, **options).means()
    names = list(next(iter(means.values())))
    _print_table(
        f"held-out means over {len(scenes)} scenes",
        ["", *names],
        [[label, *(f"{row[name]:.3f}" for name in names)] for label, row in means.items()],
    )
    return {"scenes": len(scenes), "means": means}


# -- Bench2Drive -----------------------------------------------------------------------------------------------------------


def _on_routes(policy: Policy, rows: int, results: Path | None, per_scenario: bool) -> dict[str, Any]:
    """Bench2Drive's numbers of all drivers on the held-out routes; returns what ``--output`` writes."""
    from vla_models.scoring.bench2drive import WORLD
    from vla_models.training.evaluate_routes import evaluate_routes
    from vla_models.training.progress import Bar
    from vla_models.training.routes import make_route_env

    model = None if policy.is_baseline else policy.load()
    env = make_route_env(policy.settings, "heldout", rows, cameras=())
    for left_out in env.skipped:
        _say(f"left out: {left_out}")
    found: dict[str, RouteEvaluation] = {}
    total = len(env.routes)
    for name in baselines("bench2drive"):
        with Bar(name, total) as bar:
            found[name] = evaluate_routes(name, env, progress=bar)
    env.close()
    if model is not None:
        env = make_route_env(policy.settings, "heldout", rows, model.spec)
        with Bar("model", total) as bar:
            found[policy.name] = evaluate_routes(model, env, progress=bar)
        env.close()
    shown = {"model" if name == policy.name and model is not None else name: result for name, result in found.items()}
    _print_routes(shown, f"{WORLD}: means over {total} routes", per_scenario)
    if model is not None:
        _say(f"model: {policy.name}")
    for name, result in found.items():
        if result.failed:
            _say(f"{name}: the worlds of {len(result.failed)} routes failed, they are left out: {', '.join(result.failed)}")
        if invalid := int(result.invalid_answers.sum()):
            _say(f"{name}: {invalid} of {int(result.decisions.sum())} answers were no plan; the car braked instead")
    if results is not None:
        _say(f"wrote {found[policy.name].write(results)} and the motion of {len(found[policy.name])} routes beside it")
    return {
        "world": WORLD,
        "routes": total,
        "skipped": list(env.skipped),
        "means": {name: result.means() for name, result in found.items()},
        "abilities": {name: _known(result.abilities()) for name, result in found.items()},
        "scenarios": {name: result.scenarios() for name, result in found.items()},
        "failed": {name: list(result.failed) for name, result in found.items()},
        "invalid_answers": {name: int(result.invalid_answers.sum()) for name, result in found.items()},
    }


def _print_routes(found: Mapping[str, RouteEvaluation], title: str, per_scenario: bool) -> None:
    from vla_models.scoring.bench2drive.abilities import ABILITIES

    means = {name: result.means() for name, result in found.items()}
    _print_table(
        title,
        ["driving", *(heading for heading, _, _ in _COLUMNS.values())],
        [
            [name, *(_cell(row.get(key), factor, digits) for key, (_, factor, digits) in _COLUMNS.items())]
            for name, row in means.items()
        ],
    )
    parts = {name: result.abilities() for name, result in found.items()}
    _print_table(
        "abilities: success %",
        ["", *(_SHORT.get(name, name.lower()) for name in (*ABILITIES, "mean"))],
        [[name, *(_cell(part[ability], 100.0, 1) for ability in (*ABILITIES, "mean"))] for name, part in parts.items()],
    )
    if per_scenario:
        tables = {name: result.scenarios() for name, result in found.items()}
        kinds = sorted({kind for table in tables.values() for kind in table})
        _print_table(
            "per scenario: driving score (success %)",
            ["", "routes", *tables],
            [[kind, _routes(kind, tables), *(_pair(table.get(kind)) for table in tables.values())] for kind in kinds],
        )


def _routes(kind: str, tables: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """How many routes of a type were driven (fewer where a world failed)."""
    return f"{max(table[kind]['routes'] for table in tables.values() if kind in table):.0f}"


def _pair(row: Mapping[str, float] | None) -> str:
    """Driving score and success of a scenario type."""
    return "-" if row is None else f"{row['driving_score']:.1f} ({100.0 * row['success']:.0f})"


def _cell(value: float | None, factor: float, digits: int) -> str:
    return "-" if value is None or math.isnan(value) else f"{factor * value:.{digits}f}"


def _known(values: Mapping[str, float]) -> dict[str, float]:
    """Without the abilities that no route is about: JSON has no NaN."""
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _print_table(title: str, headings: list[str], lines: list[list[str]]) -> None:
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False, collapse_padding=True)
    table.add_column(headings[0], overflow="fold", min_width=len("constant_velocity"))
    for heading in headings[1:]:
        table.add_column(heading, justify="right")
    for line in lines:
        table.add_row(*line)
    console().print(table)


def _say(text: str) -> None:
    console().print(text, soft_wrap=True, highlight=False, markup=False)
