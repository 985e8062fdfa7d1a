"""tiny_vla: what it reads, what it decides, and that every decision can be replayed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vla_models.errors import ImageError, PlanError, SceneError, VLAModelsError
from vla_models.inputs import EGO_FEATURES, VLAInput
from vla_models.interface import VLAInterface
from vla_models.model_registry import create_model
from vla_models.models.byte_text import WIDTH
from vla_models.models.tiny_vla import TinyVLA


def some_inputs(count: int, seed: int = 0) -> list[VLAInput]:
    rng = np.random.default_rng(seed)
    return [
        VLAInput(
            text="Drive on." + "!" * int(rng.integers(0, 30)),
            images={"front": rng.integers(0, 256, (96, 160, 3), dtype=np.uint8)},
            ego_state={key: float(rng.uniform(0, 1)) * (10.0 if key == "speed" else 0.2) for key in EGO_FEATURES},
            route=np.cumsum(rng.uniform(0, 4, (10, 2)), axis=0).astype(np.float32),
            command=("left", "straight", "right", "unknown")[i % 4],
        )
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def model() -> TinyVLA:
    torch.manual_seed(0)
    made = create_model("tiny_vla", dim=64, layers=2, heads=2)
    assert isinstance(made, TinyVLA)
    with torch.no_grad():  # far from uniform, as after training
        made.head.project.weight.mul_(20.0)
    return made


def draw(model: TinyVLA, inputs: list[VLAInput], seed: int = 0, **options: object) -> object:
    return model.predict(inputs, generator=torch.Generator().manual_seed(seed), **options)


def test_the_default_size_is_that_of_the_quick_start() -> None:
    parameters = sum(p.numel() for p in TinyVLA().parameters())
    assert 1_000_000 < parameters < 5_000_000


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7}, {"top_p": 0.8}, {"temperature": 1.6, "top_p": 0.5}])
@pytest.mark.parametrize("samples", [1, 5])
def test_unchanged_weights_give_ratio_one(model: TinyVLA, options: dict[str, float], samples: int) -> None:
    drawn = draw(model, some_inputs(6), num_samples=samples, **options)
    assert drawn.waypoints.shape == (6 * samples, 8, 3)
    of_input = {name: drawn.record[name].unflatten(0, (6, samples)) for name in model.prompt_keys if name in drawn.record}
    assert len(of_input) == 5
    assert all(torch.equal(value, value[:, :1].expand_as(value)) for value in of_input.values())
    again = model.evaluate_actions(drawn.record, values=True)
    assert again["logprobs"].dtype == torch.float32
    assert again["logprobs"].shape == again["mask"].shape == (6 * samples, 8)
    assert again["mask"].all()
    assert "entropy" not in again
    torch.testing.assert_close(again["logprobs"], drawn.logprobs, atol=1e-5, rtol=0)
    torch.testing.assert_close(again["values"], drawn.values, atol=1e-5, rtol=0)


def test_batch_order_split_and_padding_change_nothing(model: TinyVLA) -> None:
    drawn = draw(model, some_inputs(5), num_samples=4, temperature=1.3, top_p=0.9)
    whole = model.evaluate_actions(drawn.record, entropy=True, values=True)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    mixed = {key: part[order] for key, part in drawn.record.items()}
    padded = {**mixed, **{k: torch.nn.functional.pad(mixed[k], (0, 3 * WIDTH + 5)) for k in ("input_ids", "attention_mask")}}
    for record in (mixed, padded):
        for sizes in ([20], [7, 1, 12], [1] * 20):
            parts = zip(*(part.split(sizes) for part in record.values()), strict=True)
            results = [
                model.evaluate_actions(dict(zip(record, part, strict=True)), entropy=True, values=True) for part in parts
            ]
            for key in ("logprobs", "entropy", "values"):
                joined = torch.cat([result[key] for result in results])
                torch.testing.assert_close(joined, whole[key][order], atol=1e-5, rtol=0)


def test_records_of_different_calls_can_be_joined(model: TinyVLA) -> None:
    first, second = draw(model, some_inputs(2, 1), num_samples=2), draw(model, some_inputs(3, 2), num_samples=3)
    width = max(first.record["input_ids"].shape[1], second.record["input_ids"].shape[1])

    def widened(record: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {
            key: torch.nn.functional.pad(part, (0, width - part.shape[1])) if key in ("input_ids", "attention_mask") else part
            for key, part in record.items()
        }

    a, b = widened(first.record), widened(second.record)
    joined = model.evaluate_actions({key: torch.cat([a[key], b[key]]) for key in a})["logprobs"]
    torch.testing.assert_close(joined, torch.cat([first.logprobs, second.logprobs]), atol=1e-5, rtol=0)


def test_a_shared_prompt_is_the_same_as_a_copied_one(model: TinyVLA) -> None:
    drawn = draw(model, some_inputs(2), num_samples=3)
    apart = {**drawn.record, "prompt_id": torch.arange(6)}
    grads = []
    for record in (drawn.record, apart):
        model.zero_grad()
        (model.evaluate_actions(record)["logprobs"] * torch.arange(1.0, 7.0)[:, None]).mean().backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(grads[0], grads[1], atol=2e-4, rtol=1e-3)
    model.zero_grad()


def test_the_generator_decides_and_greedy_needs_none(model: TinyVLA) -> None:
    inputs = some_inputs(3)
    assert np.array_equal(draw(model, inputs, 1).waypoints, draw(model, inputs, 1).waypoints)
    assert not np.array_equal(draw(model, inputs, 1).waypoints, draw(model, inputs, 2).waypoints)
    greedy = model.predict(inputs, deterministic=True)
    assert np.array_equal(greedy.waypoints, model.predict(inputs, deterministic=True, num_samples=2).waypoints[::2])
    one = model.predict(inputs[0], deterministic=True)
    assert one.waypoints.shape == (8, 3)
    np.testing.assert_allclose(one.waypoints, greedy.waypoints[0], atol=1e-5)
    assert np.array_equal(model.predict_waypoints("Drive", inputs[0].images, 3).shape, (3, 3))


def test_forward_gives_the_logits_of_the_record(model: TinyVLA) -> None:
    drawn = draw(model, some_inputs(4))
    record = drawn.record
    out = model(
        record["input_ids"],
        record["attention_mask"],
        record["pixel_values"],
        ego=record["ego"],
        action_tokens=record["action_tokens"][:, :-1],
    )
    logprobs = model.head.log_prob(out.logits, record["action_tokens"], record["temperature"][:, None], record["support"])
    torch.testing.assert_close(logprobs, drawn.logprobs, atol=1e-5, rtol=0)
    torch.testing.assert_close(out.values, drawn.values, atol=1e-5, rtol=0)
    with pytest.raises(VLAModelsError, match="pixel_values"):
        model(record["input_ids"], record["attention_mask"])


def test_gradients_reach_every_weight(model: TinyVLA) -> None:
    drawn = draw(model, some_inputs(4), num_samples=2)
    model.zero_grad()
    out = model.evaluate_actions(drawn.record, entropy=True, values=True)
    (out["logprobs"].mean() + out["entropy"].mean() + out["values"].mean()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []
    model.zero_grad()


def test_imitation_learns_plans_that_depend_on_picture_text_and_speed() -> None:
    torch.manual_seed(0)
    model = TinyVLA(dim=64, layers=2, heads=2)
    inputs = some_inputs(4, 3)
    curvature = np.array([0.0, 0.05, -0.05, 0.02])[:, None] * np.ones(8)
    speed = np.array([float(x.ego_state["speed"]) for x in inputs])[:, None]
    s = speed * 0.5 * np.arange(1, 9)
    heading = curvature * s
    plans = np.stack([s * np.sinc(heading / 2 / np.pi) * f(heading / 2) for f in (np.cos, np.sin)] + [heading], -1)
    record = model.record_from_plans(inputs, plans.astype(np.float32))
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for _ in range(60):
        optimizer.zero_grad()
        (-model.evaluate_actions(record)["logprobs"].mean()).backward()
        optimizer.step()
    learnt = model.predict(inputs, deterministic=True).waypoints
    assert np.linalg.norm((learnt - plans)[..., :2], axis=-1).mean() < 0.5


def test_saving_and_loading_keeps_the_plan(model: TinyVLA, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "saved")
    for loaded in (VLAInterface.from_pretrained(tmp_path / "saved"), create_model("tiny_vla", model_path=tmp_path / "saved")):
        assert isinstance(loaded, TinyVLA)
        assert loaded.spec == model.spec
        inputs = some_inputs(3)
        assert np.array_equal(draw(loaded, inputs).waypoints, draw(model, inputs).waypoints)


def test_the_prompt_keeps_every_number_at_its_place(model: TinyVLA) -> None:
    given = VLAInput(
        text="Drive to the harbour.",
        ego_state={"speed": 7.324},
        route=np.array([[5, 0.14], [-12.3, -104]]),
        command="left",
    )
    prompt = model.build_prompt(given)
    fields = [prompt[i : i + WIDTH] for i in range(0, 48, WIDTH)]
    assert fields == ["speed +07.32", "go left     ", "+05.0 +00.1 ", "-12.3 -99.9 "]
    assert prompt[48:] == "Drive to the harbour."
    assert model.build_prompt(VLAInput(text="x")) == "speed n/a   go unknown  x"
    placed = model.process_ego_state((1.5, -2000.0), np.pi / 2, (3.0, 4.0))
    assert [placed[i : i + WIDTH] for i in range(0, len(placed), WIDTH)] == [
        "at x  +001.5", "at y  -999.9", "head  +090.0", "speed +05.00",
    ]  # fmt: skip
    with pytest.raises(SceneError, match="route"):
        model.process_route(np.zeros((0, 2)))


def test_text_is_bytes_in_any_language(model: TinyVLA) -> None:
    encoded = model.encode_text(["沿路行驶", "go"])
    assert encoded["input_ids"].shape == (2, WIDTH)
    assert encoded["attention_mask"].sum(1).tolist() == [12, 2]
    assert bytes((encoded["input_ids"][0] - 1).tolist()).decode() == "沿路行驶"
    cut = model.encode_text("沿路行驶", max_length=7)
    assert bytes((cut["input_ids"][0, :6] - 1).tolist()).decode() == "沿路"
    with pytest.raises(ValueError, match="max_text"):
        model.encode_text("x" * 2000)


def test_another_camera_set_and_picture_size() -> None:
    model = TinyVLA(dim=32, layers=1, heads=2, image_size=(70, 130), cameras=("left", "right"))
    picture = np.zeros((90, 200, 3), np.uint8)
    given = VLAInput(text="go", images={"left": picture, "right": picture}, ego_state={"speed": 3.0})
    drawn = model.predict(given, num_samples=2)
    assert drawn.record["pixel_values"].shape == (2, 2, 70, 130, 3)
    torch.testing.assert_close(model.evaluate_actions(drawn.record)["logprobs"], drawn.logprobs, atol=1e-5, rtol=0)
    with pytest.raises(ImageError, match="right"):
        model.predict(VLAInput(text="go", images={"left": picture}))


def test_what_cannot_be_used_is_named(model: TinyVLA) -> None:
    (given,) = some_inputs(1)
    with pytest.raises(ImageError, match="front"):
        model.predict(VLAInput(text="go"))
    with pytest.raises(SceneError, match="ego state"):
        model.predict(VLAInput(text="go", images=given.images, ego_state={"speed": float("nan")}))
    with pytest.raises(VLAModelsError, match="top_p"):
        model.predict(given, top_p=0.0)
    with pytest.raises(VLAModelsError, match="beams"):
        model.predict(given, beams=3)
    with pytest.raises(VLAModelsError, match="0 inputs"):
        model.predict([])
    with pytest.raises(PlanError, match="8"):
        model.predict_waypoints("go", given.images, num_waypoints=9)
    with pytest.raises(PlanError, match="2 inputs"):
        model.record_from_plans(some_inputs(2), np.zeros((3, 8, 3)))
