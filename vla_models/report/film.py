"""A drive as a film (MP4, GIF) or a sheet of pictures (PNG): what the cameras see, the town from above, how the score stands.

960 × 540 pixels, an MP4 in real time. The cameras are the model's own in mounting and field of view, in a size for people.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Final

import PIL.Image
import PIL.ImageDraw

from vla_models.envs.bench2drive import Bench2DriveEnv
from vla_models.envs.route_views import RouteCameras, light_states_now
from vla_models.errors import ConfigError, MissingDependency
from vla_models.files import atomic_path
from vla_models.render.overhead import INK, MARK, STYLES, Moment, StreetMap, font
from vla_models.render.rigs import bench2drive_cameras
from vla_models.report.drives import Drive, Shot, play
from vla_models.scenes.surroundings import surroundings
from vla_models.scenes.towns import load_town
from vla_models.scoring.bench2drive.events import FAILURES, KIND, PENALTIES, PLACE_X, PLACE_Y, TICK, VALUE, Event
from vla_models.scoring.bench2drive.rewards import standing
from vla_models.simulation.tables import TICK as TICK_SECONDS
from vla_models.simulation.tables import Kind
from vla_models.simulation.vehicle import REAR_TO_CENTER

FORMATS: Final = (".mp4", ".gif", ".png")
SIZE: Final = (960, 540)
"""Pixels of a frame."""
SHEET: Final = 8
"""Frames of a PNG."""

WORDS: Final = {
    Event.COLLISION_STATIC: "hits an obstacle",
    Event.COLLISION_PEDESTRIAN: "hits a pedestrian",
    Event.COLLISION_VEHICLE: "hits a vehicle",
    Event.TRAFFIC_LIGHT: "runs a red light",
    Event.STOP: "runs a stop sign",
    Event.YIELD_TO_EMERGENCY: "does not give way to an emergency vehicle",
    Event.SCENARIO_TIMEOUT: "does not get past the scenario in time",
    Event.OUTSIDE_ROUTE_LANES: "left the route's lanes",
    Event.ROUTE_DEVIATION: "deviated from the route",
    Event.VEHICLE_BLOCKED: "stood still too long",
    Event.ROUTE_TIMEOUT: "ran out of time",
    Event.ROUTE_COMPLETED: "route completed",
}
"""Events that a film tells of (too slow driving costs nothing)."""

_SIDE: Final = SIZE[0] - SIZE[1]
"""Pixels; width of the column beside the picture from above, which is square."""
_PAPER: Final = "#ffffff"
_FAINT: Final = "#7b8794"
_GOOD: Final = "#12925a"
_BAR: Final = "#0b62d6"
_TRACK: Final = "#e4e8ec"
_APART: Final = 10
"""Ticks between two events that each get a picture of a sheet, at least."""
_MP4_EVERY: Final = 2
_GIF_EVERY: Final = 5
"""Ticks between two frames: 10 and 4 frames a second …"""
_GIF_FRAMES: Final = 250
"""… but a GIF has no more frames than this and one: of a long drive it is faster than the time."""
_GIF_SHARE: Final = Fraction(2, 3)
"""Of the pixels a side, in a GIF."""


def write_drive(path: str | Path, env: Bench2DriveEnv, drive: Drive) -> Path:
    """Write the drive, which ``env`` (of one row) plays again, as the film or sheet that the name ``path`` asks for.

    Raises:
        ConfigError: the name ends in none of ``FORMATS``.
        MissingDependency: an MP4 needs PyAV.
    """
    path = Path(path)
    check_format(path)
    if path.suffix == ".png":
        return _write_sheet(path, env, drive)
    gif = path.suffix == ".gif"
    every = max(_GIF_EVERY, -(-drive.ticks // _GIF_FRAMES)) if gif else _MP4_EVERY
    frames = _Painter(env, drive).frames(play(env, drive, [*range(0, drive.ticks, every), drive.ticks]))
    with atomic_path(path) as temporary:
        (_write_gif if gif else _write_mp4)(temporary, frames)
    return path


def check_format(path: Path) -> None:
    """Raise what ``write_drive`` would for this name, before anything is driven."""
    if path.suffix not in FORMATS:
        raise ConfigError(f"{str(path)!r} names no film: it must end in {', '.join(FORMATS)}")
    if path.suffix == ".mp4":
        try:
            import av as _av  # noqa: F401
        except ImportError as e:
            raise MissingDependency(f"MP4 films need PyAV ({e}): pip install av, or write a .gif") from e


class _Painter:
    """Paints the frames of one drive."""

    def __init__(self, env: Bench2DriveEnv, drive: Drive) -> None:
        graph, _ = surroundings(load_town(drive.route.town), drive.route.points)
        self._drive, self._map = drive, StreetMap(graph)
        names = tuple(env.single_observation_space["images"].spaces) or ("front",)  # type: ignore[index]
        self._columns = 1 if len(names) == 1 else 2
        width = _SIDE // self._columns
        specs = bench2drive_cameras(width, round(width * 9 / 16), names, rear_axle=REAR_TO_CENTER)
        self._cameras = RouteCameras(specs, keep=1)

    def frames(self, shots: Iterable[Shot]) -> Iterator[PIL.Image.Image]:
        """A frame for each shot; frees the cameras at the end."""
        try:
            for shot in shots:
                yield self.frame(shot)
        finally:
            self._cameras.close()

    def frame(self, shot: Shot) -> PIL.Image.Image:
        """One frame."""
        picture = PIL.Image.new("RGB", SIZE, _PAPER)
        moment = self._moment(shot)
        above = self._map.draw(moment, (SIZE[1], SIZE[1]))
        _legend(above, moment.kinds)
        picture.paste(above, (0, 0))
        below = 0
        draw = PIL.ImageDraw.Draw(picture)
        for k, (name, image) in enumerate(self._cameras.draw(shot.world, [self._drive.route]).items()):
            row, column = divmod(k, self._columns)
            seen = PIL.Image.fromarray(image[0])
            corner = SIZE[1] + column * seen.width, row * seen.height
            picture.paste(seen, corner)
            if self._columns > 1:
                _text(draw, (corner[0] + 5, corner[1] + 3), name.replace("_", " "), 12, _PAPER)
            below = (row + 1) * seen.height
        self._tell(draw, shot, below)
        return picture

    def _moment(self, shot: Shot) -> Moment:
        world = shot.world
        kinds, boxes = world.present(0)
        graph = self._map.graph
        return Moment(
            ego=world.ego[0, :3],
            ego_box=boxes[0, :5],
            boxes=boxes[1:, :5],
            kinds=tuple(Kind(int(kind)).name.lower() for kind in kinds[1:]),
            lights=light_states_now(world, 0, graph.light_pose, self._drive.route.town),
            route=self._drive.route.points[:, :2],
            plan=shot.plan,
            marks=tuple(
                (float(row[PLACE_X]), float(row[PLACE_Y]), WORDS[Event(int(row[KIND]))])
                for row in world.record(0).events
                if int(row[KIND]) in WORDS and row[KIND] != Event.ROUTE_COMPLETED
            ),
        )

    def _tell(self, draw: PIL.ImageDraw.ImageDraw, shot: Shot, top: int) -> None:
        """The column's text, below the cameras."""
        drive, left, right = self._drive, SIZE[1] + 16, SIZE[0] - 16
        y = top + 12
        _text(draw, (left, y), drive.route.theme or "route without a scenario", 19, INK)
        _text(draw, (left, y + 25), _short(f"{drive.driver} on {drive.route.id}, {drive.route.town}", 58), 13, _FAINT)
        y += 50
        speed = float(shot.world.ego[0, 3])
        _text(draw, (left, y), f"{shot.tick * TICK_SECONDS:5.1f} s", 16, INK)
        _text(draw, (left + 90, y), f"{speed:.1f} m/s  ({3.6 * speed:.0f} km/h)", 16, INK)
        if shot.plan is None:
            _text(draw, (right, y), "no plan: brakes", 16, MARK, anchor="ra")
        y += 28
        record = shot.world.record(0)
        now = standing(record).score
        draw.rounded_rectangle([left, y, right, y + 8], 4, _TRACK)
        if now.completion > 0.0:
            draw.rounded_rectangle([left, y, left + max(8.0, (right - left) * now.completion / 100.0), y + 8], 4, _BAR)
        y += 15
        score = f"driving score {now.driving_score:.1f}  =  {now.completion:.0f} % of the route x {now.penalty:.2f}"
        _text(draw, (left, y), score, 16, INK)
        y += 30
        told = [row for row in record.events if int(row[KIND]) in WORDS]
        room = max(1, (SIZE[1] - y - 4) // 21)
        for row in told[-room:]:
            kind = Event(int(row[KIND]))
            colour = _GOOD if kind == Event.ROUTE_COMPLETED else MARK
            _text(draw, (left, y), f"{row[TICK] * TICK_SECONDS:5.1f} s", 14, colour)
            _text(draw, (left + 60, y), WORDS[kind] + _cost(kind, float(row[VALUE])), 14, colour)
            y += 21


def _cost(kind: Event, value: float) -> str:
    """What an event does to the score."""
    if kind == Event.OUTSIDE_ROUTE_LANES:
        return f"  x {1.0 - value / 100.0:.2f}"
    if kind in PENALTIES:
        return f"  x {PENALTIES[kind]:g}"
    return ": the end" if kind in FAILURES else ""


def _legend(picture: PIL.Image.Image, kinds: Sequence[str]) -> None:
    """Name the classes of agents that are there, at the lower left."""
    draw = PIL.ImageDraw.Draw(picture)
    shown = [name for name in STYLES if name in kinds]
    for k, name in enumerate(shown):
        y = picture.height - 14 - 17 * (len(shown) - 1 - k)
        fill, edge = STYLES[name]
        draw.rectangle([9, y - 5, 19, y + 5], fill, edge)
        draw.text((25, y), name, INK, font(13), anchor="lm", stroke_width=2, stroke_fill=_PAPER)


def _text(
    draw: PIL.ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int, colour: str, anchor: str = "la"
) -> None:
    draw.text(at, text, colour, font(size), anchor=anchor)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def sheet_ticks(drive: Drive) -> list[int]:
    """Ticks of a sheet's pictures: first, last, those at which something happened, and others evenly between."""
    ticks = {0, drive.ticks}
    for row in drive.events:
        after = int(row[TICK]) + 1
        if int(row[KIND]) in WORDS and len(ticks) < SHEET and min(abs(after - tick) for tick in ticks) >= _APART:
            ticks.add(after)
    while len(ticks) < min(SHEET, drive.ticks + 1):  # the middle of the longest part without a picture
        known = sorted(ticks)
        a, b = max(pairwise(known), key=lambda part: part[1] - part[0])
        ticks.add((a + b) // 2)
    return sorted(ticks)


def _write_sheet(path: Path, env: Bench2DriveEnv, drive: Drive) -> Path:
    width, height = (side * 2 // 3 for side in SIZE)
    frames = list(_Painter(env, drive).frames(play(env, drive, sheet_ticks(drive))))
    sheet = PIL.Image.new("RGB", (2 * width, -(-len(frames) // 2) * height), _PAPER)
    for k, frame in enumerate(frames):
        small = frame.resize((width, height), PIL.Image.Resampling.LANCZOS)
        sheet.paste(small, (k % 2 * width, k // 2 * height))
    with atomic_path(path) as temporary:
        sheet.quantize(256).save(temporary, format="PNG", optimize=True)
    return path


def _write_mp4(path: Path, frames: Iterable[PIL.Image.Image]) -> None:
    import av

    rate = round(1.0 / (_MP4_EVERY * TICK_SECONDS))

    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "23", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())


def _write_gif(path: Path, frames: Iterable[PIL.Image.Image]) -> None:
    size = (int(SIZE[0] * _GIF_SHARE), int(SIZE[1] * _GIF_SHARE))
    small = (frame.resize(size, PIL.Image.Resampling.LANCZOS).quantize(64, dither=PIL.Image.Dither.NONE) for frame in frames)
    first = next(small)
    first.save(path, format="GIF", save_all=True, append_images=small, duration=round(1000 * _GIF_EVERY * TICK_SECONDS), loop=0)
