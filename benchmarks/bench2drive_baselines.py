"""Where the baselines stand on Bench2Drive's scenario types: the tables of docs/bench2drive.md.

    python benchmarks/bench2drive_baselines.py [--routes routes.xml] [--count 220]

Every route is driven once by each driver of ``ROUTE_BASELINES``, as ``vla-models eval rule_based`` drives them. Without a file
the routes are generated in the default held-out towns, the 44 types in turn. Prints Markdown, and writes
``benchmarks/results/bench2drive_baselines.json``. Scores are those of the embedded world, no leaderboard numbers.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable
from pathlib import Path

from vla_models.config import VLAConfig
from vla_models.scoring.bench2drive import WORLD
from vla_models.training.evaluate_routes import ROUTE_BASELINES, RouteEvaluation, evaluate_routes
from vla_models.training.progress import Bar
from vla_models.training.routes import make_route_env

RESULTS = Path(__file__).parent / "results"
COLUMNS = {
    "driving_score": ("driving score", 1.0, 1),
    "success": ("success %", 100.0, 1),
    "route_completion": ("route %", 1.0, 1),
    "infraction_penalty": ("penalty", 1.0, 2),
    "efficiency": ("speed %", 1.0, 1),
    "smoothness": ("smooth %", 100.0, 1),
}


def drive(routes: str | None, count: int) -> dict[str, RouteEvaluation]:
    """Every baseline on the routes."""
    environment = {"type": "bench2drive", "heldout_scenes": count} | ({} if routes is None else {"routes": routes})
    env = make_route_env(VLAConfig.from_dict({"environment": environment}), "heldout", 16, cameras=())
    found = {}
    for name in ROUTE_BASELINES:
        with Bar(name, len(env.routes)) as bar:
            found[name] = evaluate_routes(name, env, progress=bar)
    return found


def shown(value: float | None, factor: float = 1.0, digits: int = 1) -> str:
    return "–" if value is None or math.isnan(value) else f"{factor * value:.{digits}f}"


def table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(headings), *([*row] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--routes", help="a leaderboard XML")
    parser.add_argument("--count", type=int, default=220, help="generated routes")
    arguments = parser.parse_args()
    found = drive(arguments.routes, arguments.count)
    means = {name: result.means() for name, result in found.items()}
    abilities = {name: result.abilities() for name, result in found.items()}
    scenarios = {name: result.scenarios() for name, result in found.items()}
    print(
        table(
            ["", *(title for title, _, _ in COLUMNS.values())],
            [
                [name, *(shown(row.get(key), factor, digits) for key, (_, factor, digits) in COLUMNS.items())]
                for name, row in means.items()
            ],
        )
    )
    titles = [title.replace("_", " ").lower() for title in abilities["rule_based"]]
    print(table(["success %", *titles], [[name, *(shown(v, 100.0) for v in row.values())] for name, row in abilities.items()]))
    print(
        table(
            ["driving score (success %)", "routes", *found],
            [
                [
                    kind,
                    shown(scenarios["rule_based"][kind]["routes"], digits=0),
                    *(
                        f"{part[kind]['driving_score']:.1f} ({100.0 * part[kind]['success']:.0f})"
                        for part in scenarios.values()
                    ),
                ]
                for kind in scenarios["rule_based"]
            ],
        )
    )
    written = {
        "world": WORLD,
        "routes": arguments.routes or f"{arguments.count} generated",
        "means": means,
        "abilities": {name: {k: v for k, v in row.items() if math.isfinite(v)} for name, row in abilities.items()},
        "scenarios": scenarios,
        "failed": {name: list(result.failed) for name, result in found.items()},
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "bench2drive_baselines.json").write_text(json.dumps(written, indent=2) + "\n")


if __name__ == "__main__":
    main()
