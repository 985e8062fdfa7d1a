"""The report's pictures as PNG bytes: curves over training, and scenes with the plans before and after."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from vla_models.render.bird import PLAN_COLOURS, draw_scene
from vla_models.report.run import ROUTE_NUMBERS, SIGNS, SUB_SCORES, Run
from vla_models.scenes.scene import Scene

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FloatArray = npt.NDArray[np.float64]

_INK: Final = "#1f2933"
_FAINT: Final = "#9aa5b1"
_GRID: Final = "#e4e8ec"
_SUB_COLOURS: Final = {
    "nc": "#d6336c", "dac": "#e8590c", "ddc": "#b08900", "tlc": "#c92a2a", "ttc": "#7048e8", "ep": "#2b8a3e", "lk": "#0b7285",
    "comfort": "#1c7ed6",
}  # fmt: skip
_HEALTH: Final = (
    ("kl", "KL to the reference"),
    ("approx_kl", "KL of an update"),
    ("entropy", "entropy"),
    ("clip_fraction", "clipped ratios"),
    ("grad_norm", "gradient norm"),
    ("groups_with_signal", "groups with signal"),
)
"""Numbers of RL rows that tell whether the optimisation is sound, with titles."""


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    # fixed margins in inches: a layout engine would draw everything twice
    figure.subplots_adjust(
        left=0.42 / width, right=1 - 0.3 / width, bottom=0.42 / height, top=1 - 0.3 / height, wspace=0.2, hspace=0.5
    )
    figure.patch.set_facecolor("white")
    return figure


def _png(figure: Figure, dpi: int = 150) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def _plain(ax: Axes, title: str, x: str = "") -> None:
    """One look for all charts: a light grid, no box, the title on the left."""
    ax.set_title(title, loc="left", fontsize=10, color=_INK, fontweight="bold")
    ax.grid(True, color=_GRID, lw=0.8)
    ax.set_axisbelow(True)
    ax.locator_params(nbins=5)
    ax.tick_params(colors=_INK, labelsize=8, length=0)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.spines["bottom"].set_color(_FAINT)
    if x:
        ax.set_xlabel(x, fontsize=8.5, color=_INK)


def smoothed(values: FloatArray) -> FloatArray:
    """Moving mean over about a twentieth of the run (at least 5 steps), shorter at the ends."""
    half = max(2, len(values) // 40)
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    lo, hi = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return np.asarray((total[hi] - total[lo]) / (hi - lo), dtype=np.float64)


def learning_curve(run: Run) -> bytes | None:
    """Reward of the sampled plans and held-out score over RL steps, the baselines as lines, imitation's loss beside."""
    steps, reward = run.series("rl", "reward_mean")
    eval_steps, score = run.series("eval", "score")
    imitation_steps, loss = run.series("imitation", "loss")
    if not len(steps) and not len(eval_steps) and not len(imitation_steps):
        return None
    figure = _figure(9.6, 3.5)
    grid = figure.add_gridspec(1, 2, width_ratios=(1.0, 2.2))
    left, right = figure.add_subplot(grid[0]), figure.add_subplot(grid[1])
    _plain(left, "1 · Imitation: loss", "imitation step")
    if len(loss):
        left.plot(imitation_steps, loss, color=PLAN_COLOURS["imitation"], lw=0.7, alpha=0.35)
        left.plot(imitation_steps, smoothed(loss), color=PLAN_COLOURS["imitation"], lw=1.8)
    else:
        _nothing(left)
    _plain(right, "2 · Reinforcement learning: reward and held-out score", "RL step")
    if len(steps):
        # a weighted reward, or one of a decision, has another scale than the score: give it an axis of its own
        own = bool(reward.min() < 0.0 or reward.max() > 1.0 or run.on_routes)
        axis = right.twinx() if own else right
        axis.plot(steps, reward, color="#74a9e8", lw=0.7, alpha=0.45)
        axis.plot(steps, smoothed(reward), color="#74a9e8", lw=1.8)
        if own:
            axis.tick_params(colors="#4a86d0", labelsize=8, length=0)
            axis.ticklabel_format(axis="y", style="sci", scilimits=(-2, 4))  # there is no room for more digits
            axis.set_frame_on(False)
        label = "reward of sampled plans (training scenes" + (", right-hand scale)" if own else ")")
        right.plot([], [], color="#74a9e8", lw=1.8, label=label)
    if len(eval_steps):
        right.plot(
            eval_steps,
            score,
            color=PLAN_COLOURS["rl"],
            lw=2.2,
            marker="o",
            ms=5,
            label="score of the most likely plan (held-out scenes)",
        )
    for name, (title, _) in run.planners.items():
        value = run.score(name)
        if value is not None and name not in ("imitation", "rl"):
            right.axhline(value, color=PLAN_COLOURS[name], lw=1.2, ls=(0, (5, 3)), label=title)
    if len(steps) or len(eval_steps):
        right.legend(fontsize=8, frameon=True, framealpha=0.9, edgecolor="none", loc="best")
    else:
        _nothing(right)
    return _png(figure)


def sub_score_curves(run: Run) -> bytes | None:
    """Sub-scores over RL steps: of the sampled plans (line) and on held-out scenes (dots)."""
    titles = {name: f"{title} ({name})" for name, (title, _) in SUB_SCORES.items()}
    return _small_curves(run, titles, _SUB_COLOURS, least_top=1.0)


