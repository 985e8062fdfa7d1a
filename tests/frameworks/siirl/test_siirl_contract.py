"""The contract suite against the real siiRL: every head × both environments through its graph, reward, advantages, losses."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import itertools
import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import loop
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from siirl.dag_worker.dagworker import NodeOutput
from tensordict import TensorDict

from vla_models.errors import CheckpointError, ConfigError, DivergenceError, MissingDependency, SceneError, VLAModelsError
from vla_models.frameworks.siirl import compat, native
from vla_models.frameworks.siirl.batch import RECORDS, SURVIVING, decision_mask
from vla_models.frameworks.siirl.env import SiirlEnvAdapter
from vla_models.frameworks.siirl.worker import DriveWorker
from vla_models.model_registry import create_model, register_framework_adapter

CRASH = 4
pairs = pytest.mark.parametrize(
    ("environment", "head"),
    [("toy", "small_tokens"), *((environment, head) for environment in ("navsim", "bench2drive") for head in loop.HEADS)],
)


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_siirl_has_what_we_use() -> None:
    """Names and signatures of siiRL 0.2.0; another version has to be looked at."""
    core: Any = importlib.import_module("siirl.dag_worker.core_algos")
    dag: Any = importlib.import_module("siirl.execution.dag")
    worker: Any = importlib.import_module("siirl.engine.base_worker")
    main: Any = importlib.import_module("siirl.main_dag")
    utils: Any = importlib.import_module("siirl.dag_worker.dag_utils")
    reward: Any = importlib.import_module("siirl.engine.reward_manager.embodied")
    assert compat.installed() == "0.2.0"
    assert parameters(dag.Pipeline.add_node)[:5] == ["self", "node_id", "func", "deps", "config"]
    assert [f.name for f in dataclasses.fields(NodeOutput)] == ["batch", "metrics"]
    assert parameters(worker.Worker.__init__) == ["self", "cuda_visible_devices"]
    assert parameters(core.compute_policy_loss_vanilla)[:6] == [
        "old_log_prob", "log_prob", "advantages", "response_mask", "loss_agg_mode", "config",
    ]  # fmt: skip
    assert parameters(core.compute_gae_advantage_return) == ["token_level_rewards", "values", "response_mask", "gamma", "lam"]
    assert parameters(core.compute_value_loss)[:5] == ["vpreds", "returns", "values", "response_mask", "cliprange_value"]
    assert parameters(core.kl_penalty) == ["logprob", "ref_logprob", "kl_penalty"]
    assert parameters(core.compute_advantage)[:4] == ["data", "adv_estimator", "gamma", "lam"]
    assert parameters(main.load_pipeline) == ["siirl_args"]
    assert parameters(utils.get_worker_classes) == ["config", "strategy"]
    assert parameters(reward.EmbodiedRewardManager.__call__) == ["self", "data", "return_dict"]
    manager: Any = importlib.import_module("siirl.dag_worker.checkpoint_manager").CheckpointManager
    assert "local_path=checkpoint_path" in inspect.getsource(manager._save_model_states)
    assert parameters(DriveWorker.save_checkpoint)[1:] == ["local_path", "global_step", "max_ckpt_to_keep"]
    assert parameters(DriveWorker.load_checkpoint)[1:] == ["local_path", "del_local_after_load"]


def test_the_environment_is_siirls_and_libero_is_not_needed() -> None:
    """Its package ends the process where LIBERO is missing, with success as its exit code; ours loads the base alone."""
    base = compat.base_environment()
    assert issubclass(SiirlEnvAdapter, base)
    for name in ("reset", "step"):
        assert inspect.iscoroutinefunction(getattr(base, name))
        assert inspect.iscoroutinefunction(getattr(SiirlEnvAdapter, name))
    if importlib.util.find_spec("libero") is not None:
        pytest.skip("LIBERO is installed here")
    theirs = "import siirl.environment.embodied; print('imported')"
    ours = (
        "from vla_models.frameworks.siirl.compat import base_environment; base_environment(); "
        "import vla_models.frameworks.siirl.env; print('imported')"
    )
    said = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False) for code in (theirs, ours)
    ]
    assert [(s.returncode, "imported" in s.stdout) for s in said] == [(0, False), (0, True)]


@pytest.mark.parametrize("algorithm", ["grpo", "srpo", "ppo"])
def test_every_argument_is_siirls_and_arrives(algorithm: str, tmp_path: Path) -> None:
    r = loop.rank(tmp_path, loop.configuration("navsim", "small_gaussian", algorithm, kl_coef=0.1))

    def compare(given: Any, got: Any, path: str) -> None:
        for key, value in given.items():
            inner = got.get(key) if isinstance(got, dict) else getattr(got, key)
            if isinstance(value, dict):
                compare(value, inner, f"{path}.{key}")
            else:
                assert inner == value, f"{path}.{key}"

    compare({k: v for k, v in r.native.items() if k != native.OURS}, r.args, "")


@pytest.mark.parametrize("algorithm", ["grpo", "srpo", "ppo"])
@pytest.mark.parametrize("kl", [0.0, 0.1])
def test_siirl_loads_the_graph_and_finds_the_worker(algorithm: str, kl: float, tmp_path: Path) -> None:
    r = loop.rank(tmp_path, loop.configuration("navsim", "small_gaussian", algorithm, kl_coef=kl))
    expected = ["rollout", "sampling", "reward", "advantage", "old_log_prob", *(["reference"] if kl else []), "train"]
    assert list(r.graph.nodes) == expected
    assert [node.node_id for node in r.graph.get_entry_nodes()] == ["rollout"]
    for before, after in itertools.pairwise(expected):
        assert [node.node_id for node in r.graph.get_downstream_nodes(before)] == [after]
    assert all(type(worker) is DriveWorker for worker in r.workers.values())
    assert len({id(worker.policy) for worker in r.workers.values()}) == 1
    assert len(r.workers) == (3 if kl else 2)


@pairs
@pytest.mark.parametrize("algorithm", ["grpo", "srpo", "ppo"])
def test_a_step_of_training(environment: str, head: str, algorithm: str, tmp_path: Path) -> None:
    """Shapes, masks, the place of rewards, advantages, ratio and gradients of one rollout and one update."""
    if (head, algorithm) == ("my_vla", "ppo"):
        pytest.skip("it has no state values, and launch says so")
    r = loop.rank(tmp_path, loop.configuration(environment, head, algorithm))
    parts = r.policy.parts
    batch = r.until("reward", [0, 2])
    longest = batch["responses"].shape[1]
    assert batch["responses"].shape == (8, longest, parts)
    assert batch["responses"].dtype == torch.int64
    assert batch[RECORDS].dtype == torch.int64
    finish = batch["finish_step"]
    assert (finish == 1).all() if environment == "navsim" else (finish >= 1).all()
    rewards = batch["token_level_rewards"].view(8, longest, parts)
    if algorithm == "grpo":
        torch.testing.assert_close(rewards.sum((1, 2)), batch["episode_return"])
        assert (rewards.flatten(1).abs().argmax(1) == finish * parts - 1)[batch["episode_return"] != 0].all()
    elif algorithm == "ppo":
        torch.testing.assert_close(rewards[..., -1], batch["decision_rewards"])
    assert rewards[..., :-1].abs().max() == 0

    batch = r.node("advantage", batch)
    active = decision_mask(finish, longest).repeat_interleave(parts, dim=1)
    assert torch.equal(batch["response_mask"].bool(), active)  # what siiRL counts is what was driven
    if algorithm != "ppo":
        groups = batch["advantages"][:, 0].view(2, 4)
        assert groups.sum(dim=1).abs().max() < 1e-4
    batch = r.node("old_log_prob", batch)
    counted = batch["response_mask"]
    assert (counted <= active).all()
    assert bool((counted < active).any()) == (head == "small_tokens")
    assert batch["old_log_probs"][~counted].abs().max() == 0 if (~counted).any() else True

    before = {name: p.detach().clone() for name, p in r.policy.model.named_parameters()}
    signal = bool((batch["advantages"] * counted).abs().max() > 0)
    r.node("train", batch)
    assert abs(r.metrics["actor/ratio"] - 1.0) < 1e-5
    assert np.isfinite(r.metrics["actor/loss"])
    assert signal or algorithm == "srpo" or environment != "toy"  # elsewhere untrained plans may all score the same
    if signal:
        assert r.metrics["actor/grad_norm"] > 0
        assert any(not torch.equal(p, before[name]) for name, p in r.policy.model.named_parameters())


@pairs
@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_samples_that_siirl_moves_lose_nothing(environment: str, head: str, algorithm: str, tmp_path: Path) -> None:
    """Dict2Samples drops what it does not know; an update from what is left is the same, to the last bit."""
    if (head, algorithm) == ("my_vla", "ppo"):
        pytest.skip("it has no state values, and launch says so")
    updated = []
    for way in ("kept", "moved"):
        r = loop.rank(tmp_path / way, loop.configuration(environment, head, algorithm, kl_coef=0.1))
        batch = r.until("advantage", [1, 3])
        if way == "moved":
            whole, batch = batch, loop.moved(batch)
            assert "episode_return" not in batch
            for name in SURVIVING:
                if name in whole and name != "uid":
                    assert torch.equal(torch.as_tensor(batch[name]).float(), whole[name].float()), name
            assert "uid" in batch
        for name in ("old_log_prob", "reference"):
            batch = r.node(name, batch)
        if way == "moved":
            batch = loop.moved(batch)
        r.node("train", batch)
        updated.append(r.policy.model.state_dict())
    for name, value in updated[0].items():
        assert torch.equal(value, updated[1][name]), name


def test_srpo_rewards_failures_by_their_distance_to_the_successes(tmp_path: Path) -> None:
    """siiRL's own reward on embeddings that are known: successes 1, failures by distance, without a success 0."""
    r = loop.rank(tmp_path, loop.configuration("toy", "small_gaussian", "srpo"))
    batch = r.until("sampling", [2, 3])
    batch["complete"] = torch.tensor([True, False, False, True, False, False, False, False])
    embedding = torch.zeros(8, batch["vjepa_embedding"].shape[1])
    embedding[:4, 0] = torch.tensor([1.0, 9.0, 2.0, 1.2])
    embedding[4:, 0] = torch.tensor([1.0, 2.0, 3.0, 4.0])  # a scene without a success
    batch["vjepa_embedding"] = embedding
    rewarded = r.node("reward", batch)["token_level_rewards"].sum(1)
    expected = [1.0, 0.6 / (1 + np.exp(5.0)), 0.6 / (1 + np.exp(-5.0)), 1.0, 0.0, 0.0, 0.0, 0.0]
    assert rewarded.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("algorithm", ["grpo", "srpo", "ppo"])
