"""hf_vlm: what it reads, what it writes, how it is saved, and what it refuses (the families are in test_hf_vlm_families)."""

from __future__ import annotations

import copy
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn
from vlm_cases import FAMILIES, SIZES, draw, make, shared, some_inputs, vision

import vla_models
from vla_models.errors import CheckpointError, ConfigError, DivergenceError, ImageError, PlanError, SceneError, VLAModelsError
from vla_models.heads.warpers import ACTION, TEXT
from vla_models.inputs import VLAInput
from vla_models.interface import VLAForDriving
from vla_models.lora import merge_lora
from vla_models.model_registry import create_model
from vla_models.models.hf_vlm import HFVLM
from vla_models.models.tiny_vla import TinyVLA
from vla_models.models.vlm.base import Base
from vla_models.models.vlm.text_plan import write_plan
from vla_models.models.vlm.tiny import tiny_config, tiny_tokenizer
from vla_models.models.vlm.writing import GIVEN

TEXT_HEAD = {"type": "tokens", "codebook": "text"}
OUR_CODE = str(Path(vla_models.__file__).parent)
VERSION = tuple(int(part) for part in transformers.__version__.split(".")[:2])


def say(model: HFVLM, *answers: str) -> Any:
    """Make the model write these answers, one a row, whatever it is asked; ``remove()`` what is returned to let it speak."""
    scripts = [model.tokenizer(answer, add_special_tokens=False)["input_ids"] + [model.grammar.end] for answer in answers]
    step = 0

    def script(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        nonlocal step
        logits = torch.zeros_like(out)
        for row, ids in enumerate(scripts):
            logits[row, -1, ids[min(step, len(ids) - 1)]] = 1e4
        step += 1
        return logits

    return model.backbone.model.get_output_embeddings().register_forward_hook(script)


# -- deciding ----------------------------------------------------------------------------------------------------------------


def test_any_batch_is_one_generate_and_one_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("smolvlm")
    calls: list[str] = []
    monkeypatch.setattr(
        model.backbone.model, "generate", lambda *a, g=model.backbone.model.generate, **k: calls.append("g") or g(*a, **k)
    )
    drawn = draw(model, some_inputs(3), num_samples=4)
    assert calls == ["g"]
    model.backbone.model.register_forward_hook(lambda *_: calls.append("forward"))
    model.evaluate_actions(drawn.record, entropy=True, values=True)
    assert calls == ["g", "forward"]


@pytest.mark.parametrize("family", FAMILIES)
def test_more_rows_are_not_more_python(family: str) -> None:
    """In our own code, that is: some vision towers of transformers loop over pictures where flash attention is missing."""
    model = shared(family, "tokens")
    record = draw(model, some_inputs(1), num_samples=8).record

    def calls(rows: int) -> int:
        part = {name: value[:rows] for name, value in record.items()}
        count = 0

        def counting(frame: Any, event: str, argument: Any) -> None:
            nonlocal count
            count += event == "call" and frame.f_code.co_filename.startswith(OUR_CODE)

        with torch.no_grad():
            model.evaluate_actions(part, entropy=True, values=True)
            sys.setprofile(counting)
            try:
                model.evaluate_actions(part, entropy=True, values=True)
            finally:
                sys.setprofile(None)
        return count

    assert 10 < calls(8) == calls(2)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_seen_and_said_matters(family: str) -> None:
    model = shared(family, "tokens")
    (given,) = some_inputs(1)
    record = draw(model, given).record
    before = model.evaluate_actions(record)["logprobs"]
    other = some_inputs(1, seed=1)[0]
    for key in ("images", "command", "route", "ego_state"):
        changed = VLAInput(**{**given.__dict__, key: getattr(other, key) if key != "command" else "right"})
        prompt = draw(model, changed).record
        parts = {**record, **{k: prompt[k] for k in ("pixel_values", "input_ids", "attention_mask")}}
        assert (model.evaluate_actions(parts)["logprobs"] - before).abs().max() > 1e-4, key


def test_the_same_seed_gives_the_same_plans_and_deterministic_is_the_likeliest() -> None:
    model = shared("smolvlm", "tokens")
    inputs = some_inputs(2)
    first, again, other = (draw(model, inputs, seed=s, num_samples=3).waypoints for s in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    likeliest = draw(model, inputs, deterministic=True)
    assert np.array_equal(likeliest.waypoints, draw(model, inputs, seed=5, deterministic=True).waypoints)
    many = draw(model, inputs[:1], num_samples=50)
    assert (likeliest.logprobs[0, 0] >= many.logprobs[:, 0] - 1e-5).all()
    single = model.predict(inputs[0], deterministic=True)
    assert single.waypoints.shape == (8, 3)
    assert np.array_equal(single.waypoints, model.predict_waypoints(inputs[0].text, inputs[0].images, 8, **{
        k: getattr(inputs[0], k) for k in ("ego_state", "route", "command")
    }))  # fmt: skip


def test_forward_is_what_generate_begins_with() -> None:
    model = shared("qwen2_5_vl", "tokens")
    (given,) = some_inputs(1)
    out = model(**model.encode_multimodal(given.text, given.images))
    assert out.logits.shape[:2] == (1, 1)
    deterministic = model.predict(VLAInput(text=given.text, images=given.images), deterministic=True)
    allowed = model.grammar.actions
    assert int(allowed[out.logits[0, 0, allowed].argmax()]) == int(deterministic.record["completion_ids"][0, 0])
    torch.testing.assert_close(out.values, deterministic.values, atol=1e-5, rtol=0)
    with pytest.raises(VLAModelsError, match="pixel_values"):
        model(**model.encode_text("x"))


# -- reasoning ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [{"type": "tokens"}, {"type": "gaussian"}, {"type": "flow", "steps": 2}])
@pytest.mark.parametrize("learn", ["all", "action", "text"])
def test_reasoning_comes_first_and_is_masked_apart(head: dict[str, Any], learn: str) -> None:
    model = make("smolvlm", head, reasoning=6, learn=learn)
    drawn = draw(model, some_inputs(2), num_samples=2, temperature=0.8)
    segment = drawn.record["segment"]
    codes = 8 if head["type"] == "tokens" else 0
    written = (segment == TEXT).sum(1) + (segment == GIVEN).sum(1)
    assert (written <= 7).all()
    assert (segment == ACTION).sum(1).tolist() == [codes] * 4
    assert (segment == GIVEN).any()  # a random model hardly ever ends its text by itself
    marker = model.tokenizer.convert_tokens_to_ids("<plan>")
    assert ((drawn.record["completion_ids"] == marker).sum(1) == 1).all()
    assert len(drawn.text) == 4
    again = model.evaluate_actions(drawn.record, values=True)
    torch.testing.assert_close(again["logprobs"], drawn.logprobs, atol=1e-5, rtol=0)
    torch.testing.assert_close(again["values"], drawn.values, atol=1e-5, rtol=0)
    counted = {"all": segment > 0, "action": segment == ACTION, "text": segment == TEXT}[learn]
    assert torch.equal(again["mask"][:, : segment.shape[1]], counted)
    assert (again["mask"][:, segment.shape[1] :] == (learn != "text")).all()
    assert (again["logprobs"][:, : segment.shape[1]][segment <= 0] == 0).all()


def test_the_budget_cuts_the_text_and_never_the_codes() -> None:
    model = make("smolvlm", reasoning=30)
    drawn = draw(model, some_inputs(1), max_new_tokens=12)
    assert drawn.record["completion_ids"].shape[1] <= 12
    assert (drawn.record["segment"] == ACTION).sum() == 8
    short = draw(model, some_inputs(1), max_new_tokens=9)
    assert (short.record["segment"] == TEXT).sum() == 0
    with pytest.raises(VLAModelsError, match="max_new_tokens=8"):
        draw(model, some_inputs(1), max_new_tokens=8)


# -- plans in words ----------------------------------------------------------------------------------------------------------

TURN = np.arange(1, 9) * 0.1
PLAN = np.stack([3.25 * np.cumsum(np.cos(TURN - 0.05)), 3.25 * np.cumsum(np.sin(TURN - 0.05)), TURN], axis=1).astype(np.float32)
"""A left turn at 6.5 m/s."""


def test_a_plan_in_words_is_driven_and_anything_else_is_an_invalid_answer() -> None:
    model = make("qwen3_vl", TEXT_HEAD)
    said = say(model, f"I go: {write_plan(PLAN)}.", write_plan(PLAN[:7]), "(1,2,", "規劃：沒有", "")
    drawn = draw(model, some_inputs(5), deterministic=True)
    assert drawn.valid.tolist() == [True, False, False, False, False]
    np.testing.assert_allclose(drawn.waypoints[0], PLAN, atol=0.0051)
    assert (drawn.waypoints[1:] == 0.0).all()
    said.remove()
    say(model, "no plan")
    with pytest.raises(PlanError, match="'no plan'"):
        model.predict_waypoints("go", some_inputs(1)[0].images)


def test_reasoning_before_a_plan_in_words() -> None:
    model = make("smolvlm", TEXT_HEAD, reasoning=40)
    say(model, f"The light is red (0,0,0). <plan>{write_plan(PLAN)}", f"{write_plan(PLAN)}")
    drawn = draw(model, some_inputs(2), deterministic=True)
    assert drawn.text[0] == "The light is red (0,0,0). "
    assert drawn.valid.tolist() == [True, False]  # the second never came to its plan in words
    np.testing.assert_allclose(drawn.waypoints[0], PLAN, atol=0.0051)


@pytest.mark.parametrize("head", [{"type": "tokens"}, {"type": "tokens", "codebook": "bins"}, TEXT_HEAD])
@pytest.mark.parametrize("reasoning", [0, 5])
def test_the_record_of_given_plans_says_these_plans(head: dict[str, Any], reasoning: int) -> None:
    model = make("smolvlm", head, reasoning=reasoning)
    inputs = some_inputs(3)
    plans = np.stack([PLAN, PLAN * [1.0, -1.0, -1.0], PLAN * [1.0, 0.0, 0.0]])
    for given in inputs:
        given.ego_state = {"speed": 6.5}
    model.fit_statistics("some", plans, np.full(3, 6.5))
    record = model.record_from_plans(inputs, plans)
    assert ((record["segment"] == GIVEN).sum(1) == int(reasoning > 0)).all()
    written = zip(record["completion_ids"], record["segment"], strict=True)
    said, valid = model.parse([ids[there != 0].tolist() for ids, there in written], [6.5] * 3)
    assert valid.all()
    assert np.abs(said - plans)[..., :2].max() < (0.01 if head == TEXT_HEAD else 0.7)
    loss = model.imitation_loss(record)
    assert torch.isfinite(loss)
    within = -model.evaluate_actions(record)["logprobs"].sum() / (record["segment"] > 0).sum()
    assert loss > within, "the plan is learnt among all tokens"
    logits, written = model.backbone.read(record)[1][:, :-1].float(), record["segment"] > 0
    said = logits.log_softmax(-1).gather(-1, record["completion_ids"][..., None])[..., 0]
    torch.testing.assert_close(loss, -said[written].mean())


def test_imitation_teaches_to_write_plans_where_no_grammar_helps() -> None:
    """Inference servers sample from the whole vocabulary."""
    model = make("smolvlm")
    inputs, plans = some_inputs(2), np.stack([PLAN, PLAN * [1.0, -1.0, -1.0]])
    record = model.record_from_plans(inputs, plans)
    written = record["segment"] == ACTION

    def of_a_plan() -> float:
        """Probability of the codebook's tokens where they belong."""
        with torch.no_grad():
            p = model.backbone.read(record)[1][:, :-1][written].float().softmax(-1)
        return float(p[:, model.grammar.actions].sum(-1).mean())

    before = of_a_plan()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(15):
        optimizer.zero_grad()
        model.imitation_loss(record).backward()
        optimizer.step()
    assert of_a_plan() > before + 0.3


@pytest.mark.parametrize("head", [{"type": "tokens"}, {"type": "gaussian"}, {"type": "flow", "steps": 2}])
def test_imitation_brings_the_model_to_given_plans(head: dict[str, Any]) -> None:
    model = make("smolvlm", head)
    inputs = some_inputs(2)
    for given in inputs:
        given.ego_state = {"speed": 6.5}
    plans = np.stack([PLAN, PLAN * [1.0, -1.0, -1.0]])
    model.fit_statistics("some", plans, np.full(2, 6.5))
    record = model.record_from_plans(inputs, plans)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(15):
        torch.manual_seed(0)  # the same noise each time
        losses.append(model.imitation_loss(record))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.2
    other = VLAInput(**{**inputs[0].__dict__, "text": "x"})
    assert model.record_from_plans([other], plans[:1]).keys() == record.keys()


def test_completions_of_a_server_are_parsed() -> None:
    model = make("smolvlm", reasoning=5)
    drawn = draw(model, some_inputs(2))
    rows = [ids.tolist() for ids in drawn.record["completion_ids"]]
    speed = drawn.record["speed"].tolist()
    plans, valid = model.parse([[*row, model.grammar.end, 5] for row in rows], speed)
    assert valid.all()
    assert np.array_equal(plans, drawn.waypoints)
    marker = model.grammar.marker
    code = int(model.grammar.actions[3])
    malformed = [[], [marker], [code] * 8, [marker, *[code] * 7], [marker, *[code] * 9], [marker, *[code] * 7, 5]]
    plans, valid = model.parse([*malformed, [marker, *[code] * 8]], [5.0] * 7)
    assert valid.tolist() == [False] * 6 + [True]
    assert (plans[:6] == 0).all()
    with pytest.raises(VLAModelsError, match="head"):
        shared("smolvlm", "gaussian").parse([[]], [0.0])


# -- pictures and prompts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["qwen2_5_vl", "internvl", "paligemma", "llava_onevision", "idefics3"])
def test_cameras_and_frames(family: str) -> None:
    model = make(family, cameras=("front", "left"), frames=2)
    rng = np.random.default_rng(0)
    films = {c: rng.integers(0, 256, (2, 40, 50, 3), dtype=np.uint8) for c in ("front", "left", "back")}
    given = VLAInput(text="go", images=films, ego_state={"speed": 3.0})
    drawn = draw(model, given, num_samples=2)
    assert drawn.record["pixel_values"].shape[:2] == (2, 4)
    torch.testing.assert_close(model.evaluate_actions(drawn.record)["logprobs"], drawn.logprobs, atol=1e-5, rtol=0)
    listed = VLAInput(text="go", images=[list(films["front"]), list(films["left"])], ego_state={"speed": 3.0})
    assert torch.equal(draw(model, listed).record["pixel_values"][0], drawn.record["pixel_values"][0])
    for images, named in (
        ({"front": films["front"]}, "left"),
        ({"front": films["front"], "left": films["left"][:1]}, "'left': 1 frame was"),
        ({"front": films["front"], "left": films["left"][0]}, "'left': 1 frame was"),
        ([films["front"]], "1 lists of frames for 2 cameras"),
        (None, "no images"),
    ):
        with pytest.raises(ImageError, match=named):
            draw(model, VLAInput(text="go", images=images))


def test_a_prompt_is_a_chat_in_either_language() -> None:
    model = make("qwen2_5_vl", prompt={"language": "zh", "system": "你是司机。"}, reasoning=4)
    (given,) = some_inputs(1)
    messages = model.build_messages(given)
    assert [message["role"] for message in messages] == ["system", "user"]
    prompt = model.build_prompt(given)
    assert prompt.startswith(
        "<|im_start|>system\n你是司机。<|im_end|>\n<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
    )
    assert "左转" in prompt
    assert "<plan>" in prompt
    record = draw(model, given).record
    ids = record["input_ids"][0][record["attention_mask"][0].bool()]
    assert model.tokenizer.decode(ids) == prompt.replace("<|image_pad|>", "<|image_pad|>" * 6)
    assert model.process_route(np.array([[5.0, 0.14]])) == "(5.0, 0.1)"
    assert model.process_ego_state(None, None, (3.0, 4.0)) == "速度 5.00 米/秒"
    cut = model.encode_text(["沿路行驶", "go"], max_length=3)
    assert cut["input_ids"].shape == (2, 3)
    assert cut["attention_mask"][1, 0] == 0


def image_processor(name: str, folder: str, **options: Any) -> Any:
    """transformers' own image processor, in the variant that this version has without torchvision."""
    pil = VERSION >= (5, 4)
    module = importlib.import_module(f"transformers.models.{folder}.image_processing_{'pil_' if pil else ''}{folder}")
    return getattr(module, name + ("Pil" if pil else ""))(**options)


def own_processor(family: str) -> Any:
    """The image processor that the models of a family are released with, for tiny pictures."""
    half, square = [0.5] * 3, {"height": 56, "width": 56}
    edges = {"size": {"longest_edge": 56}, "max_image_size": {"longest_edge": 56}}
    match family:
        case "qwen2_5_vl":
            return image_processor("Qwen2VLImageProcessor", "qwen2_vl", min_pixels=1, patch_size=14)
        case "qwen3_vl":
            more = {"image_mean": half, "image_std": half}
            return image_processor("Qwen2VLImageProcessor", "qwen2_vl", min_pixels=1, patch_size=16, **more)
        case "internvl":
            more = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
            return image_processor("GotOcr2ImageProcessor", "got_ocr2", size=square, crop_to_patches=False, **more)
        case "paligemma":
            return image_processor("SiglipImageProcessor", "siglip", size=square)
    return image_processor("Idefics3ImageProcessor", "idefics3", do_image_splitting=False, **edges)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "paligemma", "internvl", "idefics3"])
