"""The model contract: construction without super().__init__(), predict from predict_waypoints, prompts, reference, saving."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vla_models import VLAForDriving, VLAInput, VLAInterface, VLASpec
from vla_models.errors import CheckpointError, NotImplementedByModel, PlanError, SceneError, VLAModelsError


class Bare(VLAForDriving):
    """As little as a user writes; no super().__init__()."""

    def __init__(self, model_path: str | None = None, **kwargs: Any) -> None:
        self.linear = torch.nn.Linear(2, 3)
        self.calls: list[dict[str, Any]] = []

    def predict_waypoints(self, text: str, images: Any, num_waypoints: int = 5, **kwargs: Any) -> Any:
        self.calls.append({"text": text, "images": images, "num_waypoints": num_waypoints, **kwargs})
        return self.linear(torch.ones(num_waypoints, 2))


# -- construction ----------------------------------------------------------------------------------------------------------


def test_modules_are_registered_without_super_init() -> None:
    model = Bare()
    assert {name for name, _ in model.named_parameters()} == {"linear.weight", "linear.bias"}
    assert model.to(torch.float64).linear.weight.dtype == torch.float64


def test_super_init_is_harmless_before_or_after_assigning() -> None:
    class Before(Bare):
        def __init__(self) -> None:
            VLAForDriving.__init__(self)
            self.linear = torch.nn.Linear(2, 3)

    class After(Bare):
        def __init__(self, model_path: str) -> None:
            self.linear = torch.nn.Linear(2, 3)
            VLAForDriving.__init__(self, model_path)

    assert len(list(Before().parameters())) == len(list(After("x").parameters())) == 2


def test_copies_are_independent() -> None:
    model = Bare()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.linear.weight.add_(1.0)
    assert not torch.equal(twin.linear.weight, model.linear.weight)
    assert twin.constructor_arguments() == model.constructor_arguments() == {"model_path": None}


# -- what is missing is named ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.evaluate_actions({}), "Bare cannot be trained: it does not implement evaluate_actions"),
        (lambda m: m.encode_text("x"), "Bare cannot read text: it does not implement encode_text"),
        (lambda m: m.encode_image("x"), "Bare cannot see images: it does not implement encode_image"),
        (lambda m: m(torch.zeros(1, 1), torch.zeros(1, 1)), "Bare cannot be called directly: it does not implement forward"),
        (lambda m: m.require("trained"), "Bare cannot be trained: it does not implement predict and evaluate_actions"),
        (lambda m: VLAInterface().predict([]), "VLAInterface cannot be evaluated: it does not implement predict"),
        (lambda m: VLAForDriving().predict(VLAInput()), "it does not implement predict or predict_waypoints"),
    ],
)
def test_what_a_model_lacks_is_named(call: Any, message: str) -> None:
    with pytest.raises(NotImplementedByModel, match=message):
        call(Bare())


def test_missing_by_class() -> None:
    assert Bare.missing("evaluated") == ()
    assert Bare.missing("trained") == ("predict", "evaluate_actions")
    assert VLAForDriving.missing("evaluated") == VLAInterface.missing("evaluated") == ("predict",)
    Bare().require("evaluated")


# -- predict ---------------------------------------------------------------------------------------------------------------


def test_predict_asks_predict_waypoints() -> None:
    model = Bare()
    prediction = model.predict(VLAInput(text="go", images="a.png"), max_new_tokens=50)
    assert prediction.waypoints.shape == (5, 3)
    assert prediction.logprobs is prediction.record is None
    assert model.calls == [{"text": "go", "images": "a.png", "num_waypoints": 5, "max_new_tokens": 50}]


def test_predict_shapes() -> None:
    model = Bare()
    one = VLAInput(text="go")
    assert model.predict([one]).waypoints.shape == (1, 5, 3)
    assert model.predict(one, num_samples=4).waypoints.shape == (4, 5, 3)
    assert model.predict([one, one], num_samples=3).waypoints.shape == (6, 5, 3)
    assert model.predict(one, num_waypoints=8).waypoints.shape == (8, 3)


def test_samples_of_an_input_are_side_by_side() -> None:
    class Numbered(Bare):
        def predict_waypoints(self, text: str, images: Any, num_waypoints: int = 5, **kwargs: Any) -> Any:
            return np.full((num_waypoints, 3), float(text))

    plans = Numbered().predict([VLAInput(text="1"), VLAInput(text="2")], num_samples=2).waypoints
    assert plans[:, 0, 0].tolist() == [1, 1, 2, 2]


def test_a_stated_horizon_is_asked_for() -> None:
    class Eight(Bare):
        spec = VLASpec(horizon=8, dt=0.25)

    prediction = Eight().predict(VLAInput())
    assert prediction.waypoints.shape == (8, 3)
    assert prediction.dt == 0.25


def test_an_option_that_is_not_taken_is_refused() -> None:
    class Strict(Bare):
        def predict_waypoints(self, text: str, images: Any, num_waypoints: int = 5) -> Any:  # type: ignore[override]
            return np.zeros((num_waypoints, 3))

    assert Strict().predict(VLAInput()).waypoints.shape == (5, 3)
    with pytest.raises(NotImplementedByModel, match=r"does not take max_new_tokens; add \*\*kwargs"):
        Strict().predict(VLAInput(), max_new_tokens=50)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (np.zeros((5, 2)), r"shape \[5, 2\]"),
        (np.full((5, 3), np.inf), "not finite"),
        (np.zeros((2, 5, 3)), r"\[2, 5, 3\] for one input"),
        (np.zeros((0, 3)), r"shape \[0, 3\]"),
        ("plan", "shape"),
    ],
)
def test_a_wrong_plan_is_refused(output: Any, message: str) -> None:
    class Wrong(Bare):
        def predict_waypoints(self, text: str, images: Any, num_waypoints: int = 5, **kwargs: Any) -> Any:
            return output

    with pytest.raises(PlanError, match=message):
        Wrong().predict(VLAInput())


def test_plans_of_unequal_length_are_refused() -> None:
    class Uneven(Bare):
        def predict_waypoints(self, text: str, images: Any, num_waypoints: int = 5, **kwargs: Any) -> Any:
            return np.zeros((int(text), 3))

    with pytest.raises(PlanError, match=r"\[4, 5\] poses"):
        Uneven().predict([VLAInput(text="4"), VLAInput(text="5")])


def test_nothing_to_predict() -> None:
    with pytest.raises(VLAModelsError, match="0 inputs"):
        Bare().predict([])


# -- encoders and prompts --------------------------------------------------------------------------------------------------


def test_encode_multimodal_joins() -> None:
    class Dicts(Bare):
        def encode_text(self, text: Any, max_length: Any = None) -> Any:
            return {"input_ids": 1, "attention_mask": 2}

        def encode_image(self, images: Any, size: Any = None) -> Any:
            return {"pixel_values": 3}

    class Bares(Dicts):
        def encode_text(self, text: Any, max_length: Any = None) -> Any:
            return torch.ones(1)

        def encode_image(self, images: Any, size: Any = None) -> Any:
            return torch.zeros(1)

    class Clash(Dicts):
        def encode_image(self, images: Any, size: Any = None) -> Any:
            return {"input_ids": 3}

    assert Dicts().encode_multimodal("a", "b") == {"input_ids": 1, "attention_mask": 2, "pixel_values": 3}
    assert Bares().encode_multimodal("a", "b") == {"input_ids": torch.ones(1), "pixel_values": torch.zeros(1)}
    with pytest.raises(VLAModelsError, match="both return 'input_ids'"):
        Clash().encode_multimodal("a", "b")


def test_the_prompt_is_readable_and_of_fixed_width() -> None:
    def prompt(speed: float, y: float) -> str:
        route = np.array([[5, y], [10, 2 * y]])
        return Bare().build_prompt(
            VLAInput(text="Go", ego_state={"speed": speed, "acceleration": -0.5, "yaw_rate": 0.1}, route=route, command="left")
        )

    assert prompt(7.32, 0.1).splitlines() == [
        "Go",
        "speed 07.3 m/s, acceleration -00.50 m/s2, yaw rate +00.10 rad/s",
        "command left",
        "route +05.0 +00.1; +10.0 +00.2",
    ]
    assert len({len(prompt(speed, y)) for speed in (0.0, 9.99, 31.0) for y in (-4.0, 0.0, 7.0)}) == 1
    assert Bare().build_prompt(VLAInput()) == ""


def test_ego_state_as_text() -> None:
    text = Bare().process_ego_state((12.34, -5.0), np.pi / 2, (3.0, 4.0))
    assert text == "position +0012.3 -0005.0 m, heading +090.0 deg, speed 05.0 m/s"


@pytest.mark.parametrize("route", [np.zeros((0, 2)), np.zeros(3), np.full((2, 2), np.nan)])
def test_an_empty_or_broken_route_is_refused(route: Any) -> None:
    with pytest.raises(SceneError, match="route"):
        Bare().process_route(route)


def test_controls_remember_until_reset() -> None:
    model = Bare()
    plan = np.stack([np.arange(1, 6), 0.1 * np.arange(1, 6), np.zeros(5)], axis=1)
    first = model.waypoints_to_controls(plan, {"speed": 1.5})
    assert model.waypoints_to_controls(plan, {"speed": 1.5}) != first
    model.reset_controls()
    assert model.waypoints_to_controls(plan, {"speed": 1.5}) == first


# -- reference weights -----------------------------------------------------------------------------------------------------


def test_reference_shows_the_frozen_weights_and_puts_the_live_ones_back() -> None:
    model = Bare()
    before = model.linear.weight.detach().clone()
    model.make_reference()
    with torch.no_grad():
        model.linear.weight.add_(1.0)
    x = torch.ones(1, 2)
    loss = model.linear(x).sum()  # a graph that is open while the reference is looked at
    with model.reference() as frozen:
        assert torch.equal(frozen.linear.weight, before)
        assert not frozen.linear(x).requires_grad
    assert torch.equal(model.linear.weight, before + 1.0)
    loss.backward()
    assert torch.equal(model.linear.weight.grad, torch.ones(3, 2))


def test_the_live_weights_come_back_after_an_error() -> None:
    model = Bare()
    model.make_reference()
    with torch.no_grad():
        model.linear.bias.fill_(7.0)

    def fail() -> None:
        with model.reference():
            raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        fail()
    assert (model.linear.bias == 7.0).all()


def test_reference_survives_a_restart() -> None:
    model, again = Bare(), Bare()
    model.make_reference()
    again.make_reference(model.reference_weights())
    with again.reference():
        assert torch.equal(again.linear.weight, model.linear.weight)
    assert "linear.weight" in model.state_dict()
    assert len(model.state_dict()) == 2, "the reference is not part of the model"


def test_reference_must_be_made_and_fit() -> None:
    with pytest.raises(VLAModelsError, match="call make_reference"), Bare().reference():
        pass
    with pytest.raises(VLAModelsError, match="do not fit"):
        Bare().make_reference({"linear.weight": torch.zeros(1)})


def test_reference_of_adapters_is_the_base_without_them() -> None:
    """A stand-in with peft's two names: the adapter is switched off, what is trained beside it is swapped."""

    class Adapted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.peft_config: dict[str, Any] = {}
            self.adapter = torch.nn.Parameter(torch.tensor(1.0))
            self.on = True

        @contextmanager
        def disable_adapter(self) -> Iterator[None]:
            self.on = False
            yield
            self.on = True

    class WithAdapter(Bare):
        def __init__(self) -> None:
            self.base = Adapted()
            self.head = torch.nn.Linear(1, 1)

    model = WithAdapter()
    model.make_reference()
    assert model.reference_weights().keys() == {"head.weight", "head.bias"}
    with model.reference():
        assert not model.base.on
    assert model.base.on


