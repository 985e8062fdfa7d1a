"""``vla-models view``: film one Bench2Drive route, driven by a model or a baseline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vla_models.cli.app import app, console
from vla_models.cli.policies import find_policy
from vla_models.errors import ConfigError


@app.command(
    epilog="Examples:\n\n"
    "  vla-models view runs/local-bench2drive-ppo-20260101-120000 --route 3 --output drive.mp4\n\n"
    "  vla-models view rule_based environment.routes=routes.xml --route 25863 --output drive.gif\n\n"
    "  vla-models view blind_follower environment.scenario_types=[ParkingCutIn] --output drive.png",
)
def view(
    what: Annotated[
        str,
        typer.Argument(
            metavar="RUN_OR_CHECKPOINT",
            help="A run's folder, one that save_pretrained wrote, or a baseline: rule_based, blind_follower, constant_velocity",
        ),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Replace configuration values.", show_default=False)
    ] = None,
    output: Annotated[Path, typer.Option(help="drive.mp4, drive.gif, or drive.png (a sheet of moments).")] = Path("drive.mp4"),
    route: Annotated[str, typer.Option(metavar="ID|INDEX", help="Which of the held-out routes.")] = "0",
    config: Annotated[
        Path | None, typer.Option(help="YAML file with the environment; left out, the run's own, else the defaults.")
    ] = None,
) -> None:
    """Film a Bench2Drive route: cameras, the town from above with route and plan, and how the score stands.

    The film shows the car's cameras at a size for people; the model sees them at camera.width × camera.height.
    """
    from vla_models.report.drives import drive_route
    from vla_models.report.film import check_format, write_drive
    from vla_models.training.routes import make_route_env

    check_format(output)
    policy = find_policy(what, config, overrides or [], kind="bench2drive")
    if policy.settings.environment.type != "bench2drive":
        raise ConfigError("vla-models view films Bench2Drive's routes: environment.type=bench2drive")
    if policy.is_baseline:
        driver, env = policy.name, make_route_env(policy.settings, "heldout", 1, cameras=())
        drive = drive_route(driver, env, _which(route, env.tokens))
    else:
        model = policy.load()
        env = make_route_env(policy.settings, "heldout", 1, model.spec)
        drive = drive_route(model, env, _which(route, env.tokens), driver=Path(policy.name).name)
    write_drive(output, env, drive)
    env.close()
    scores = drive.record["scores"]
    console().print(
        f"{output}: {drive.driver} on {drive.route.id}: {drive.record['status']}, driving score "
        f"{scores['score_composed']:.1f} = {scores['score_route']:.1f} % × {scores['score_penalty']:.2f}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )


def _which(route: str, ids: list[str]) -> str | int:
    """An id where there is such a route, else the index that the digits are."""
    return int(route) if route.isdigit() and route not in ids else route