def test_pictures_are_prepared_as_the_models_own_processors_do(family: str) -> None:
    model = shared(family, "tokens")
    height, width = model.spec.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (3, height, width, 3), dtype=np.uint8)
    wanted = own_processor(family)(images=list(pixels), return_tensors="pt")
    found = model.backbone.family.pack(torch.from_numpy(pixels)[None], torch.float32, teacher=False)
    torch.testing.assert_close(found["pixel_values"].flatten(), wanted["pixel_values"].flatten(), atol=1e-5, rtol=0)
    if "image_grid_thw" in wanted:
        assert torch.equal(found["image_grid_thw"], wanted["image_grid_thw"])


@pytest.mark.parametrize("family", ["paligemma", "idefics3"])
def test_prompts_are_made_as_the_models_own_processors_do(family: str) -> None:
    """For the two whose processors can be had without torchvision; they add tokens, so they get a tokenizer of their own."""
    model = shared(family, "tokens")
    (given,) = some_inputs(1)
    text, tokenizer, images = model.build_prompt(given), copy.deepcopy(model.tokenizer), own_processor(family)
    if family == "paligemma":
        images.image_seq_length = 16
        if VERSION < (5, 0):  # it insists on the class
            tokenizer.__class__ = transformers.GemmaTokenizerFast
            tokenizer.__dict__.update(_add_bos_token=False, _add_eos_token=False)
        processor = transformers.PaliGemmaProcessor(images, tokenizer)
        text = text.removesuffix("\n").replace("<bos>", "")
    else:
        processor = transformers.Idefics3Processor(images, tokenizer, image_seq_len=4)
    wanted = processor(text=[text], images=[[np.zeros((56, 56, 3), np.uint8)]], return_tensors="pt")["input_ids"]
    assert torch.equal(draw(model, given).record["input_ids"], wanted)