def test_a_crashed_world_is_left_out_and_counted(algorithm: str, tmp_path: Path) -> None:
    """It has no finished step, no reward, no advantage and no part in its group; the others learn as without it."""
    r = loop.rank(tmp_path, loop.configuration("toy", "small_gaussian", algorithm))
    batch = r.until("old_log_prob", [2, CRASH])
    assert r.metrics["drive/invalid"] == 4.0
    assert (batch["finish_step"][4:] == 0).all()
    assert (batch["finish_step"][:4] > 0).all()
    assert not batch["response_mask"][4:].any()
    assert batch["token_level_rewards"][4:].abs().max() == 0
    assert (batch["advantages"] * batch["response_mask"])[4:].abs().max() == 0
    assert torch.isfinite(batch["advantages"]).all()
    r.node("train", batch)
    assert np.isfinite(r.metrics["actor/loss"])
    with pytest.raises(RuntimeError, match="none of 4 episodes was valid"):
        r.until("rollout", [CRASH])


def test_a_crash_within_a_group_leaves_its_companions_statistics_alone(tmp_path: Path) -> None:
    r = loop.rank(tmp_path, loop.configuration("toy", "small_gaussian"))
    worker = r.workers[loop.NodeRole.ROLLOUT]
    drive = worker._rollout("train").drive

    def one_fails(*args: Any, **kwargs: Any) -> Any:
        driven = drive(*args, **kwargs)
        driven.valid[1] = driven.valid[5] = driven.valid[6] = driven.valid[7] = False
        return driven

    worker._rollout("train").drive = one_fails  # type: ignore[method-assign]
    batch = r.until("old_log_prob", [2, 3])
    assert batch["finish_step"].tolist()[1] == 0
    assert batch["finish_step"].tolist()[4:] == [0, 0, 0, 0]  # one valid episode has nobody to be compared with
    scores = batch["episode_return"][[0, 2, 3]]
    expected = (scores - scores.mean()) / (scores.std() + 1e-6)
    torch.testing.assert_close(batch["advantages"][[0, 2, 3], 0], expected)


