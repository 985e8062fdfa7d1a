"""The view from above: plans and agents are where they belong, bad plans are refused, nothing touches pyplot."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

from vla_models.errors import ConfigError, MissingDependency, PlanError, SceneError
from vla_models.render.bird import PLAN_COLOURS, draw_scene
from vla_models.scenes.scene import Scene

Street = Callable[..., Scene]


def plan(speed: float = 5.0) -> np.ndarray:
    x = speed * 0.5 * np.arange(1, 9)
    return np.stack([x, 0.02 * x**2, np.zeros(8)], axis=1)


def line(ax, label: str) -> np.ndarray:
    return next(np.asarray(each.get_xydata()) for each in ax.get_lines() if each.get_label() == label)


def test_plans_start_at_the_ego_and_point_up(street: Street) -> None:
    ax = draw_scene(street(pose=(3.0, 1.0, 0.7)), {"rl": plan(), "mine": plan(3.0)})
    xy = line(ax, "rl")
    np.testing.assert_allclose(xy[0], 0.0)
    np.testing.assert_allclose(xy[1:], np.stack([-plan()[:, 1], plan()[:, 0]], axis=1))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["rl", "mine"]
    colours = {each.get_label(): each.get_color() for each in ax.get_lines()}
    assert colours["rl"] == PLAN_COLOURS["rl"] != colours["mine"]


def test_the_picture_has_the_asked_extent(street: Street) -> None:
    ax = draw_scene(street(), extent=80.0, behind=0.25, title="a street")
    assert ax.get_ylim() == (-20.0, 60.0)
    assert ax.get_title(loc="left") == "a street"
    assert ax.get_legend() is None


def test_what_is_there_is_drawn(street: Street) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    def pixels(scene: Scene) -> np.ndarray:
        canvas = FigureCanvasAgg(draw_scene(scene, extent=100.0).figure)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba()).copy()

    full = pixels(street())
    assert (full != pixels(street(agents=()))).any()
    assert (full != pixels(street(light=0))).any()
    assert (full != pixels(street().with_(light_heads=np.zeros((0, 4))))).any()
    np.testing.assert_array_equal(full, pixels(street()))


def test_it_draws_into_given_axes_and_empty_scenes(street: Street) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    axes = Figure().subplots(1, 2)
    scene = street(agents=(), rings=()).with_(light_heads=np.zeros((0, 4)), centerline=np.zeros((0, 3)))
    assert draw_scene(scene, {"xy only": plan()[:, :2]}, axes[1], legend=False) is axes[1]
    FigureCanvasAgg(axes[1].figure).draw()


@pytest.mark.parametrize("bad", [np.zeros((8, 4)), np.zeros(3), np.zeros((0, 3)), np.full((8, 3), np.nan)])
def test_bad_plans_are_refused(street: Street, bad: np.ndarray) -> None:
    with pytest.raises(PlanError, match="mine"):
        draw_scene(street(), {"mine": bad})


def test_other_bad_input(street: Street, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="extent"):
        draw_scene(street(), extent=0.0)
    scene = street()
    with pytest.raises(SceneError, match="street"):
        draw_scene(scene.with_(ego=scene.ego * np.nan))
    monkeypatch.setitem(sys.modules, "matplotlib.collections", None)
    with pytest.raises(MissingDependency, match="pip install matplotlib"):
        draw_scene(scene)


def test_importing_it_loads_no_matplotlib_and_drawing_no_pyplot() -> None:
    code = (
        "import sys, vla_models.render.bird; assert 'matplotlib' not in sys.modules;"
        "from matplotlib.figure import Figure; assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