@pytest.mark.parametrize("family", sorted(SIZES))
def test_positions_of_qwen_are_its_own_and_a_film_is_its_pictures(family: str) -> None:
    """Against ``get_rope_index``, with two pictures and rows of unequal length; and the vision tower on both layouts."""
    model = make(family, cameras=("a", "b"))
    record = draw(model, some_inputs(3, cameras=("a", "b"))).record
    ids, mask = record["input_ids"], record["attention_mask"]
    apart = model.backbone.family.pack(record["pixel_values"], torch.float32, teacher=False)
    more = model.backbone.family.generation(ids, mask)
    inner = model.backbone.model.model
    theirs, _ = inner.get_rope_index(ids, image_grid_thw=apart["image_grid_thw"], attention_mask=mask, **more)
    ours = model.backbone.family.layout(ids, mask.bool(), mask.bool(), torch.float32)["position_ids"]
    assert torch.equal(ours.where(mask.bool(), 0), theirs.where(mask.bool(), 0))
    film = model.backbone.family.pack(record["pixel_values"], torch.float32, teacher=True)
    assert film["image_grid_thw"].shape == (1, 3)

    def features(packed: dict[str, Tensor]) -> Tensor:
        found = inner.get_image_features(packed["pixel_values"], packed["image_grid_thw"])
        found = getattr(found, "pooler_output", found)
        found = found[0] if isinstance(found, tuple) and isinstance(found[0], (list, tuple)) else found
        return torch.cat(list(found))

    torch.testing.assert_close(features(film), features(apart), atol=1e-5, rtol=0)


