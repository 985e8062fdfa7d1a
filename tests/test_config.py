"""The configuration: defaults, strictness, errors that say where and what, overrides, round trip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_models import VLAConfig, VLAForDriving, VLASpec
from vla_models.config import BACKENDS
from vla_models.errors import ConfigError
from vla_models.yaml_source import YamlSource, dump

USER_FILE = Path(__file__).parent / "data" / "my_driving_vla.yaml"


def problems(data: dict[str, Any], *overrides: str) -> str:
    with pytest.raises(ConfigError) as e:
        VLAConfig.from_dict(data, overrides)
    return str(e.value)


# -- what is right ---------------------------------------------------------------------------------------------------------


def test_an_empty_file_is_a_whole_configuration(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    config = VLAConfig.from_yaml(tmp_path / "empty.yaml")
    assert config == VLAConfig.from_dict({}) == VLAConfig()
    assert (config.framework, config.model.name, config.algorithm.name) == ("local", "tiny_vla", "grpo")
    assert (config.environment.type, config.environment.backend) == ("navsim", "procedural")
    assert not set(config.environment.train_towns) & set(config.environment.heldout_towns)


@pytest.mark.parametrize("kind", BACKENDS)
def test_the_backend_defaults_to_what_needs_nothing(kind: str) -> None:
    assert VLAConfig.from_dict({"environment": {"type": kind}}).environment.backend == BACKENDS[kind][0]


def test_defaults_follow_the_environment() -> None:
    navsim, routes = VLAConfig(), VLAConfig.from_dict({"environment": {"type": "bench2drive"}})
    assert (navsim.reward.type, routes.reward.type) == ("pdms", "driving_score")
    assert (navsim.environment.train_scenes, routes.environment.train_scenes) == (1000, 440)
    for config in (navsim, routes):
        assert not set(config.environment.train_towns) & set(config.environment.heldout_towns)
        assert VLAConfig.from_dict(config.to_dict()) == config
    chosen = VLAConfig.from_dict({"environment": {"type": "bench2drive", "train_scenes": 7, "heldout_towns": ["Town07"]},
                                  "training": {"scenes_per_step": 2}})  # fmt: skip
    assert (chosen.environment.train_scenes, chosen.environment.heldout_towns) == (7, ["Town07"])


def routes_with(**environment: Any) -> dict[str, Any]:
    return {"environment": {"type": "bench2drive", **environment}}


def test_round_trip_through_yaml(tmp_path: Path) -> None:
    config = VLAConfig.from_yaml(USER_FILE, ["seed=3", "model.options={depth: 2, rate: 1e-7, names: [a, b]}", "name=名-1"])
    config.to_yaml(tmp_path / "deep" / "config.yaml")
    assert VLAConfig.from_yaml(tmp_path / "deep" / "config.yaml") == config
    assert VLAConfig.from_dict(config.to_dict()) == config
    assert config.model.options["rate"] == 1e-7


@settings(max_examples=25)
@given(lr=st.floats(min_value=0.0, exclude_min=True, allow_infinity=False), steps=st.integers(0, 10**9), flag=st.booleans())
def test_every_number_survives_the_round_trip(lr: float, steps: int, flag: bool) -> None:
    config = VLAConfig.from_dict(
        {"training": {"steps": steps, "optimizer": {"lr": lr}}, "algorithm": {"normalize_advantage": flag}}
    )
    again = YamlSource.parse(dump(config.to_dict())).data
    assert VLAConfig.from_dict(again) == config


def test_overrides_take_precedence_and_are_read_as_yaml() -> None:
    config = VLAConfig.from_yaml(
        USER_FILE,
        [
            "training.optimizer.lr=3e-5",
            "environment.train_towns=[Town05]",
            "model.vision_encoder=null",
            "training.imitation.steps=0",
        ],
    )
    assert config.training.optimizer.lr == 3e-5
    assert config.environment.train_towns == ["Town05"]
    assert config.model.vision_encoder is None
    assert config.training.optimizer.type == "adamw"


def test_model_sections_become_constructor_arguments() -> None:
    arguments = VLAConfig.from_yaml(USER_FILE, ["model.options.depth=2"]).model.arguments()
    assert arguments == {
        "vision_encoder": {"type": "clip", "pretrained_path": "openai/clip-vit-base-patch32"},
        "language_model": {"base_model": "gpt2", "lora_enabled": True},
        "policy_head": {"type": "waypoint", "action_dim": 15},
        "depth": 2,
    }


def test_a_head_and_its_adapters_have_their_options() -> None:
    lora = {"base_model": "x", "lora_enabled": True, "lora": {"rank": 4, "targets": ["q_proj"]}}
    head = {"type": "flow", "steps": 8, "chosen_steps": 2, "eta": 0.4, "space": "waypoints"}
    arguments = VLAConfig.from_dict({"model": {"language_model": lora, "policy_head": head}}).model.arguments()
    assert arguments["policy_head"] == head
    assert arguments["language_model"]["lora"] == {"rank": 4, "alpha": 16.0, "dropout": 0.0, "targets": ["q_proj"]}
    assert VLAConfig.from_dict({}).environment.dataset == "navsim-procedural"
    assert VLAConfig.from_dict({"environment": {"train_store": "logs.arrow"}}).environment.dataset == "logs.arrow"


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("-1E+3", -1000.0), (".5e1", 5.0), ("1.e2", 100.0), ("12", 12), ("0x1f", 31), ("e5", "e5"), ("1e", "1e")],
)
def test_scientific_notation_is_a_number(text: str, value: Any) -> None:
    parsed = YamlSource.parse(f"x: {text}").data["x"]
    assert parsed == value
    assert type(parsed) is type(value)


# -- what is wrong ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"framwork": "local"}, "framwork: unknown key; known: … framework … Did you mean 'framework'?"),
        ({"training": {"optimizer": {"lr": "fast"}}}, "training.optimizer.lr: got 'fast' (str); expected a number > 0.0"),
        ({"training": {"optimizer": {"lr": 0}}}, "training.optimizer.lr: got 0 (int); expected a number > 0.0"),
        ({"training": {"optimizer": {"lr": float("nan")}}}, "training.optimizer.lr: got nan (float); expected a number > 0.0"),
        ({"training": {"imitation": 3}}, "training.imitation: got 3 (int); expected a section with the keys steps,"),
        ({"training": {"steps": True}}, "training.steps: got True (bool); expected an integer >= 0"),
        ({"training": {"steps": "10"}}, "training.steps: got '10' (str); expected an integer >= 0"),
        ({"algorithm": {"name": "grop"}}, "algorithm.name: got 'grop' (str); … known: grpo, ppo, srpo. Did you mean 'grpo'?"),
        ({"algorithm": {"name": 3}}, "algorithm.name: got 3 (int); expected one of grpo, ppo"),
        ({"algorithm": {"top_p": 1.5}}, "algorithm.top_p: got 1.5 (float); expected a number > 0.0 and <= 1.0"),
        ({"framework": "arael"}, "framework: got 'arael' (str); there is no such framework; known: … Did you mean 'areal'?"),
        ({"environment": {"type": "nuscenes"}}, "environment.type: got 'nuscenes' (str); there is no such environment"),
        ({"environment": {"backend": "carla"}}, "environment.backend: got 'carla' (str); … navsim has no such"),
        ({"environment": {"type": "bench2drive", "backend": "devkit"}}, "known: carla, embedded"),
        ({"environment": {"train_towns": ["Town01", 3]}}, "environment.train_towns.1: got 3 (int); expected a string"),
        ({"environment": {"train_towns": ["Twon01"]}}, "there is no town 'Twon01'; known: … Did you mean 'Town01'?"),
        ({"environment": {"heldout_towns": []}}, "environment.heldout_towns: got [] (list); name at least one town"),
        ({"environment": {"heldout_towns": ["Town01", "Town02"]}}, "Town01 also among train_towns"),
        ({"environment": {"camera": {"fov": 200}}}, "environment.camera.fov: … a number >= 10.0 and <= 170.0"),
        ({"reward": {"weights": {"collision": "x"}}}, "reward.weights.collision: got 'x' (str); expected a number"),
        ({"reward": {"type": "driving", "weights": {"colision": 1}}}, "reward.weights.colision: … Did you mean 'collision'?"),
        ({"reward": {"invalid": "sometimes"}}, "reward.invalid: got 'sometimes' (str); give a number, or exclude"),
        ({"reward": {"invalid": True}}, "reward.invalid: … give a number, or exclude"),
        ({"model": {"prompt": {"language": "fr"}}}, "model.prompt.language: got 'fr'"),
        ({"reward": {"type": "driving"}}, "reward.weights: … every reward would be 0"),
        ({"reward": {"weights": {"collision": 1}}}, "reward.weights: … only reward.type 'driving' reads weights"),
        ({**routes_with(), "reward": {"type": "pdms"}}, "reward.type: got 'pdms' (str); … known: driving, driving_score"),
        ({**routes_with(), "reward": {"type": "driving", "weights": {"ttc": 1}}}, "reward.weights.ttc: … has no such term"),
        ({"reward": {"type": "driving_score"}}, "reward.type: got 'driving_score' (str); … known: driving, pdms"),
        (routes_with(train_store="x.arrow"), "environment.train_store: got 'x.arrow' (str); bench2drive has no such thing"),
        (routes_with(score_version="v2"), "environment.score_version: … bench2drive has no such thing; leave it out"),
        ({"environment": {"ticks": 5}}, "environment.ticks: got 5 (int); navsim has no such thing; leave it out"),
        ({"environment": {"routes": "a.xml"}}, "environment.routes: … navsim has no such thing"),
        (routes_with(scenario_types=["ParkingCutin"]), "environment.scenario_types: … Did you mean 'ParkingCutIn'?"),
        (routes_with(cameras=["fornt"]), "environment.cameras: … there is no camera 'fornt'; … Did you mean 'front'?"),
        (routes_with(camera={"fov": 90.0}), "environment.camera.fov: … (front 70, … back 110, … leave it out"),
        (routes_with(routes="a.xml", train_routes="a.xml"), "environment.routes: … this file is trained on"),
        (routes_with(ticks=0), "environment.ticks: got 0 (int); expected an integer >= 1"),
        ({"algorithm": {"group_size": 1}}, "algorithm.group_size: got 1 (int); grpo compares plans of one scene"),
        ({"algorithm": {"group_size": 2, "minibatches": 64}}, "at most scenes_per_step × group_size = 32"),
        ({"environment": {"train_scenes": 8}}, "training.scenes_per_step: at most environment.train_scenes (8)"),
        ({"model": {"policy_head": {"type": "waypoint", "action_dim": 7}}}, "action_dim: … a multiple of 3 or null"),
        ({"model": {"vision_encoder": {}}}, "model.vision_encoder.type: this key is missing; its section needs it"),
        ({"model": {"policy_head": {"type": "flow", "steps": 0}}}, "policy_head.steps: got 0 (int); expected an integer >= 1"),
        ({"model": {"policy_head": {"type": "flow", "eta": 1.5}}}, "policy_head.eta: got 1.5 (float); expected a number > 0.0"),
        ({"model": {"language_model": {"base_model": "x", "lora": {"rank": 0}}}}, "lora.rank: got 0 (int)"),
        ({"model": {"options": {"policy_head": 1}}}, "model.options.policy_head: … belongs one level up"),
        ({"name": "a b"}, "name: got 'a b' (str); expected a string matching"),
        ({"seed": -1}, "seed: got -1 (int); expected an integer >= 0"),
    ],
)  # fmt: skip
def test_a_problem_has_its_path_its_value_and_what_is_allowed(data: dict[str, Any], message: str) -> None:
    text = problems(data)
    assert all(part in text for part in message.split(" … ")), text


def test_all_problems_are_listed_with_their_lines(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("seed: 0\nframwork: local\ntraining:\n  optimizer:\n    lr: fast\n    typ: adam\n")
    with pytest.raises(ConfigError) as e:
        VLAConfig.from_yaml(tmp_path / "bad.yaml", ["algorithm.epochs=0"])
    text = str(e.value)
    assert text.startswith("4 problems in ")
    assert f"({tmp_path / 'bad.yaml'} line 2)" in text
    assert f"({tmp_path / 'bad.yaml'} line 5)" in text
    assert f"({tmp_path / 'bad.yaml'} line 6)" in text
    assert "algorithm.epochs: got 0 (int); expected an integer >= 1 (command line)" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [1", "is not valid YAML"),
        ("- 1\n- 2\n", "holds a list; expected a mapping"),
        ("seed: 1\nmodel: {name: a}\nseed: 2\n", r"seed: given twice \(lines 1 and 3"),
        ("training:\n  steps: 1\n  steps: 2\n", r"training\.steps: given twice"),
    ],
)
def test_a_file_that_is_no_mapping(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "bad.yaml").write_text(content)
    with pytest.raises(ConfigError, match=message):
        VLAConfig.from_yaml(tmp_path / "bad.yaml")


def test_a_missing_or_unreadable_file(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("{}")
    with pytest.raises(ConfigError, match=r"there is no configuration file .*mine\.yaml.* has other\.yaml"):
        VLAConfig.from_yaml(tmp_path / "mine.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ConfigError, match="cannot be read"):
        VLAConfig.from_yaml(tmp_path / "binary.yaml")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "expected key=value"),
        ("=1", "expected key=value"),
        ("training..steps=1", "expected key=value"),
        ("seed=[1", "not valid YAML"),
        ("seed.x=1", "seed is 0, not a section"),
    ],
)
def test_a_wrong_override(override: str, message: str) -> None:
    assert message in problems({"seed": 0}, override)


def test_a_configuration_does_not_change() -> None:
    data: dict[str, Any] = {"training": {"steps": 3}}
    config = VLAConfig.from_dict(data, ["training.steps=4"])
    assert data == {"training": {"steps": 3}}
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 1


def test_yaml_merge_keys_work() -> None:
    text = "a: &base {x: 1, y: 2}\nb:\n  <<: *base\n  y: 3\n"
    assert YamlSource.parse(text).data["b"] == {"x": 1, "y": 3}


# -- whether the model fits ------------------------------------------------------------------------------------------------


class Planner(VLAForDriving):
    spec = VLASpec(horizon=8, dt=0.5)

    def predict(self, inputs: Any, **kwargs: Any) -> Any: ...

    def evaluate_actions(self, record: Any, **kwargs: Any) -> Any: ...


class Short(VLAForDriving):
    def predict_waypoints(self, *args: Any, **kwargs: Any) -> Any: ...


def test_a_model_that_fits() -> None:
    VLAConfig().check_model(Planner())


def test_a_model_gets_the_cameras_that_it_looks_through() -> None:
    class Surrounded(Planner):
        spec = VLASpec(horizon=5, dt=0.5, cameras=("front", "back"))

    with pytest.raises(ConfigError, match=r"environment\.cameras: tiny_vla also looks through back; write \[front, back\]"):
        VLAConfig.from_dict(routes_with()).check_model(Surrounded())
    VLAConfig.from_dict(routes_with(cameras=["back", "front", "front_left"])).check_model(Surrounded())


def test_a_model_that_does_not_fit_is_told_everything() -> None:
    with pytest.raises(ConfigError) as e:
        VLAConfig.from_dict({"algorithm": {"name": "ppo"}}).check_model(Short())
    text = str(e.value)
    assert "navsim needs plans over 4.0 s, and tiny_vla plans 5 × 0.5 s" in text
    assert "cannot be trained: it does not implement predict and evaluate_actions" in text
    assert "ppo needs state values" in text
