"""The token route: a tiny Qwen2.5-VL with pictures through AReaL's own FSDP engine and SGLang client, on a CPU."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import loop
import numpy as np
import pytest
import torch
from areal.api import FinetuneSpec, cli_args
from areal.infra.workflow_executor import check_trajectory_format
from areal.utils import stats_tracker
from areal.utils.data import concat_padded_tensors
from golden import visible_scenes
from sglang_double import Server

from vla_models.config import VLAConfig
from vla_models.errors import ConfigError
from vla_models.frameworks import get_launcher, run_folder
from vla_models.frameworks.areal import runner, sequences, tokens, trainer
from vla_models.frameworks.areal.sequences import PAYLOAD
from vla_models.frameworks.areal.workflow import DrivingWorkflow
from vla_models.inputs import VLAInput, VLASpec
from vla_models.interface import VLAForDriving
from vla_models.model_registry import VLAModelRegistry, create_model
from vla_models.training.metrics import read_metrics
from vla_models.training.objective import policy_terms

ALONE = 500
"""Slots of a forward: one of our sequences fits, two do not (with sdpa, AReaL would let them see each other)."""


def configuration(environment: str = "navsim", *overrides: str) -> VLAConfig:
    settings = loop.configuration(environment, "tiny_vla").to_dict()
    settings["model"] = {
        "name": "hf_vlm",
        "language_model": {"base_model": "tiny:qwen2_5_vl"},
        "policy_head": {"type": "tokens"},
        "options": {"image_size": [56, 84], "horizon": 8},
    }
    settings["algorithm"] |= {"group_size": 3}
    settings["reward"] |= {"invalid": -3.0}
    settings["training"] |= {"steps": 2, "checkpoint_every": 1}
    actor = {"mb_spec": {"max_tokens_per_mb": ALONE}, "optimizer": {"lr": 1e-2}}
    settings["framework_options"] = {"vla": {"route": "tokens"}, "actor": actor}
    return VLAConfig.from_dict(settings, overrides)


@pytest.fixture(autouse=True)
def no_sglang(monkeypatch: pytest.MonkeyPatch) -> None:
    """AReaL asks for SGLang's version to make a command line that this mode does not use."""
    monkeypatch.setattr(cli_args.SGLangConfig, "build_args", staticmethod(lambda **unused: {}))


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Run folder, server, AReaL's client and engine, without its trainer."""
    closing: list[Any] = []

    def make(config: VLAConfig) -> tuple[DrivingWorkflow, Any, Any, Server]:
        from areal.engine import FSDPPPOActor, RemoteSGLangEngine

        monkeypatch.setitem(VLAModelRegistry._env_adapters, config.environment.type, {"areal": loop.GoldenNavSim})
        torch.manual_seed(0)
        model = create_model("hf_vlm", **config.model.arguments())
        with torch.no_grad():  # sharper than random weights are, so that probabilities and pictures matter
            model.backbone.actions.output.mul_(4.0)
            model.backbone.model.get_input_embeddings().weight.mul_(4.0)
        plain = tokens.export(model, tmp_path / "areal" / "start")
        model.save_pretrained(tmp_path / "model")
        config.to_yaml(tmp_path / "config.yaml")
        native = loop.native_config.make(config, tmp_path, plain, plain, 0)
        loop.native_config.check(native)
        limits = {key: native["vla"][key] for key in ("environments", "threads", "limit")}
        spec = {"horizon": 8, "dt": 0.5, "controller": "pid"}
        settings = {
            "config": str(tmp_path / "config.yaml"), "route": "tokens", "model": str(tmp_path / "model"), "spec": spec,
            "environments": limits, "record": {"sizes": {}, "parts": 1},
        }  # fmt: skip
        path = tmp_path / "settings.json"
        path.write_text(loop.json.dumps(settings))
        areal = runner.structured(native)
        server = Server(plain).__enter__()
        monkeypatch.setenv(runner.SERVERS, server.address)
        actor = FSDPPPOActor(areal.actor)
        actor.create_process_group()
        actor.initialize(addr=None, ft_spec=FinetuneSpec(1, 4, 2))
        rollout = RemoteSGLangEngine(areal.rollout)
        rollout.initialize(engine_id="0", train_data_parallel_size=1)
        workflow = DrivingWorkflow(str(path))
        closing.extend([rollout.destroy, workflow.close, lambda: server.__exit__()])
        return workflow, rollout, actor, server

    yield make
    for close in closing:
        close()
    stats_tracker.export_all()