@pytest.mark.parametrize("error", ["raises", "nan"])
def test_a_reward_that_fails_stops_the_run(error: str, tmp_path: Path) -> None:
    """siiRL's own node would go on with zeros."""
    from siirl.execution.scheduler.reward import compute_reward

    r = loop.rank(tmp_path, loop.configuration("navsim", "small_gaussian"))
    batch = r.until("sampling", [0, 1])

    def broken(batch_data: Any, **unused: Any) -> Any:
        if error == "raises":
            raise ZeroDivisionError("no such score")
        return [{"score": float("nan")}] * 8

    r.dag.reward_fn.compute_score = broken
    if error == "raises":
        with pytest.raises(AttributeError):  # its fallback reads an attribute that no batch has
            compute_reward(batch, r.dag.reward_fn)
    with pytest.raises(RuntimeError, match="no such score" if error == "raises" else "not finite"):
        r.node("reward", batch)


def test_a_model_that_does_not_recompute_the_same_is_stopped(tmp_path: Path) -> None:
    r = loop.rank(tmp_path, loop.configuration("navsim", "small_gaussian"))
    batch = r.until("old_log_prob", [0, 1])
    batch["old_log_probs"] = batch["old_log_probs"] - 0.01
    with pytest.raises(RuntimeError, match=r"the ratio differs from 1 by 0\.01") as e:
        r.node("train", batch)
    assert isinstance(e.value.__cause__, DivergenceError)


