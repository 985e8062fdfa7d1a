"""The routes of a configuration: where they come from, and that training and evaluation share none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_models.config import VLAConfig
from vla_models.envs.bench2drive import Bench2DriveEnv
from vla_models.errors import ConfigError, SceneError
from vla_models.frameworks.environments import make_vector_env
from vla_models.inputs import VLASpec
from vla_models.scoring.bench2drive.rewards import RouteReward
from vla_models.simulation.baselines import rule_based

SMALL: dict[str, Any] = {
    "type": "bench2drive",
    "train_towns": ["Town01"],
    "heldout_towns": ["Town02"],
    "train_scenes": 3,
    "heldout_scenes": 2,
    "scenario_types": ["DynamicObjectCrossing", "VanillaSignalizedTurnEncounterRedLight"],
    "max_ticks": 200,
    "camera": {"width": 32, "height": 16},
}
XML = """<routes><route id="{id}" town="Town01">
<waypoints><position x="{x}" y="{y}" z="0"/><position x="{x2}" y="{y2}" z="0"/></waypoints><scenarios/></route></routes>"""


def config(*overrides: str) -> VLAConfig:
    return VLAConfig.from_dict({"environment": SMALL, "training": {"scenes_per_step": 2}}, overrides)


def made(part: Any, *overrides: str, spec: VLASpec | None = None, rows: int = 2) -> Bench2DriveEnv:
    env = make_vector_env(config(*overrides), part, rows, **({} if spec is None else {"spec": spec}))
    assert isinstance(env, Bench2DriveEnv)
    return env


def test_generated_routes_are_the_same_every_time_and_held_out_ones_are_others() -> None:
    train, again, heldout = made("train"), made("train"), made("heldout")
    assert train.tokens == again.tokens
    assert [r.theme for r in train.routes] == [SMALL["scenario_types"][i] for i in (0, 1, 0)]
    assert {r.town for r in train.routes} == {"Town01"}
    assert {r.town for r in heldout.routes} == {"Town02"}
    assert len(heldout.tokens) == 2
    assert not set(train.tokens) & set(heldout.tokens)
    assert made("train", "environment.scenes_seed=1").tokens != train.tokens


def test_every_setting_arrives() -> None:
    settings = [
        "environment.cameras=[front, back]", "environment.ticks=4", "reward.type=driving", "reward.weights={success: 2.0}",
    ]  # fmt: skip
    env = made("train", *settings, spec=VLASpec(horizon=5, dt=0.4, controller="tracker"))
    assert (env.plan_steps, env.plan_dt, env.ticks, env.max_ticks, env.controller) == (5, 0.4, 4, 200, "tracker")
    assert env.reward == RouteReward("driving", {"success": 2.0})
    observation, _ = env.reset(seed=0)
    assert {name: image.shape for name, image in observation["images"].items()} == {
        "front": (2, 16, 32, 3), "back": (2, 16, 32, 3),
    }  # fmt: skip
    standard = made("train")
    assert (standard.plan_steps, standard.plan_dt, standard.ticks, standard.controller) == (8, 0.5, 10, "pid")
    assert standard.reward == RouteReward()
    observation, _ = standard.reset(seed=0)
    _, reward, _, _, info = standard.step(rule_based(standard.world))
    assert np.isfinite(reward).all()
    assert info["valid"].all()


def test_files_replace_generated_routes(tmp_path: Path) -> None:
    route = made("train").routes[0]
    (x, y), (x2, y2) = route.points[0, :2], route.points[60, :2]
    for name in ("train", "held"):
        text = XML.format(id=f"{name}-7", x=x, y=-y, x2=x2, y2=-y2)  # CARLA's y points to the right
        (tmp_path / f"{name}.xml").write_text(text)
    files = [f"environment.train_routes={tmp_path}/train.xml", f"environment.routes={tmp_path}/held.xml"]
    assert made("train", *files).tokens == ["train-7"]
    assert made("heldout", *files).tokens == ["held-7"]
    assert made("train", files[1]).tokens == made("train").tokens


def test_bad_routes_of_a_file_are_left_out_only_where_it_is_asked(tmp_path: Path) -> None:
    route = made("train").routes[0]
    (x, y), (x2, y2) = route.points[0, :2], route.points[60, :2]
    good = XML.format(id="good", x=x, y=-y, x2=x2, y2=-y2)
    bad = XML.format(id="bad", x=9000.0, y=0.0, x2=9100.0, y2=0.0)
    file = tmp_path / "mixed.xml"
    file.write_text(good.replace("</routes>", bad.removeprefix("<routes>")))
    with pytest.raises(SceneError, match="bad"):
        made("heldout", f"environment.routes={file}")
    env = made("heldout", f"environment.routes={file}", "environment.skip_bad=true")
    assert env.tokens == ["good"]
    assert len(env.skipped) == 1


def test_the_carla_backend_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"environment\.backend: .*embedded world"):
        made("train", "environment.backend=carla")