def test_a_written_plan_replays_in_areals_own_engine(start: Callable[..., Any]) -> None:
    """Prompt, pictures, answers and rewards: ratio 1, AReaL's loss against ours, and weights that change, vision included."""
    config = configuration()
    workflow, rollout, actor, server = start(config)
    batch = rollout.rollout_batch([{"scene": scene} for scene in loop.SCENES["navsim"][:2]], workflow)
    assert len(batch) == 2
    assert server.generated == 6
    stats = stats_tracker.export_all()
    assert stats["rollout/invalid"] == 0.0
    for d in batch:
        assert check_trajectory_format(d, expected_keys=set(batch[0]))
        assert [len(entry["image_grid_thw"]) for entry in d[PAYLOAD]] == [1, 1, 1]
        counts = d["loss_mask"].bool()
        assert (d["versions"][counts] == 0).all()
        assert ((d["mm_token_type_ids"] == 1).sum(1) == 6).all()  # 4 × 6 patches, merged by 2 × 2
    for d, logprobs in zip(batch, actor.compute_logp(batch), strict=True):
        counts = torch.roll(d["loss_mask"], -1, dims=-1).bool()
        old = torch.roll(d["logprobs"], -1, dims=-1)
        assert float((logprobs - old)[counts].abs().max()) < 1e-5
        assert float(old[counts].std()) > 0.1
    # it matters what is seen
    blind = copy.deepcopy(batch)
    for d in blind:
        for entry in d[PAYLOAD]:
            entry["pixel_values"] = torch.zeros_like(entry["pixel_values"])
    seen, unseen = actor.compute_logp(batch)[0], actor.compute_logp(blind)[0]
    assert float((seen - unseen).abs().max()) > 1e-4

    for d in batch:  # whatever this model's random answers were worth
        assert abs(float(d["rewards"].sum())) < 1e-5
        d["rewards"] = torch.tensor([1.0, 0.0, -1.0])
    before = {name: parameter.full_tensor().clone() for name, parameter in actor.model.named_parameters()}
    done = actor.compute_advantages(copy.deepcopy(batch))
    whole = concat_padded_tensors(done)
    counts = whole["loss_mask"].bool()
    expected = policy_terms(whole["logprobs"], whole["logprobs"], whole["rewards"], counts, clip_low=0.2, clip_high=0.28)
    actor.ppo_update(done)
    stats = actor.export_stats()
    assert stats["ppo_actor/update/actor_loss/avg"] == pytest.approx(expected.loss.item(), abs=1e-4)
    assert stats["ppo_actor/update/importance_weight/avg"] == pytest.approx(1.0, abs=1e-5)
    after = {name: parameter.full_tensor() for name, parameter in actor.model.named_parameters()}
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert any("visual" in name for name in moved)
    assert any("embed_tokens" in name for name in moved)


@pytest.mark.parametrize("place", [0, 2, None])
def test_an_answer_ends_before_a_pictures_token(place: int | None, start: Callable[..., Any]) -> None:
    """A server may write one, and the model would look for the picture behind it."""
    workflow, _, actor, _ = start(configuration())
    settings = workflow.policy.model.backbone.model.config
    written = [20, 21, 22, 23]
    if place is not None:
        written[place] = settings.video_token_id if place else settings.image_token_id

    class Engine:
        async def agenerate(self, request: Any) -> Any:
            return SimpleNamespace(output_tokens=written, output_logprobs=[-1.0] * 4, output_versions=[0] * 4)

    golden = loop.GoldenNavSim.make_env(workflow.config, "train", 1, VLASpec(horizon=8, dt=0.5))
    given = VLAInput.batch(golden.reset()[0])
    _, row = asyncio.run(workflow.policy.decide(Engine(), given, 1, deterministic=False))
    assert int(row.counts.sum()) == (4 if place is None else place)
    if row.counts.any():
        made = sequences.trajectory(row, torch.zeros(1))
        assert torch.isfinite(actor.compute_logp([made])[0]).all()