def test_small_pieces_and_large_ones_give_the_same_update(tmp_path: Path) -> None:
    weights = []
    for most in (512, 3):
        r = loop.rank(tmp_path / str(most), loop.configuration("toy", "small_tokens", "ppo", minibatches=2, epochs=2))
        for worker in r.workers.values():
            worker.config.actor.ppo_micro_batch_size_per_gpu = most
            worker.config.rollout.log_prob_micro_batch_size_per_gpu = most
        r.until("train", [2, 3])
        weights.append(r.policy.model.state_dict())
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], atol=2e-6, rtol=1e-4)


ONE_OF_TWO = """
import sys
from pathlib import Path
folder, me = Path(sys.argv[1]), int(sys.argv[2])
sys.path[:0] = sys.argv[3:]
import loop, torch
import torch.distributed as dist
r = loop.rank(folder / str(me), loop.configuration("toy", "small_tokens", "ppo", kl_coef=0.1))
batch = r.until("reference", [2, 3])[4 * me : 4 * me + 4]
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=me, world_size=2)
worker = r.workers[loop.NodeRole.ACTOR]
worker.group = dist.group.WORLD
worker.update_actor(batch)
torch.save(r.policy.model.state_dict(), folder / f"{me}.pt")
"""


@pytest.mark.slow
def test_two_ranks_learn_what_one_learns_from_the_whole(tmp_path: Path) -> None:
    here = Path(__file__).parent
    folders = [str(here), str(here.parent), str(here.parent.parent), str(here.parent.parent.parent / "examples")]
    started = [
        subprocess.Popen([sys.executable, "-c", ONE_OF_TWO, str(tmp_path), str(me), *folders], env={**os.environ})
        for me in (0, 1)
    ]
    r = loop.rank(tmp_path / "one", loop.configuration("toy", "small_tokens", "ppo", kl_coef=0.1))
    r.node("train", r.until("reference", [2, 3]))
    assert [process.wait(600) for process in started] == [0, 0]
    for me in (0, 1):
        weights = torch.load(tmp_path / f"{me}.pt", weights_only=True)
        for name, value in r.policy.model.state_dict().items():
            torch.testing.assert_close(weights[name], value, atol=2e-6, rtol=1e-4)


