"""The report of a run in Bench2Drive: numbers per driver and per scenario, curves, and one route filmed before and after."""

from __future__ import annotations

import logging
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vla_models.errors import VLAModelsError
from vla_models.report.run import ROUTE_NUMBERS, Heldout, Run
from vla_models.scoring.bench2drive import WORLD

log = logging.getLogger(__name__)

_SHOWN: Final = {"driving_score": (1.0, 1), "success": (100.0, 0), "route_completion": (1.0, 1), "efficiency": (1.0, 0)}
"""How a number is shown where it is not a plain one with two decimals: factor and decimals."""
_PERCENT: Final = ("success", "route_completion", "efficiency")


def route_content(run: Run) -> dict[str, Any]:
    """What routes.html shows, beside the frame that all reports share. Writes the films."""
    from vla_models.report.pictures import health_curves, learning_curve, route_curves, term_curves

    charts = [
        (
            "Learning curve",
            "Reward: of a decision in training, where sampling explores. Score: of the most likely plans on held-out routes.",
            learning_curve,
        ),
        ("Bench2Drive's numbers", "Lines: routes that ended in training. Dots: held-out routes.", route_curves),
        ("What a decision brings", "Reward terms, means over the decisions of an update.", term_curves),
        ("Is the optimisation sound?", "", health_curves),
    ]
    table = []
    for name, (title, what) in run.planners.items():
        cells = [(run.score(name), 1), *(_shown(run.sub_score(name, key), key) for key in list(ROUTE_NUMBERS)[1:])]
        table.append({"name": name, "title": title, "what": what, "cells": cells})
    films = write_films(run)
    return {
        "score": "driving score",
        "best": 100,
        "digits": 1,
        "things": "routes",
        "world": WORLD,
        "numbers": [title + (" %" if name in _PERCENT else "") for name, title in ROUTE_NUMBERS.items()],
        "table": table,
        "charts": [(title, note, picture) for title, note, make in charts if (picture := make(run)) is not None],
        "kinds": by_scenario(run.heldout, list(run.planners)) if run.heldout is not None else [],
        "films": films,
        "filmed": films[0]["route"] if films else "",
    }


def by_scenario(held: Heldout, drivers: list[str]) -> list[dict[str, Any]]:
    """Mean driving score and share of successes by scenario type and driver, the types where RL gained most first."""
    themes = np.array(held.scenarios)
    if len(themes) != len(held.tokens):
        return []
    rows = []
    for kind in np.unique(themes).tolist():
        chosen = themes == kind
        means = [tuple(_mean(held.scores[name].get(key), chosen) for key in ("score", "success")) for name in drivers]
        before, after = means[drivers.index("imitation")][0], means[drivers.index("rl")][0]
        gain = None if before is None or after is None else after - before
        rows.append({"kind": kind or "no scenario", "count": int(chosen.sum()), "means": means, "gain": gain})
    return sorted(rows, key=lambda row: (row["gain"] is None, -(row["gain"] or 0.0), row["kind"]))


def _mean(values: npt.NDArray[np.float64] | None, chosen: npt.NDArray[np.bool_]) -> float | None:
    """Mean over the chosen routes whose world did not fail."""
    known = np.zeros(0) if values is None else values[chosen & np.isfinite(values)]
    return float(known.mean()) if len(known) else None


def _shown(value: float | None, key: str) -> tuple[float | None, int]:
    factor, digits = _SHOWN.get(key, (1.0, 2))
    return None if value is None else factor * value, digits


def most_improved(held: Heldout | None) -> str | None:
    """The route on which RL gained most; of several, the first. None where that cannot be told."""
    if held is None:
        return None
    before, after = (held.scores.get(name, {}).get("score") for name in ("imitation", "rl"))
    if before is None or after is None or not np.isfinite(gain := after - before).any():
        return None
    return held.tokens[int(np.nanargmax(gain))]


def write_films(run: Run) -> list[dict[str, Any]]:
    """Film one held-out route with the model before and after, into the run's folder: ``before.gif``, ``after.gif`` and sheets
    of their moments.

    What cannot be filmed is named among the report's missing parts.
    """
    from vla_models.config import VLAConfig
    from vla_models.interface import VLAForDriving
    from vla_models.pretrained import is_checkpoint
    from vla_models.report.drives import drive_route
    from vla_models.report.film import write_drive
    from vla_models.training.routes import make_route_env

    films = []
    gained = most_improved(run.heldout)
    why = "" if gained is None else ": the held-out route on which reinforcement learning gained most"
    for title, folder in (("before", "imitation"), ("after", "model")):
        checkpoint = run.path / "checkpoints" / folder
        if not is_checkpoint(checkpoint):
            run.missing.append(f"There is no film {title} reinforcement learning: checkpoints/{folder} holds no model.")
            continue
        try:
            model = VLAForDriving.from_pretrained(checkpoint).eval()
            env = make_route_env(VLAConfig.from_yaml(run.path / "config.yaml"), "heldout", 1, model.spec)
            route = gained or env.tokens[0]
            log.info("filming route %s %s reinforcement learning", route, title)
            drive = drive_route(model, env, route, driver=title)
            names = [write_drive(run.path / f"{title}{ending}", env, drive).name for ending in (".gif", ".png")]
            env.close()
        except VLAModelsError as error:
            run.missing.append(f"There is no film {title} reinforcement learning: {error}")
            continue
        films.append(
            {
                "title": title,
                "gif": names[0],
                "sheet": names[1],
                "status": drive.record["status"],
                "score": float(drive.record["scores"]["score_composed"]),
                "route": f"{drive.route.id} in {drive.route.town}{why}.",
            }
        )
    return films