# -- saving ----------------------------------------------------------------------------------------------------------------


class Sized(VLAForDriving):
    def __init__(self, width: int, names: tuple[str, ...] = ("a",), model_path: str | None = None, **kwargs: Any) -> None:
        self.layer = torch.nn.Linear(width, width)
        self.tied = self.layer
        self.register_buffer("mean", torch.arange(6.0).view(2, 3).T)


def test_save_and_load_give_equal_models(tmp_path: Path) -> None:
    model = Sized(4, extra=1.5)
    model.save_pretrained(tmp_path / "deep" / "model")
    again = Sized.from_pretrained(tmp_path / "deep" / "model")
    assert again.constructor_arguments() == {"width": 4, "names": ["a"], "model_path": None, "extra": 1.5}
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    assert sorted(p.name for p in (tmp_path / "deep" / "model").iterdir()) == ["config.json", "model.safetensors"]
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["model"], "nothing is left beside it"


def test_saving_again_leaves_other_files_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    Sized(4).save_pretrained(tmp_path)
    model = Sized(4)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert torch.equal(Sized.from_pretrained(tmp_path).layer.weight, model.layer.weight)
    assert len(list(tmp_path.iterdir())) == 3


def test_the_base_class_finds_the_registered_class(registry: Any, tmp_path: Path) -> None:
    Sized(4).save_pretrained(tmp_path / "unregistered")
    with pytest.raises(CheckpointError, match=r"Sized without a registered name: call Sized\.from_pretrained"):
        VLAForDriving.from_pretrained(tmp_path / "unregistered")
    registry.register_model("sized", Sized)
    Sized(4).save_pretrained(tmp_path / "model")
    assert isinstance(VLAInterface.from_pretrained(tmp_path / "model"), Sized)
    with pytest.raises(CheckpointError, match=r"holds a Sized .*, not a Bare"):
        Bare.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: (p / "model.safetensors").write_bytes(b"half"), r"model\.safetensors' is corrupt"),
        (lambda p: (p / "model.safetensors").unlink(), "there are no weights"),
        (lambda p: (p / "config.json").write_text("{"), r"config\.json' is corrupt"),
        (lambda p: (p / "config.json").write_text('{"architectures": ["GPT2"]}'), "was not written by vla_models"),
        (lambda p: (p / "config.json").unlink(), "is no model checkpoint"),
    ],
)
def test_a_spoilt_checkpoint_is_refused(tmp_path: Path, spoil: Any, message: str) -> None:
    folder = tmp_path / "model"
    Sized(4).save_pretrained(folder)
    spoil(folder)
    with pytest.raises(CheckpointError, match=message):
        Sized.from_pretrained(folder)