def test_the_kl_term_pulls_towards_where_training_started(tmp_path: Path) -> None:
    r = loop.rank(tmp_path, loop.configuration("navsim", "small_gaussian", kl_coef=0.5))
    batch = r.until("train", [0, 1])
    assert r.metrics["actor/kl"] == pytest.approx(0.0, abs=1e-6)
    assert torch.equal(batch["ref_log_prob"], batch["old_log_probs"])
    batch = r.until("train", [0, 1])
    assert r.metrics["actor/kl"] > 0
    assert not torch.equal(batch["ref_log_prob"], batch["old_log_probs"])


def test_adapters_alone_are_trained(tmp_path: Path) -> None:
    """LoRA is the model's own: the optimiser sees what is trainable, a checkpoint has everything."""
    r = loop.rank(tmp_path, loop.configuration("navsim", "small_adapted", kl_coef=0.1))
    before = {name: value.clone() for name, value in r.policy.model.state_dict().items()}
    for _ in range(2):  # the second one moves lora_A, too
        r.until("train", [0, 1])
    moved = {name for name, value in r.policy.model.state_dict().items() if not torch.equal(value, before[name])}
    assert any("lora_A" in name for name in moved)
    assert not any("base_layer" in name for name in moved)


def test_a_users_adapter_gets_siirls_arguments_and_what_it_returns_is_trained(tmp_path: Path, registry: Any) -> None:
    given: list[Any] = []

    @register_framework_adapter("siirl", "small_gaussian")
    def siirl_adapter(cfg: Any) -> Any:
        given.append(cfg)
        return create_model("small_gaussian", horizon=4)

    r = loop.rank(tmp_path, loop.configuration("toy", "small_gaussian"))
    assert type(given[0]).__name__ == "ActorRolloutRefArguments"
    assert given[0].rollout.n == 4
    before = load_file(tmp_path / "start" / "model.safetensors")
    own = r.policy.model.state_dict()
    assert all(torch.equal(own[name], value) for name, value in before.items())
    r.until("train", [2, 3])
    assert any(not torch.equal(r.policy.model.state_dict()[name], value) for name, value in before.items())


def test_a_checkpoint_brings_everything_back(tmp_path: Path) -> None:
    """A worker that loads one goes on as the one that saved it would have."""
    config = loop.configuration("navsim", "tiny_vla", kl_coef=0.1)
    first = loop.rank(tmp_path / "a", config)
    first.until("train", [0, 1])
    actor = first.workers[loop.NodeRole.ACTOR]
    actor.save_checkpoint(local_path=str(tmp_path / "saved"), global_step=1, max_ckpt_to_keep=3)
    first.until("train", [2, 3])
    second = loop.rank(tmp_path / "b", config)
    second.workers[loop.NodeRole.ACTOR].load_checkpoint(local_path=str(tmp_path / "saved"))
    assert second.policy.updates == 1
    second.until("train", [2, 3])
    for name, value in first.policy.model.state_dict().items():
        torch.testing.assert_close(second.policy.model.state_dict()[name], value, atol=1e-7, rtol=0)
    with pytest.raises(CheckpointError, match="holds no checkpoint of vla_models"):
        actor.load_checkpoint(local_path=str(tmp_path / "nothing"))


