"""The example that users start from, in its own call forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vla_models import (
    VLAConfig,
    VLAForDriving,
    VLAInput,
    VLAInterface,
    VLAModelRegistry,
    VLAPrediction,
    create_model,
    register_env_adapter,
    register_framework_adapter,
    register_vla_model,
)
from vla_models.errors import NotImplementedByModel

CONFIG = Path(__file__).parent / "data" / "my_driving_vla.yaml"


@pytest.fixture
def example(registry: Any) -> Any:
    @register_vla_model("my_driving_vla")
    class MyDrivingVLA(VLAForDriving):
        def __init__(self, model_path, **kwargs):  # type: ignore[no-untyped-def]  # it never calls super().__init__()
            self.model_path = model_path
            self.vision_encoder = torch.nn.Linear(3, 8)
            self.language_model = torch.nn.Embedding(256, 8)
            self.policy_head = torch.nn.Linear(16, 15)

        def encode_text(self, text, max_length=None):  # type: ignore[no-untyped-def]
            ids = torch.tensor([list(text.encode())[:max_length]])
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

        def encode_image(self, images, size=None):  # type: ignore[no-untyped-def]
            from vla_models.inputs import load_images

            return {"pixel_values": torch.from_numpy(load_images(images)["front"].copy()).float()[None] / 255}

        def predict_waypoints(self, text, images, num_waypoints=5, **kwargs):  # type: ignore[no-untyped-def]
            inputs = self.encode_multimodal(text, images)
            seen = self.vision_encoder(inputs["pixel_values"].mean(dim=(1, 2)))
            read = self.language_model(inputs["input_ids"]).mean(dim=1)
            return self.policy_head(torch.cat([seen, read], dim=-1)).view(-1, 5, 3)[:, :num_waypoints]

    @register_framework_adapter("siirl", "my_driving_vla")
    def siirl_adapter(cfg):  # type: ignore[no-untyped-def]
        return create_model("my_driving_vla", model_path=cfg)

    @register_env_adapter("navsim", "areal")
    class AReaLNavSimAdapter:
        pass

    return MyDrivingVLA, siirl_adapter, AReaLNavSimAdapter


def test_the_example_runs(example: Any, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(picture.parent)
    config = VLAConfig.from_yaml(CONFIG)
    model = create_model("my_driving_vla", model_path=config.model.checkpoint_path)
    prediction = model.predict(
        VLAInput(text="Drive safely to the destination", images="camera_view.png"),
        max_new_tokens=50,
    )
    current_state = {"speed": 5.0}
    controls = model.waypoints_to_controls(prediction.waypoints, current_state)  # type: ignore[attr-defined]

    assert isinstance(model, VLAInterface)
    assert isinstance(prediction, VLAPrediction)
    assert prediction.waypoints.shape == (5, 3)
    assert prediction.waypoints.dtype == np.float32
    assert controls.keys() == {"steer", "throttle", "brake"}
    assert all(np.isfinite(value) for value in controls.values())


def test_its_registrations_are_found(example: Any) -> None:
    model, siirl_adapter, areal_navsim = example
    assert VLAModelRegistry._adapters["siirl"]["my_driving_vla"] is siirl_adapter
    assert VLAModelRegistry.get_adapter("siirl", "my_driving_vla") is siirl_adapter
    assert VLAModelRegistry.get_env_adapter("navsim", "areal") is areal_navsim
    assert VLAModelRegistry.get_model("my_driving_vla") is model
    assert isinstance(siirl_adapter("some/path"), model)


def test_its_configuration_loads_unchanged() -> None:
    config = VLAConfig.from_yaml(CONFIG)
    assert config.model.vision_encoder is not None
    assert config.model.vision_encoder.type == "clip"
    assert config.model.language_model is not None
    assert config.model.language_model.lora_enabled
    assert config.model.policy_head is not None
    assert config.model.policy_head.action_dim == 15
    assert config.training.optimizer.lr == 1e-4
    assert isinstance(config.training.optimizer.lr, float)
    assert config.environment.type == "navsim"
    assert config.reward.weights == {"collision": -10.0, "success": 10.0}


def test_what_it_lacks_is_named(example: Any) -> None:
    model = create_model("my_driving_vla", model_path=None)
    with pytest.raises(
        NotImplementedByModel, match=r"^MyDrivingVLA cannot be trained: it does not implement evaluate_actions$"
    ):
        model.evaluate_actions({})
    assert model.missing("evaluated") == ()
    assert "evaluate_actions" in model.missing("trained")


def test_it_can_be_saved_and_loaded(example: Any, tmp_path: Path, picture: Path) -> None:
    model = create_model("my_driving_vla", model_path=None)
    model.save_pretrained(tmp_path / "saved")
    again = create_model("my_driving_vla", model_path=tmp_path / "saved")
    given = VLAInput(text="go", images=picture)
    np.testing.assert_array_equal(again.predict(given).waypoints, model.predict(given).waypoints)