def test_a_family_that_nobody_listed(tmp_path: Path) -> None:
    """LLaVA: its picture tokens are counted by asking the model."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    text = tiny_config("tiny:smolvlm").text_config
    assert isinstance(text, LlamaConfig)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    tower = CLIPVisionConfig(**sizes, image_size=56, patch_size=14)
    tokenizer = tiny_tokenizer("tiny:llava_onevision")
    image = tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaConfig(vision_config=tower, text_config=text, image_token_index=image)
    torch.manual_seed(0)
    weights = transformers.AutoModelForImageTextToText.from_config(config)
    weights.save_pretrained(tmp_path)
    Base("llava", config, tokenizer, {}).save(tmp_path)
    model = create_model("hf_vlm", model_path=tmp_path)
    assert model.backbone.family.tokens_per_image == 16
    drawn = draw(model, some_inputs(2), num_samples=2)
    torch.testing.assert_close(model.evaluate_actions(drawn.record)["logprobs"], drawn.logprobs, atol=1e-5, rtol=0)


# -- options -----------------------------------------------------------------------------------------------------------------


def test_a_frozen_vision_tower_and_checkpointed_layers() -> None:
    plain, saving = (make("qwen2_5_vl", freeze_vision=True, gradient_checkpointing=c) for c in (False, True))
    record = draw(plain, some_inputs(2)).record
    gradients = []
    for model in (plain, saving):
        model.evaluate_actions(record)["logprobs"].sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        assert not gradients[-1].keys() & set(vision(model))
        assert not any(module.training for module in model.modules())
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4)


def test_checkpointed_layers_are_run_twice() -> None:
    model = make("smolvlm", gradient_checkpointing=True)
    record = draw(model, some_inputs(1)).record
    runs: list[int] = []
    model.backbone.model.model.text_model.layers[0].input_layernorm.register_forward_hook(lambda *_: runs.append(1))
    loss = model.evaluate_actions(record)["logprobs"].sum()
    assert len(runs) == 1
    loss.backward()
    assert len(runs) == 2


# -- saving ------------------------------------------------------------------------------------------------------------------


def test_lora_is_saved_merged_and_exported(tmp_path: Path) -> None:
    model = make("qwen2_5_vl", language_model={"lora_enabled": True, "lora": {"rank": 4, "targets": ["q_proj", "v_proj"]}})
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.3)
    drawn = draw(model, some_inputs(2))
    model.save_pretrained(tmp_path / "lora")
    loaded = VLAForDriving.from_pretrained(tmp_path / "lora")
    torch.testing.assert_close(loaded.evaluate_actions(drawn.record)["logprobs"], drawn.logprobs, atol=1e-5, rtol=0)
    model.export(tmp_path / "plain")
    assert any("lora_" in name for name, _ in model.named_parameters())
    assert merge_lora(model)
    torch.testing.assert_close(model.evaluate_actions(drawn.record)["logprobs"], drawn.logprobs, atol=1e-4, rtol=0)
    model.save_pretrained(tmp_path / "merged")
    merged = VLAForDriving.from_pretrained(tmp_path / "merged")
    assert not any("lora_" in name for name, _ in merged.named_parameters())
    torch.testing.assert_close(merged.evaluate_actions(drawn.record)["logprobs"], drawn.logprobs, atol=1e-4, rtol=0)

    # The export is what transformers itself, and any server on it, reads: the same logits, with no part of ours.
    theirs = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "plain").eval()
    model.backbone.family.prepare(theirs)  # 5.3.0 misplaces pictures
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "plain")
    prompt = {k: drawn.record[k][:1] for k in ("input_ids", "attention_mask", "pixel_values")}
    assert tokenizer.decode(drawn.record["completion_ids"][0]).startswith("<action_")
    packed = model.backbone.family.pack(prompt["pixel_values"], torch.float32, teacher=False)
    with torch.no_grad():
        more = model.backbone.family.generation(prompt["input_ids"], prompt["attention_mask"])
        logits = theirs(input_ids=prompt["input_ids"], attention_mask=prompt["attention_mask"], **packed, **more).logits
    torch.testing.assert_close(logits[:, -1:], merged(**prompt).logits, atol=1e-3, rtol=0)


def test_a_checkpoint_is_a_base_model_for_another(tmp_path: Path) -> None:
    """What was exported can be the base of a new model: its action tokens keep what they have learnt."""
    model = make("smolvlm")
    model.export(tmp_path / "base")
    heir = create_model("hf_vlm", model_path=tmp_path / "base")
    torch.testing.assert_close(heir.backbone.actions.output, model.backbone.actions.output)
    drawn = draw(model, some_inputs(2))
    torch.testing.assert_close(heir.evaluate_actions(drawn.record)["logprobs"], drawn.logprobs, atol=1e-5, rtol=0)
    assert draw(
        create_model("hf_vlm", model_path=tmp_path / "base", policy_head={"type": "gaussian"}), some_inputs(1)
    ).valid.all()


def test_foreign_and_damaged_checkpoints_are_refused(tmp_path: Path) -> None:
    model = shared("smolvlm", "tokens")
    path = model.save_pretrained(tmp_path / "saved")
    with pytest.raises(CheckpointError, match="HFVLM"):
        TinyVLA.from_pretrained(path)
    config = json.loads((path / "config.json").read_text())
    assert config["arguments"]["language_model"] == {"base_model": "tiny:smolvlm"}
    assert "base_folder" not in config["arguments"]
    (path / "value_head.safetensors").unlink()
    with pytest.warns(UserWarning, match="value"):
        VLAForDriving.from_pretrained(path)
    weights = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(CheckpointError, match="corrupt"):
        VLAForDriving.from_pretrained(path)
    (path / "model.safetensors").write_bytes(weights)
    (path / "base" / "config.json").unlink()
    with pytest.raises((CheckpointError, ConfigError), match="base"):
        VLAForDriving.from_pretrained(path)


# -- what cannot be ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"language_model": {"base_model": "tiny:smolvml"}}, "smolvlm"),
        ({"language_model": {"base_model": "/nowhere/at/all"}}, "/nowhere/at/all"),
        ({"image_size": (57, 57)}, r"image_size.*\[56, 56\]"),
        ({"language_model": {"base_model": "tiny:qwen2_5_vl"}, "image_size": (60, 84)}, r"multiples of 28 .*\[56, 84\]"),
        ({"dtype": "float8"}, "float8"),
        ({"learn": "nothing"}, "learn"),
        ({"prompt": {"language": "fr"}}, "language"),
        ({"policy_head": {"type": "tokens", "sigma": 0.3}}, "sigma"),
        ({"policy_head": {"type": "tokens", "codebook": "nowhere"}}, "codebook"),
        ({"policy_head": {"type": "tokenz"}}, "tokenz"),
        ({"language_model": {"base_model": "tiny:smolvlm", "lora": {"rank": 2}}}, "lora_enabled"),
    ],
)  # fmt: skip
def test_configurations_that_cannot_be(options: dict[str, Any], named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match=named):
        create_model("hf_vlm", **options)


def test_inputs_that_cannot_be() -> None:
    model = make("smolvlm", max_prompt_tokens=300)
    good, given = some_inputs(2)
    for change, named, error in (
        ({"images": None}, "no images", ImageError),
        ({"text": "word " * 500}, r"input 1: its prompt has \d+ tokens, and this model reads 300", SceneError),
        ({"text": "look: <image>"}, "input 1: the prompt has 2 places for 1 picture", SceneError),
        ({"ego_state": {"speed": float("nan")}}, "speed is nan", SceneError),
        ({"route": np.zeros((0, 2))}, "route", SceneError),
    ):
        with pytest.raises(error, match=named):
            model.predict([good, VLAInput(**{**given.__dict__, **change})])
    for options, named in (({"top_p": 0.0}, "top_p"), ({"temperature": 0.0}, "temperature"), ({"beams": 2}, "beams")):
        with pytest.raises(VLAModelsError, match=named):
            model.predict(given, **options)
    with pytest.raises(VLAModelsError, match="0 inputs"):
        model.predict([])
    with pytest.raises(PlanError, match="9"):
        model.predict_waypoints("go", given.images, num_waypoints=9)
    with pytest.raises(PlanError, match="2 inputs"):
        model.record_from_plans([good, given], np.zeros((3, 8, 3)))
    with pytest.raises(ConfigError, match="image_size"):
        model.encode_image(given.images, (10, 10))
    with pytest.raises(VLAModelsError, match="one text"):
        model.encode_multimodal(["a", "b"], given.images)


@pytest.mark.parametrize("head", ["tokens", "gaussian"])
def test_overflow_is_named(head: str) -> None:
    model = make("smolvlm", head, dtype="bfloat16")
    with torch.no_grad():
        model.backbone.model.model.text_model.layers[1].mlp.down_proj.weight.fill_(torch.inf)
    with pytest.raises(DivergenceError, match="not finite"):
        draw(model, some_inputs(1))