def route_curves(run: Run) -> bytes | None:
    """Bench2Drive's numbers over RL steps: of the routes that were driven in training (line), and held out (dots)."""
    return _small_curves(run, ROUTE_NUMBERS, dict(zip(ROUTE_NUMBERS, _SUB_COLOURS.values(), strict=False)))


def term_curves(run: Run) -> bytes | None:
    """Reward terms of a decision over RL steps."""
    names = sorted({key for row in run.metrics.get("rl", []) for key in row if key.startswith("term/")})
    titles = {name: name.removeprefix("term/").replace("_", " ") for name in names}
    return _small_curves(run, titles, dict.fromkeys(names, PLAN_COLOURS["rl"]), bottom=None)


def _small_curves(
    run: Run, titles: Mapping[str, str], colours: Mapping[str, str], *, least_top: float = 0.0, bottom: float | None = 0.0
) -> bytes | None:
    """A chart for each number of RL rows (line) and evaluations (dots) that the run has; None where it has none.

    least_top: how far up the axes reach at least; bottom: how far down at most.
    """
    curves = []
    for name, title in titles.items():
        trained, held = run.series("rl", name), run.series("eval", name)
        if len(trained[0]) or len(held[0]):
            curves.append((colours[name], title, trained, held))
    if not curves:
        return None
    columns = min(3 if len(curves) <= 6 else 4, len(curves))
    rows = -(-len(curves) // columns)
    figure = _figure(9.6, 2.1 * rows)
    for i, (colour, title, (steps, values), (eval_steps, scores)) in enumerate(curves):
        ax = figure.add_subplot(rows, columns, i + 1)
        _plain(ax, title)
        if len(steps):
            ax.plot(steps, values, color=colour, lw=0.6, alpha=0.3)
            ax.plot(steps, smoothed(values), color=colour, lw=1.6, alpha=0.8, marker="." if len(steps) == 1 else None)
        ax.plot(eval_steps, scores, color=_INK, lw=1.0, ls=":", marker="o", ms=4.5, mfc=colour, mec="white")
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
        top, low = max([least_top, *values, *scores]), min([*values, *scores])
        scale = max(abs(top), abs(low), least_top) or 1.0
        low -= 0.1 * (top - low) + 0.02 * scale
        ax.set_ylim(low if bottom is None else max(bottom, low), top + 0.03 * (top - low) + 0.005 * scale)
    return _png(figure)


def sign_curves(run: Run) -> bytes | None:
    """The total beside ``SIGNS`` over RL steps: of the sampled plans (line) and on held-out scenes (dots)."""
    curves = [(title, run.series("rl", name), run.series("eval", name)) for name, title in {"score": "total", **SIGNS}.items()]
    if not any(len(trained[0]) or len(held[0]) for _, trained, held in curves[1:]):
        return None
    figure = _figure(9.6, 2.1)
    for i, (title, (steps, values), (eval_steps, scores)) in enumerate(curves):
        ax = figure.add_subplot(1, len(curves), i + 1)
        _plain(ax, title)
        if len(steps):
            ax.plot(steps, values, color=PLAN_COLOURS["rl"], lw=0.6, alpha=0.3)
            ax.plot(steps, smoothed(values), color=PLAN_COLOURS["rl"], lw=1.6, alpha=0.8)
        ax.plot(eval_steps, scores, color=_INK, lw=1.0, ls=":", marker="o", ms=4.5, mfc=PLAN_COLOURS["rl"], mec="white")
        ax.set_ylim(bottom=0.0)
    return _png(figure)


def health_curves(run: Run) -> bytes | None:
    """KL, entropy, clipping and gradient norm over RL steps."""
    found = [(title, *run.series("rl", key)) for key, title in _HEALTH]
    found = [(title, steps, values) for title, steps, values in found if len(steps)]
    if not found:
        return None
    columns = min(3, len(found))
    rows = -(-len(found) // columns)
    figure = _figure(9.6, 1.9 * rows)
    for i, (title, steps, values) in enumerate(found):
        ax = figure.add_subplot(rows, columns, i + 1)
        _plain(ax, title)
        ax.plot(steps, values, color="#52606d", lw=0.6, alpha=0.35)
        ax.plot(steps, smoothed(values), color="#52606d", lw=1.6)
        ax.ticklabel_format(axis="y", useOffset=False, style="plain")
        if np.ptp(values) < 1e-6 + 1e-3 * abs(values[0]):  # a constant: do not blow up its rounding
            ax.set_ylim(values[0] - 0.5 * max(abs(values[0]), 1e-3), values[0] + 0.5 * max(abs(values[0]), 1e-3))
    return _png(figure)


def _nothing(ax: Axes) -> None:
    ax.text(0.5, 0.5, "nothing recorded", transform=ax.transAxes, ha="center", va="center", color=_FAINT, fontsize=9)
    ax.set_xticks([])
    ax.set_yticks([])


def bird_picture(scene: Scene, plans: dict[str, npt.NDArray[Any]]) -> bytes:
    """A scene from above with plans; as much of it as they need."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.0, 4.0))  # no layout engine: the road fills the picture, and it is drawn once instead of twice
    reach = max([float(np.abs(plan[:, :2]).max()) for plan in plans.values()] or [0.0])
    draw_scene(scene, plans, figure.add_axes((0.0, 0.0, 1.0, 1.0)), extent=float(np.clip(1.35 * reach + 8.0, 36.0, 110.0)))
    return _png(figure, dpi=110)


def camera_picture(image: npt.NDArray[np.uint8]) -> bytes:
    """A camera image as it is, pixel for pixel."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
