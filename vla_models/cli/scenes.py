"""``vla-models scenes``: make a scene store of foreign scenes, and look into one."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vla_models.cli.app import app, console
from vla_models.errors import SceneError

if TYPE_CHECKING:
    from vla_models.scenes.imports import Options
    from vla_models.scenes.scene import Scene
    from vla_models.scenes.store import SceneStore

scenes = typer.Typer(help="Make a scene store of NavSim's files, and look into one.", no_args_is_help=True)
app.add_typer(scenes, name="scenes")

_LISTED = 20
"""Bad files that are printed."""


@scenes.command(
    "import",
    epilog="Examples:\n\n"
    "  vla-models scenes import $NAVSIM_EXP_ROOT/metric_cache --out navtest.store\n\n"
    "  vla-models scenes import metric_cache --out navtrain.store --logs navsim_logs --sensors sensor_blobs --size 512x288\n\n"
    "  vla-models scenes import 'scenes/*.json.gz' --out mine.store\n\n"
    "  vla-models scenes import navsim_logs/test --maps nuplan/maps --scene-filter navtest.yaml --out navtest.store",
)
def import_(
    sources: Annotated[list[str], typer.Argument(help="Metric caches, pdm-scene/1 files, folders of them, or patterns.")],
    out: Annotated[Path, typer.Option(help="The store: a folder. An import that was interrupted goes on there.")],
    logs: Annotated[Path | None, typer.Option(help="NavSim's logs: they add the driving command and the ego's past.")] = None,
    sensors: Annotated[Path | None, typer.Option(help="NavSim's sensor blobs: they add images.")] = None,
    cameras: Annotated[str, typer.Option(help="Which, by NavSim's names: cam_f0,cam_l0,cam_r0 …")] = "cam_f0",
    size: Annotated[str | None, typer.Option(metavar="WxH", help="Size of the images in the store. [as they are]")] = None,
    maps: Annotated[
        Path | None,
        typer.Option(help="nuPlan's maps: SOURCES may be logs, and traffic may react to the ego; needs an installed navsim."),
    ] = None,
    scene_filter: Annotated[
        Path | None, typer.Option(help="navsim's YAML that says which frames of the logs are scenes.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes.", show_default="one a core")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out files that cannot be read.")] = False,
) -> None:
    """Convert scenes once into a memory-mapped store. Run it again as it was if it was interrupted.

    Exit code 1 if there were bad files and they were not to be skipped: there is no store then.
    """
    from rich.markup import escape

    from vla_models.scenes.imports import import_scenes
    from vla_models.training.progress import Bar

    options = _options(logs, sensors, cameras, size, maps, scene_filter)
    workers = workers or len(os.sched_getaffinity(0))
    with Bar("scenes", 0) as bar:
        done = import_scenes(sources, out, options, workers=workers, skip_bad=skip_bad, progress=bar)
    terminal = console()
    for one in done.bad[:_LISTED]:
        terminal.print(f"[red]✗[/] {escape(one.message)}", soft_wrap=True, highlight=False)
    if len(done.bad) > _LISTED:
        terminal.print(f"  … and {len(done.bad) - _LISTED} more")
    if done.reused:
        terminal.print(f"{done.reused} parts were finished by an earlier run")
    if done.store is None:
        terminal.print(
            f"[bold red]{len(done.bad)} bad files[/]: no store was made. Mend them and run this again, or leave them out: "
            "--skip-bad",
            soft_wrap=True,
        )
        raise typer.Exit(1)
    left_out = f", {len(done.bad)} files left out" if done.bad else ""
    terminal.print(f"{len(done.store)} scenes in {escape(str(out))}{left_out}", soft_wrap=True, highlight=False)


@scenes.command(
    epilog="Examples:\n\n  vla-models scenes show navtest.store\n\n"
    "  vla-models scenes show navtest.store 0123456789abcdef --picture scene.png"
)
def show(
    store: Annotated[Path, typer.Argument(help="A scene store: a folder or a .arrow file.")],
    token: Annotated[str | None, typer.Argument(help="One scene of it.", show_default=False)] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw the scene from above into this PNG.")] = None,
) -> None:
    """What is in a store, and where it comes from; or what is in one scene."""
    from vla_models.scenes.store import SceneStore

    opened = SceneStore.open(store)
    if token is None:
        if picture is not None:
            raise SceneError("--picture draws one scene; name its token")
        _show_store(opened)
        return
    scene = opened.by_token(token)
    _show_scene(scene)
    if picture is not None:
        from vla_models.files import atomic_path
        from vla_models.report.pictures import bird_picture

        plans = {} if scene.human is None else {"human": scene.human}
        drawn = bird_picture(scene, plans)
        with atomic_path(picture) as temporary:
            temporary.write_bytes(drawn)


def _options(
    logs: Path | None, sensors: Path | None, cameras: str, size: str | None, maps: Path | None, scene_filter: Path | None
) -> Options:
    from vla_models.scenes.imports import Options
    from vla_models.scenes.navsim import Devkit
    from vla_models.scenes.navsim_logs import Logs

    if sensors is not None and logs is None and maps is None:
        raise SceneError("--sensors needs the logs, which say where the images are: add --logs")
    pixels = None if size is None else tuple(int(n) if n.isdigit() else 0 for n in size.split("x"))
    if pixels is not None and (len(pixels) != 2 or min(pixels) < 1):
        raise SceneError(f"--size {size!r} is no width x height, such as 512x288")
    complete = None
    if logs is not None or maps is not None:
        names = tuple(name.strip() for name in cameras.split(","))
        complete = Logs(logs or Path(), sensors, names, None if pixels is None else (pixels[0], pixels[1]))
    return Options(
        logs=complete if logs is not None else None,
        devkit=None if maps is None else Devkit(maps, scene_filter, complete),
    )


def _show_store(store: SceneStore) -> None:
    from rich.markup import escape
    from rich.table import Table

    terminal = console()
    title = f"[bold]{len(store)} scenes[/] in {escape(str(store.path))}, content {store.hash}"
    terminal.print(title, soft_wrap=True, highlight=False)
    for title, values in (("kind", store.kinds), ("town", store.towns)):
        table = Table(title, "scenes", box=None, header_style="bold")
        for name, count in Counter(values).most_common():
            table.add_row(escape(name) or "–", str(count))
        terminal.print(table)
    table = Table("provenance", "", box=None, header_style="bold")
    for name, value in store.provenance.items():
        table.add_row(name, escape(value))
    terminal.print(table)


def _show_scene(scene: Scene) -> None:
    from rich.markup import escape
    from rich.table import Table

    from vla_models.scenes.scene import AGENT_KINDS, COMMANDS, LAYERS

    agents = Counter(AGENT_KINDS[kind] for kind in scene.tracks.kind)
    layers = Counter(LAYERS[layer] for layer in scene.polygons.layer)
    x, y = scene.origin + scene.ego[:2]
    rows = {
        "token": scene.token,
        "town, kind": f"{scene.town or '–'}, {scene.kind or '–'}",
        "time": f"{scene.time_us / 1e6:.6f} s",
        "ego": f"{x:.2f}, {y:.2f} m, {scene.ego[3]:.1f} m/s, command {COMMANDS[scene.command]}",
        "agents": ", ".join(f"{n} {name}" for name, n in agents.items()) or "none",
        "map": ", ".join(f"{n} {name}" for name, n in layers.items()),
        "red lights": str(len(scene.red_lights)),
        "images": ", ".join(f"{name} {image.shape[1]}x{image.shape[0]}" for name, image in scene.images.items()) or "none",
        "has": ", ".join(
            name for name in ("reference", "human", "ego_history") if getattr(scene, name) is not None
        ) or "no reference, human or past",
    }  # fmt: skip
    table = Table(show_header=False, box=None)
    for name, value in rows.items():
        table.add_row(name, escape(value))
    console().print(table)
