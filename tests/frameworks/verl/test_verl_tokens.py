"""The token route: a tiny Qwen2.5-VL with random weights, verl's processor, agent loop and language-model engine."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import cpu_tokens
import one_process as one
import pytest
import torch

from vla_models.config import VLAConfig
from vla_models.errors import ConfigError
from vla_models.frameworks.verl.native import AGENTS
from vla_models.frameworks.verl.tokens import DrivingAgentLoop, trained
from vla_models.inputs import VLAInput
from vla_models.model_registry import create_model

FP32 = {"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"}


def options(**own: Any) -> dict[str, Any]:
    """What a CPU needs of verl's language-model engine."""
    model = {"use_remove_padding": False, "enable_gradient_checkpointing": False}
    return {
        "vla_models": {"route": "tokens", **own},
        "actor_rollout_ref": {
            "model": {**model, "override_config": {"attn_implementation": "sdpa"}},
            "actor": {"fsdp_config": {"mixed_precision": FP32}, "ppo_micro_batch_size_per_gpu": 4},
            "rollout": {"name": "cpu_tokens", "free_cache_engine": False},
        },
    }


def configuration(environment: str, **own: Any) -> VLAConfig:
    data = one.configuration(environment, "small_gaussian", framework_options={**options(), **own}).to_dict()
    data["model"] = {
        "name": "hf_vlm",
        "language_model": {"base_model": "tiny:qwen2_5_vl"},
        "policy_head": {"type": "tokens"},
        "options": {"image_size": [56, 56]},
    }
    return VLAConfig.from_dict(data)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """All settings first: with its engine verl changes transformers' class, and hf_vlm cannot write here any more."""
    wanted = {
        "navsim": configuration("navsim"),
        "bench2drive": configuration("bench2drive"),
        "short": configuration("navsim", data={"max_prompt_length": 9}),
    }
    return {name: one.setting(tmp_path_factory.mktemp(name), config) for name, config in wanted.items()}


@pytest.fixture(scope="module", params=["navsim", "bench2drive"])
def made(request: pytest.FixtureRequest, settings: Any) -> Any:
    """A setting, its engine and a rollout of two groups of two."""
    s = settings[request.param]
    return (s, s.engine(), *one.trajectories(s, [scene for scene in scenes_of(s) for _ in range(2)]))


def scenes_of(s: Any) -> list[str]:
    """Two training scenes."""
    if s.config.environment.type == "bench2drive":
        return ["go2", "go3"]
    return list(json.loads(Path(s.cfg.data.train_files).read_text())["scenes"][:2])


def test_prompts_have_pictures_and_answers_are_driven(made: Any) -> None:
    s, _, data, keys = made
    assert s.cfg.actor_rollout_ref.rollout.agent.default_agent_loop == AGENTS["tokens"]
    assert len(keys) >= 4
    image = s.model_config.hf_config.image_token_id
    for i in range(len(keys)):
        ids, answer = data["prompts"][i], data["responses"][i]
        assert (ids == image).sum() == 4  # 56 x 56 pixels, patches of 14, merged by 2 x 2
        assert 1 <= len(answer) <= s.cfg.data.max_response_length
        assert data["response_mask"][i].all()
        assert data["multi_modal_inputs"][i]["pixel_values"].shape == (16, 1176)
    # random weights write no plans: the car brakes, the answer is rewarded as configured and counted
    final = [row for row in data["extra"] if "reward_extra_info" in row]
    assert len({key.rsplit("_", 1)[0] for key in keys}) == 4
    assert all(row["reward_extra_info"]["invalid_answers"] == row["reward_extra_info"]["decisions"] for row in final)


def test_the_prompt_is_the_models_own(made: Any) -> None:
    """What hf_vlm itself would read, token for token, and the same pixels."""
    s, *_ = made
    loop = DrivingAgentLoop.__new__(DrivingAgentLoop)
    loop.settings, loop.processor = s.cfg.vla_models, s.model_config.processor
    model: Any = create_model("hf_vlm", model_path=s.cfg.vla_models.speaker)
    given = VLAInput(
        text="Drive on", images={"front": torch.randint(0, 255, (40, 60, 3), dtype=torch.uint8).numpy()},
        ego_state={"speed": 3.0}, command="left",
    )  # fmt: skip
    ids, images = loop.prompt(given)
    record = model.prompts.encode([given])
    assert ids == record["input_ids"][0].tolist()
    ours = model.backbone.family.pack(record["pixel_values"], torch.float32, teacher=True)
    theirs = s.model_config.processor.image_processor(images=images, return_tensors="pt")
    torch.testing.assert_close(theirs["pixel_values"], ours["pixel_values"], atol=1e-5, rtol=0)


def test_the_engine_recomputes_what_the_server_sampled_with(made: Any) -> None:
    _, engine, data, _ = made
    out = one.replayed(engine, data)["log_probs"]
    mask = data["response_mask"].to_padded_tensor(0).bool()
    sampled = data["rollout_log_probs"].to_padded_tensor(0.0)
    assert (out - sampled)[mask].abs().max() <= 1e-5
    assert (torch.roll(out, 1, dims=1) - sampled)[mask].abs().max() > 1e-2


