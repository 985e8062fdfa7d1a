"""The example framework that a stranger registered: from ``framework: best_of_group`` to a finished run."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

import bring_your_own_environment
import bring_your_own_framework as own
import bring_your_own_model  # noqa: F401 - registers my_vla

from vla_models import VLAConfig, VLAForDriving, register_env_adapter, register_framework
from vla_models.errors import ConfigError, RegistryError, VLAModelsError
from vla_models.frameworks import available, get_dry_run, get_launcher
from vla_models.training.metrics import read_metrics

register_env_adapter("parked_cars", "best_of_group")(bring_your_own_environment.MadeHere)


def config(folder: Path, *overrides: str) -> VLAConfig:
    return VLAConfig.from_dict(
        {
            "framework": "best_of_group", "output_dir": str(folder), "environment": {"type": "parked_cars"},
            "model": {"name": "my_vla", "options": {"dim": 16}}, "algorithm": {"group_size": 4},
            "training": {
                "steps": 3, "scenes_per_step": 2, "checkpoint_every": 2, "threads": 1, "imitation": {"steps": 0},
                "optimizer": {"lr": 1e-3},
            },
        },
        overrides,
    )  # fmt: skip


def test_a_run_is_trained_evaluated_and_goes_on(tmp_path: Path) -> None:
    settings = config(tmp_path)
    run = get_launcher("best_of_group")(settings)
    rows = read_metrics(run)
    assert [(row["phase"], row["step"]) for row in rows] == [("rl", 1), ("rl", 2), ("rl", 3)]
    assert all(row["invalid"] == 0 and -2.0 <= row["reward_mean"] <= 1.0 for row in rows)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["framework"] == "best_of_group"
    assert 0.0 <= summary["heldout"]["rl"] <= 1.0
    assert 1.0 <= summary["subscores"]["rl"]["decisions"] <= 8.0
    weights = [
        VLAForDriving.from_pretrained(run / "checkpoints" / name).state_dict()["think.0.weight"]
        for name in ("imitation", "update-0000002", "update-0000003", "model")
    ]
    assert not torch.equal(weights[0], weights[1])
    assert torch.equal(weights[2], weights[3])

    (run / "checkpoints" / "update-0000003" / "config.json").unlink()  # as if the last one had never been finished
    (run / "checkpoints" / "update-0000003").rename(run / "checkpoints" / "lost")
    assert get_launcher("best_of_group")(settings, resume=run) == run
    assert [row["step"] for row in read_metrics(run)] == [1, 2, 3]
    assert (run / "checkpoints" / "update-0000003" / "config.json").is_file()


def test_it_imitates_the_best_of_each_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is made likelier is what the best episode of each group decided, and nothing that was driven in others."""
    seen: dict[str, Any] = {}
    drive = own.drive

    def recording(model: Any, episodes: Any, scenes: Any, **sampling: Any) -> Any:
        decided, totals = drive(model, episodes, scenes, **sampling)
        if not sampling.get("deterministic"):
            seen.update(
                before=[model.evaluate_actions(r)["logprobs"].detach() for r, _ in decided], decided=decided, model=model
            )
            seen["best"] = torch.as_tensor(totals["return"]).view(2, 4).argmax(1) + torch.tensor([0, 4])
        return decided, totals

    monkeypatch.setattr(own, "drive", recording)
    get_launcher("best_of_group")(config(tmp_path, "training.steps=1"))
    model = seen["model"].eval()
    gain = [
        (model.evaluate_actions(record)["logprobs"] - before).flatten(1).mean(1)[running]
        for (record, running), before in zip(seen["decided"], seen["before"], strict=True)
    ]
    first = gain[0]  # every row runs at the first decision
    assert first[seen["best"]].mean() > 0.0
    assert first[seen["best"]].mean() > first.mean()


def test_an_environment_in_which_nothing_is_valid_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: Any, episodes: Any, scenes: Any, **sampling: Any) -> Any:
        decided, totals = own_drive(model, episodes, scenes, **sampling)
        return decided, totals | {"valid": 0 * totals["valid"]}

    own_drive = own.drive
    monkeypatch.setattr(own, "drive", broken)
    with pytest.raises(VLAModelsError, match="step 1: no episode was valid"):
        get_launcher("best_of_group")(config(tmp_path))


def test_the_command_line_finds_it_through_an_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: Any, run: Callable[..., tuple[int, str, str]]
) -> None:
    """An installed package with an entry point, and no import by hand."""
    info = tmp_path / "site" / "my_trainer-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-trainer\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[vla_models.plugins]\nmy_trainer = my_trainer\n")
    (tmp_path / "site" / "my_trainer.py").write_text(
        "from pathlib import Path\n"
        "from vla_models import register_framework\n\n"
        "@register_framework('my_trainer', dry_run=lambda config: f'would train {config.model.name}')\n"
        "def launch(config, *, resume=None):\n"
        "    (Path(config.output_dir) / 'seed').write_text(str(config.seed))\n"
        "    return Path(config.output_dir)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(registry, "_plugin_errors", None)
    importlib.invalidate_caches()
    file = tmp_path / "run.yaml"
    file.write_text(f"framework: my_trainer\noutput_dir: {tmp_path}\n")
    code, out, _ = run("train", file, "--dry-run")
    assert (code, out) == (0, "would train tiny_vla\n")
    code, out, _ = run("train", file, "seed=7")
    assert code == 0
    assert (tmp_path / "seed").read_text() == "7"
    code, out, _ = run("list")
    assert "my_trainer" in out


def test_names_that_are_taken_or_unknown_are_refused(registry: Any) -> None:
    def first(config: VLAConfig, *, resume: Path | None = None) -> Path: ...

    def second(config: VLAConfig, *, resume: Path | None = None) -> Path: ...

    with pytest.raises(RegistryError, match=r"framework 'verl' is built in; choose another name"):
        register_framework("verl")(first)
    assert register_framework("mine")(first) is first
    register_framework("mine")(first)  # a module that is imported twice
    with pytest.raises(RegistryError, match=r"framework 'mine' is already registered \(.*first\); .* override=True"):
        register_framework("mine")(second)
    register_framework("mine", override=True)(second)
    assert get_launcher("mine") is second
    assert get_dry_run("mine") is None
    assert "mine" in available()
    with pytest.raises(ConfigError, match=r"framework: got 'mien'.*Did you mean 'mine'\?"):
        VLAConfig.from_dict({"framework": "mien"})

    @register_env_adapter("parked_cars", "only_an_adapter")
    class Adapter: ...

    settings = VLAConfig.from_dict({"framework": "only_an_adapter"})
    with pytest.raises(ConfigError, match=r"nothing can start 'only_an_adapter'.*@register_framework\(\"only_an_adapter\"\)"):
        get_launcher(settings.framework)