def test_an_answer_that_is_no_plan_is_rewarded_as_configured(start: Callable[..., Any]) -> None:
    workflow, rollout, _, server = start(configuration())
    original = server.next_token

    def babble(ids: list[int], pictures: Any, temperature: float) -> tuple[int, float]:
        token, logprob = original(ids, pictures, temperature)
        return (5, -1.0) if server.generated % 2 else (token, logprob)  # every other answer is a common word again and again

    server.next_token = babble  # type: ignore[method-assign]
    rollout.rollout_batch([{"scene": loop.SCENES["navsim"][0]}], workflow)
    stats = stats_tracker.export_all()
    assert stats["rollout/invalid_answers"] >= 1.0
    assert stats["rollout/invalid"] == 0.0
    assert stats["rollout/return"] <= 0.0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.policy_head.type=gaussian"], "its gaussian head draws plans from the hidden state"),
        (["model.options.learn=action"], "model.options.learn is 'action'"),
        (["model.language_model.base_model=tiny:smolvlm", "model.options.image_size=null"], "not smolvlm; use route: record"),
    ],
)
def test_what_areals_engine_cannot_train_is_refused(overrides: list[str], message: str) -> None:
    config = configuration("navsim", *overrides)
    model = create_model("hf_vlm", **config.model.arguments())
    with pytest.raises(ConfigError, match=message):
        tokens.writer(model)


def test_an_export_is_adopted_exactly(tmp_path: Path) -> None:
    config = configuration("navsim", "model.language_model.lora_enabled=true")
    torch.manual_seed(0)
    model = create_model("hf_vlm", **config.model.arguments())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    again = tokens.adopt(config, tokens.export(model, tmp_path / "plain"))
    from vlm_cases import draw, some_inputs

    record = draw(model, some_inputs(2), num_samples=2).record
    a, b = (m.evaluate_actions(record) for m in (model, again))
    torch.testing.assert_close(a["logprobs"], b["logprobs"], atol=1e-5, rtol=0)


def test_without_a_server_it_says_how_to_start_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(runner.SERVERS, raising=False)
    native = loop.native_config.make(configuration(), tmp_path, tmp_path / "start", tmp_path / "start", 0)
    record = type("Record", (), {"path": tmp_path})()
    with pytest.raises(ConfigError, match=r"start SGLang on .*start and set AREAL_LLM_SERVER_ADDRS=host:port"):
        runner.run(native, record, [], [])


@pytest.mark.slow
@pytest.mark.parametrize("late", [0, 2])
def test_the_real_trainer_with_a_server(late: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions advance, weights change, aborted generations resume, and the checkpoints are those of a driving model."""
    golden = visible_scenes(6)
    monkeypatch.setattr(run_folder, "build_scenes", lambda config, part: golden[:4] if part == "train" else golden[4:])
    monkeypatch.setitem(VLAModelRegistry._env_adapters, "navsim", {"areal": loop.GoldenNavSim})
    config = configuration(
        "navsim", f"output_dir={tmp_path / 'runs'}", f"framework_options.rollout.max_head_offpolicyness={late}",
        f"training.steps={2 + late}", "training.imitation.steps=2",
    )  # fmt: skip
    servers: list[Server] = []
    original = runner.run

    def served(native: Any, *arguments: Any) -> Any:
        server = Server(Path(native["actor"]["path"]), held=2 if late else None)  # the first step's two groups
        with server:
            servers.append(server)
            monkeypatch.setenv(runner.SERVERS, server.address)
            return original(native, *arguments)

    monkeypatch.setattr(runner, "run", served)
    mixed = 0

    def looked(batch: Any, *arguments: Any) -> Any:
        nonlocal mixed
        for d in batch:
            counted = [versions[counts.bool()] for versions, counts in zip(d["versions"], d["loss_mask"], strict=True)]
            mixed += sum(len(versions.unique()) > 1 for versions in counted)
        return sequences.staleness(batch, *arguments)

    monkeypatch.setattr(trainer, "staleness", looked)
    folder = get_launcher("areal")(config)
    rows = [row for row in read_metrics(folder) if row["phase"] == "rl"]
    steps = 2 + late
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    (server,) = servers
    assert server.updates == steps
    assert [Path(path).name for path in server.loaded[1:]] == [f"weight_update_v{i}" for i in range(1, steps + 1)]
    if late:
        assert server.aborts > 0  # and what was begun went on with new weights
        assert mixed > 0
        assert max(row["staleness_max"] for row in rows) >= 1
    first, last = (VLAForDriving.from_pretrained(folder / "checkpoints" / f"update-{n:07d}") for n in (1, steps))
    weights = last.state_dict()
    assert any(not torch.equal(value, weights[name]) for name, value in first.state_dict().items())
    # ahead of training, the episodes of the last update may all have ended before it
    rewards = [row["reward_mean"] for row in rows if "reward_mean" in row]
    assert rewards
    assert np.isfinite(rewards).all()
    assert (folder / "report.html").is_file()
    assert last.head is None  # it writes its plans, as before