def test_a_step_changes_the_weights_and_the_checkpoint_is_a_model_of_ours(made: Any, tmp_path: Path) -> None:
    s, engine, data, _ = made
    old = one.replayed(engine, data)["log_probs"]
    before = one.weights(engine)
    better = torch.zeros_like(old)
    better[0] = 1.0
    one.train(engine, data, s.loss(), old_log_probs=old, advantages=better)
    assert any(not torch.equal(value, before[name]) for name, value in one.weights(engine).items())
    engine.save_checkpoint(str(tmp_path / "global_step_1" / "actor"), None, 1)
    model: Any = create_model("hf_vlm", model_path=s.cfg.vla_models.speaker)
    copy = trained(model, tmp_path / "global_step_1")
    copy.save_pretrained(tmp_path / "update")
    again: Any = create_model("hf_vlm", model_path=tmp_path / "update")
    prompt, answer = data["prompts"][0], data["responses"][0]
    engine_now = one.replayed(engine, data)["log_probs"][0, : len(answer)]
    picture = data["multi_modal_inputs"][0]
    ids = torch.cat([prompt, answer])[None]
    places = cpu_tokens.positions(s.model_config.processor, ids, picture["image_grid_thw"])
    seen = {name: picture[name] for name in ("pixel_values", "image_grid_thw")}
    out = again.backbone.model(input_ids=ids, position_ids=places, use_cache=False, **seen)
    logits = out.logits[0, len(prompt) - 1 : -1]
    found = logits.float().log_softmax(-1).gather(-1, answer[:, None])[:, 0]
    torch.testing.assert_close(found, engine_now, atol=1e-4, rtol=0)


def test_what_is_written_as_a_plan_is_driven(made: Any) -> None:
    s, *_ = made
    loop = DrivingAgentLoop.__new__(DrivingAgentLoop)
    loop.settings = s.cfg.vla_models
    speaker = loop.speaker()
    assert next(speaker.backbone.parameters()).is_meta
    ids = speaker._answers.write(torch.zeros(1, 8, 3), torch.zeros(1))
    plans, valid = speaker.parse(ids, [0.0])
    assert valid.tolist() == [True]
    assert plans.shape == (1, 8, 3)


@pytest.mark.parametrize(("at", "kept"), [(0, [2]), (5, [100, 101, 102, 103, 104]), (8, [*range(100, 108)])])
@pytest.mark.parametrize("kind", ["image_token_id", "video_token_id"])
def test_an_answer_ends_before_a_token_that_stands_for_a_picture(made: Any, kind: str, at: int, kept: list[int]) -> None:
    """verl would look for the picture behind it, and raise; ``cpu_tokens`` samples one, too."""
    s, engine, *_ = made
    said = [*range(100, 108)]
    if at < 8:
        said[at] = getattr(s.model_config.hf_config, kind)

    class Server:
        async def generate(self, *_: Any, **__: Any) -> cpu_tokens.TokenOutput:
            return cpu_tokens.TokenOutput(token_ids=said, log_probs=[-1.0] * 8, extra_fields={"global_steps": 1})

    data, _ = one.trajectories(dataclasses.replace(s, server=Server()), [scenes_of(s)[0]])
    for answer, mask, logprobs in zip(data["responses"], data["response_mask"], data["rollout_log_probs"], strict=True):
        assert answer.tolist() == kept
        assert mask.tolist() == ([1] * len(kept) if at else [0])
        assert logprobs.tolist() == ([-1.0] * len(kept) if at else [0.0])
    assert one.replayed(engine, data)["log_probs"].isfinite().all()


def test_a_prompt_that_is_too_long_is_named_with_its_scene(settings: Any) -> None:
    s = settings["short"]
    scene = json.loads(Path(s.cfg.data.train_files).read_text())["scenes"][0]
    data = one.fields_of(s, [scene])
    worker = one.AgentLoopWorker(s.cfg, one.Client(s.server), None, None)
    loop = DrivingAgentLoop(
        trainer_config=type("W", (), {"config": s.cfg}), server_manager=one.Client(s.server), tokenizer=worker.tokenizer,
        processor=worker.processor, dataset_cls=worker.dataset_cls, data_config=type("W", (), {"config": s.cfg.data}),
    )  # fmt: skip
    assert one.asyncio.run(loop.run({"temperature": 1.0}, **{name: values[0] for name, values in data.items()})) == []
    reason = json.loads(Path(s.cfg.vla_models.dropped).read_text().splitlines()[-1])["reason"]
    assert reason.startswith(f"scene {scene}: its prompt has ")
    assert "raise framework_options.data.max_prompt_length" in reason


def test_a_model_that_writes_nothing_is_refused(tmp_path: Path) -> None:
    from vla_models.frameworks.verl.launch import launch

    config = one.configuration("navsim", "small_gaussian", framework_options=options(), output_dir=str(tmp_path))
    with pytest.raises(ConfigError, match="tokens need a model that writes its plans, with parse, export, prompts"):
        launch(config)