def test_validation_drives_each_scene_once_and_its_means_are_kept(tmp_path: Path) -> None:
    """siiRL repeats the last row of a rank's manifest, and keeps the rate of successes alone."""
    from tensordict.tensorclass import NonTensorData

    r = loop.rank(tmp_path, loop.configuration("navsim", "small_gaussian"))
    prompts = loop.manifest([0, 1, 1], 1)
    prompts["validate"], prompts["global_steps"] = NonTensorData(True), NonTensorData(7)
    out = r.workers[loop.NodeRole.ROLLOUT].generate_sequences(prompts)
    assert isinstance(out, TensorDict)
    scores, *_ = r.dag.reward_fn.verify(out)
    assert len(scores) == 3
    (row,) = [json.loads(line) for line in Path(r.native["vla"]["evaluations"]).read_text().splitlines()]
    assert row["step"] == 7
    assert row["score"] == pytest.approx(float(out["episode_return"][:2].mean()), abs=1e-6)


def test_what_this_machine_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray
    import transformers

    compat.check()
    assert int(transformers.__version__.split(".")[0]) < 5
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "transformers", types.SimpleNamespace(__version__="5.9.0"))
        with pytest.raises(MissingDependency, match=r"which transformers 5\.9\.0 no longer has; install transformers below 5"):
            compat.check()
    compat.check_rebalancing(wanted=False)
    if not hasattr(getattr(ray, "internal", None), "free"):
        with pytest.raises(MissingDependency, match=rf"ray\.internal\.free, which Ray {ray.__version__} does not have"):
            compat.check_rebalancing(wanted=True)


def test_the_stand_in_for_torchvision_may_be_imported_and_not_used() -> None:
    from torchvision.transforms.functional import InterpolationMode, to_tensor

    assert InterpolationMode.BICUBIC is not None
    with pytest.raises(MissingDependency, match="pip install torchvision"):
        to_tensor(None)


def test_the_cause_of_a_failure_is_found_under_what_ray_and_siirl_wrap_it_in() -> None:
    from vla_models.frameworks.siirl.runner import cause

    wrapped = RuntimeError(
        "ray::DAGWorker.execute_task_graph()\n  File x\nvla_models.errors.SceneError: there are no scenes; raise a number\n\n"
        "The above exception was the direct cause\nRuntimeError: An error occurred while executing node rollout: there are"
    )
    found = cause(wrapped)
    assert isinstance(found, SceneError)
    assert str(found) == "there are no scenes; raise a number"
    other = cause(RuntimeError("a\nValueError: something else"))
    assert type(other) is VLAModelsError
    assert str(other) == "siiRL stopped: ValueError: something else"


def test_a_loss_that_is_no_number_is_not_written_as_a_row() -> None:
    from vla_models.frameworks.siirl.runner import row_of

    row = row_of({"step": 2.0, "actor/loss": 0.5, "drive/model_s": 1.0, "critic/score/mean": 3.0})
    assert row == {"loss": 0.5, "sample_s": 1.0}
    timed = row_of({"step": 2.0, "actor/loss": 0.5, "perf/delta_time/train": 2.0, "perf/delta_time/old_log_prob": 1.0})
    assert timed == {"loss": 0.5, "update_s": 2.0, "replay_s": 1.0}
    with pytest.raises(DivergenceError, match="rl step 2"):
        row_of({"step": 2.0, "drive/model_s": 1.0})


def test_settings_of_a_run_that_is_not_siirls_are_refused(tmp_path: Path) -> None:
    from vla_models.frameworks.siirl.launch import dry_run

    with pytest.raises(ConfigError, match="framework: 'rlinf' has a launcher of its own"):
        dry_run(loop.configuration("navsim", "small_gaussian").model_copy(update={"framework": "rlinf"}))