def test_a_truncated_weight_file_is_refused(tmp_path: Path) -> None:
    Sized(64).save_pretrained(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="corrupt"):
        Sized.from_pretrained(tmp_path)


def test_a_foreign_checkpoint_lists_the_keys(tmp_path: Path) -> None:
    class Other(Sized):
        def __init__(self, width: int, **kwargs: Any) -> None:
            self.layer = torch.nn.Linear(width, width, bias=False)
            self.more = torch.nn.Linear(1, 1, bias=False)

    Sized(4).save_pretrained(tmp_path)
    Other.__name__ = "Sized"
    with pytest.raises(CheckpointError) as e:
        Other.from_pretrained(tmp_path, width=5)
    text = str(e.value)
    assert "1 missing: more.weight" in text
    assert "4 unexpected: layer.bias, mean, tied.bias, tied.weight" in text
    assert "1 of another shape: layer.weight [4, 4] instead of [5, 5]" in text


def test_a_missing_folder_and_wrong_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint folder"):
        Sized.from_pretrained(tmp_path / "nowhere")

    class NoArguments(Sized):
        def __init__(self) -> None:
            Sized.__init__(self, 4)

    NoArguments.__name__ = "Sized"
    Sized(4).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"does not take the arguments in its config\.json"):
        NoArguments.from_pretrained(tmp_path)


def test_what_json_cannot_hold_is_named_when_saving(tmp_path: Path) -> None:
    model = Sized(4, encoder=torch.nn.Linear(1, 1))
    with pytest.raises(CheckpointError, match="argument 'encoder' is a Linear"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="it is a file"):
        Sized(4).save_pretrained(tmp_path / "file")
