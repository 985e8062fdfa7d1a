"""The model contract: ``VLAInterface`` and ``VLAForDriving``. Whoever brings a model writes one subclass.

Three methods make a model usable (``encode_text``, ``encode_image``, ``predict_waypoints``); ``predict`` with a record and
``evaluate_actions`` make it trainable in every framework. What a model lacks is named when somebody asks for it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, cast

import numpy as np
import numpy.typing as npt
import torch

from vla_models.errors import CheckpointError, NotImplementedByModel, PlanError, SceneError, VLAModelsError, did_you_mean
from vla_models.inputs import (
    EGO_FEATURES,
    Images,
    VLAInput,
    VLAOutput,
    VLAPrediction,
    VLASpec,
    check_plan,
    load_image,
    load_images,
)
from vla_models.pretrained import load_weights, read_config, remember_arguments, write_model

if TYPE_CHECKING:
    from vla_models.control import Controller

__all__ = [
    "EGO_FEATURES", "Images", "VLAForDriving", "VLAInput", "VLAInterface", "VLAOutput", "VLAPrediction", "VLASpec",
    "check_plan", "load_image", "load_images",
]  # fmt: skip

DEFAULT_SPEC = VLASpec()
"""The spec of a class that sets none: five waypoints, 0.5 s apart, one front camera, no distribution."""


def as_batch(inputs: VLAInput | Sequence[VLAInput], num_samples: int) -> list[VLAInput]:
    """What ``predict`` was given, as a list; VLAModelsError if nothing is to be predicted."""
    batch = [inputs] if isinstance(inputs, VLAInput) else list(inputs)
    if not batch or num_samples < 1:
        raise VLAModelsError(f"nothing to predict: {len(batch)} inputs × {num_samples} samples")
    return batch


class VLAInterface(torch.nn.Module):
    """A vision-language-action model.

    A subclass need not call ``super().__init__()``: the module is initialised before its ``__init__`` runs. Calling it is
    harmless (it does nothing a second time, so what was already assigned stays). Every argument of the constructor is
    remembered for ``save_pretrained``, so that ``from_pretrained`` can call it again.
    """

    spec: VLASpec = DEFAULT_SPEC
    """What the model is; set it in the class or in ``__init__``."""
    statistics: dict[str, dict[str, Any]]
    """Normalisation statistics by data set, JSON values: what the head measured in its plans. Saved with the model."""
    prompt_keys: ClassVar[tuple[str, ...]] = ()
    """Tensors of a record that depend on the input alone, so that all samples of an input have the same. Where an adapter sends
    records around, it keeps these once for all of them: pictures, above all."""
    value_prefix: ClassVar[str] = "value."
    """Weights whose names begin so are the value head's: ``save_pretrained`` keeps them apart from the policy's."""
    _constructor_arguments: dict[str, Any]
    _reference: dict[str, torch.Tensor] | None
    _needed: ClassVar[dict[str, tuple[str, ...]]] = {
        "evaluated": ("predict",),
        "trained": ("predict", "evaluate_actions"),
    }

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        self = super().__new__(cls)
        torch.nn.Module.__init__(self)
        self._constructor_arguments = remember_arguments(cls, args, kwargs)
        self._reference = None
        self.statistics = {}
        return self

    def __init__(self, model_path: str | Path | None = None) -> None:
        """Nothing is left to do (see ``__new__``). ``model_path`` is accepted because ``create_model`` passes it."""

    # -- what a model implements -----------------------------------------------------------------------------------------

    def encode_text(self, text: str | list[str], max_length: int | None = None) -> Any:
        """Text(s) -> {"input_ids", "attention_mask"}: int64 [B, L]."""
        raise self._lacks("encode_text", "read text")

    def encode_image(self, images: Any, size: Any = None) -> Any:
        """Image(s) -> {"pixel_values": …} and whatever else the model needs. ``load_images`` opens any kind of image."""
        raise self._lacks("encode_image", "see images")

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, pixel_values: Any = None, **kwargs: Any
    ) -> VLAOutput:
        """One pass over encoded inputs -> ``VLAOutput``."""
        raise self._lacks("forward", "be called directly")

    def predict(
        self,
        inputs: VLAInput | Sequence[VLAInput],
        *,
        deterministic: bool = False,
        num_samples: int = 1,
        generator: torch.Generator | None = None,
        max_new_tokens: int | None = None,
        **kwargs: Any,
    ) -> VLAPrediction:
        """Decide on a plan for each input.

        inputs: one ``VLAInput`` (then waypoints are [T, 3]) or a list (then [B, T, 3]).
        deterministic: the most likely plan instead of a sample.
        num_samples: plans per input; B = inputs × samples, an input's samples side by side.
        generator: the source of all randomness; without it torch's global one.
        max_new_tokens: a limit on generated text, for models that generate any.
        """
        raise self._lacks("predict", "be evaluated")

    def evaluate_actions(
        self, record: Mapping[str, torch.Tensor], *, entropy: bool = False, values: bool = False
    ) -> dict[str, torch.Tensor]:
        """Recompute, with gradients, the log-probabilities of past decisions from their record.

        Returns ``logprobs`` float32 [B, *S], ``mask`` bool [B, *S], and on request ``entropy`` float32 [B, *S] and ``values``
        float32 [B] where the model has them (absent otherwise: never a made-up number).
        """
        raise self._lacks("evaluate_actions", "be trained")

    def imitation_loss(self, record: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """What imitation minimises over a record that ``record_from_plans`` made: a scalar with a gradient.

        The default is the mean negative log-likelihood per action. A model whose likelihood has no closed form (flow matching,
        diffusion) has a loss of its own; what it draws for it comes from torch's global generator.
        """
        out = self.evaluate_actions(record)
        counted = torch.where(out["mask"], out["logprobs"], torch.zeros_like(out["logprobs"]))
        return -(counted.sum() / out["mask"].sum().clamp(min=1))

    def plan_normaliser(self) -> Any | None:
        """What turns plans into a head's units, if anything: it has ``measure(plans, speed)`` and ``normalise(statistics)``."""
        return None

    # -- what follows from it --------------------------------------------------------------------------------------------

    def encode_multimodal(self, text: str | list[str], images: Any) -> dict[str, Any]:
        """The dicts of ``encode_text`` and ``encode_image``, joined. A bare tensor is called input_ids or pixel_values."""
        parts = {}
        for name, part in (("input_ids", self.encode_text(text)), ("pixel_values", self.encode_image(images))):
            for key, value in part.items() if isinstance(part, Mapping) else [(name, part)]:
                if key in parts:
                    raise VLAModelsError(f"{type(self).__name__}: encode_text and encode_image both return {key!r}; rename one")
                parts[key] = value
        return parts

    @classmethod
    def missing(cls, use: Literal["evaluated", "trained"]) -> tuple[str, ...]:
        """Methods that this class would have to implement to be "evaluated" or "trained"; empty when it can be."""
        return tuple(name for name in cls._needed[use] if getattr(cls, name) is getattr(VLAInterface, name))

    def require(self, use: Literal["evaluated", "trained"]) -> None:
        """Raise ``NotImplementedByModel`` naming what is ``missing`` for that use."""
        if lacking := self.missing(use):
            raise self._lacks(" and ".join(lacking), f"be {use}")

    def _lacks(self, method: str, purpose: str) -> NotImplementedByModel:
        return NotImplementedByModel(f"{type(self).__name__} cannot {purpose}: it does not implement {method}")

    # -- normalisation statistics ----------------------------------------------------------------------------------------

    def fit_statistics(self, dataset: str, plans: npt.NDArray[Any], speed: npt.NDArray[Any]) -> None:
        """Normalise plans as those of ``dataset`` are: plans [N, T, 3], driven from speeds [N]. A data set that the model knows
        is not measured again."""
        normaliser = self.plan_normaliser()
        if normaliser is None:
            return
        if dataset not in self.statistics:
            found = normaliser.measure(torch.as_tensor(plans), torch.as_tensor(speed))
            if not found:
                return
            self.statistics[dataset] = found
        self.use_statistics(dataset)

    def use_statistics(self, dataset: str) -> None:
        """Normalise with the statistics of ``dataset``, one of ``statistics``."""
        if dataset not in self.statistics:
            raise VLAModelsError(f"there are no statistics of {dataset!r}; {did_you_mean(dataset, self.statistics)}")
        normaliser = self.plan_normaliser()
        if normaliser is not None:
            normaliser.normalise(self.statistics[dataset])

    # -- reference weights -----------------------------------------------------------------------------------------------

    def make_reference(self, weights: Mapping[str, torch.Tensor] | None = None) -> None:
        """Freeze the reference that ``reference()`` shows: the present weights, or ``weights`` when a run is resumed.

        Call it once where training starts. Only trainable weights outside LoRA adapters are copied: an adapter's reference is
        the base without it, and frozen weights are their own.
        """
        own = self._referenced()
        if weights is None:
            self._reference = {name: p.detach().clone() for name, p in own.items()}
            return
        if weights.keys() != own.keys() or any(weights[k].shape != p.shape for k, p in own.items()):
            raise VLAModelsError(f"these reference weights do not fit {type(self).__name__}'s trainable weights")
        self._reference = {name: weights[name].detach().to(p.device, p.dtype).clone() for name, p in own.items()}

    def reference_weights(self) -> dict[str, torch.Tensor]:
        """The weights that ``make_reference`` froze (to save beside a run's checkpoint; empty for pure LoRA)."""
        if self._reference is None:
            raise VLAModelsError(f"{type(self).__name__} has no reference: call make_reference() where training starts")
        return dict(self._reference)

    @contextmanager
    def reference(self) -> Iterator[Self]:
        """Within it the model computes with its reference weights, without gradients.

        LoRA adapters are switched off; other trainable weights change places with their frozen copies (pointers are swapped,
        nothing is copied). Leave it before ``backward``.
        """
        frozen = self.reference_weights()
        parameters = self._referenced()
        with ExitStack() as stack, torch.no_grad():
            for adapted in _adapted_modules(self):
                stack.enter_context(adapted.disable_adapter())
            live = {name: parameters[name].data for name in frozen}
            try:
                for name, weight in frozen.items():
                    parameters[name].data = weight
                yield self
            finally:
                for name, weight in live.items():
                    parameters[name].data = weight

    def _referenced(self) -> dict[str, torch.nn.Parameter]:
        """Trainable parameters that no adapter covers, by name."""
        adapted = {id(p) for module in _adapted_modules(self) for p in module.parameters()}
        return {name: p for name, p in self.named_parameters() if p.requires_grad and id(p) not in adapted}

    # -- saving ----------------------------------------------------------------------------------------------------------

    def constructor_arguments(self) -> dict[str, Any]:
        """The arguments with which ``from_pretrained`` will call the constructor: those it was called with, JSON values."""
        return dict(self._constructor_arguments)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write ``model.safetensors``, ``value_head.safetensors`` (if there is one) and ``config.json`` (class, registered
        name, constructor arguments, normalisation statistics) into ``folder``."""
        from vla_models.model_registry import VLAModelRegistry

        name = VLAModelRegistry.name_of(type(self))
        arguments = self.constructor_arguments()
        return write_model(self, Path(folder), name, arguments, statistics=self.statistics, value_prefix=self.value_prefix)

    def push_to_hub(self, repository: str, *, private: bool = False, message: str = "Upload a driving VLA") -> str:
        """Save the model and upload its folder to the Hugging Face Hub as ``repository`` ("owner/name", made if missing).

        Returns the address. The token is the one that ``hf auth login`` or HF_TOKEN gave.
        """
        from vla_models.pretrained import upload_model

        return upload_model(self.save_pretrained, repository, private=private, message=message)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **changes: Any) -> Self:
        """The model that ``save_pretrained`` wrote; ``changes`` replace constructor arguments.

        On ``VLAInterface`` or ``VLAForDriving`` itself, any registered model is found by the name in the checkpoint. A missing,
        corrupt or foreign checkpoint is a ``CheckpointError``; pickle is never read.
        """
        from vla_models.model_registry import VLAModelRegistry

        config = read_config(Path(folder))
        name, saved = config["model"], config["class"]
        if cls in (VLAInterface, VLAForDriving):
            if name is None:
                raise CheckpointError(
                    f"{str(folder)!r} holds a {saved} without a registered name: call {saved}.from_pretrained"
                )
            found: Any = VLAModelRegistry.get_model(name)  # its class may read more than is read here
            loaded: Self = found.from_pretrained(folder, **changes)
            return loaded
        if saved != cls.__name__ and (name is None or name != VLAModelRegistry.name_of(cls)):
            raise CheckpointError(f"{str(folder)!r} holds a {saved} (model {name!r}), not a {cls.__name__}")
        try:
            model = cls(**{**config["arguments"], **changes})
        except TypeError as e:
            raise CheckpointError(f"{str(folder)!r}: {cls.__name__} does not take the arguments in its config.json: {e}") from e
        load_weights(model, Path(folder), cls.value_prefix)
        model.statistics = dict(config.get("statistics", {}))
        return model


class VLAForDriving(VLAInterface):
    """A VLA that drives: plans are [T, 3] poses (x, y, heading), ego frame (rear axle, x forward, y left), SI, radians."""

    def predict_waypoints(self, text: str, images: Any, num_waypoints: int = 5, **kwargs: Any) -> Any:
        """Plan for one prompt and its images -> float32 [N, 3] or [1, N, 3] (array or tensor)."""
        raise self._lacks("predict or predict_waypoints", "be evaluated")

    @classmethod
    def missing(cls, use: Literal["evaluated", "trained"]) -> tuple[str, ...]:
        """As in ``VLAInterface``; ``predict_waypoints`` serves in place of ``predict`` for evaluation."""
        plans = cls.predict_waypoints is not VLAForDriving.predict_waypoints
        lacking = tuple(n for n in cls._needed[use] if getattr(cls, n) in (getattr(VLAInterface, n), getattr(VLAForDriving, n)))
        return tuple(n for n in lacking if not (use == "evaluated" and plans and n == "predict"))

    def predict(
        self,
        inputs: VLAInput | Sequence[VLAInput],
        *,
        deterministic: bool = False,
        num_samples: int = 1,
        generator: torch.Generator | None = None,
        max_new_tokens: int | None = None,
        **kwargs: Any,
    ) -> VLAPrediction:
        """See ``VLAInterface.predict``. This default calls ``predict_waypoints`` once for each sample of each input, with the
        prompt of ``build_prompt``; it gives plans, but no log-probabilities and no record."""
        options = {"max_new_tokens": max_new_tokens, "generator": generator, "deterministic": deterministic or None, **kwargs}
        options = {key: value for key, value in options.items() if value is not None}
        if self.spec is not DEFAULT_SPEC:  # a class that states its horizon is asked for it; others use their own default
            options.setdefault("num_waypoints", self.spec.horizon)
        self._check_options(options)
        single = isinstance(inputs, VLAInput)
        batch = as_batch(inputs, num_samples)
        plans = []
        with torch.no_grad():
            for given in batch:
                prompt = self.build_prompt(given)
                for _ in range(num_samples):
                    plans.append(self._one_plan(self.predict_waypoints(prompt, given.images, **options)))
        if len({len(plan) for plan in plans}) > 1:
            raise PlanError(
                f"{type(self).__name__}.predict_waypoints returned plans of {sorted({len(p) for p in plans})} poses in a batch"
            )
        waypoints = plans[0] if single and num_samples == 1 else np.stack(plans)
        return VLAPrediction(waypoints=waypoints, dt=self.spec.dt)

    def _one_plan(self, output: Any) -> npt.NDArray[np.float32]:
        plan: npt.NDArray[np.float32] = check_plan(output, what=f"what {type(self).__name__}.predict_waypoints returned")
        if plan.ndim == 3 and len(plan) == 1:
            (plan,) = plan
        if plan.ndim != 2:
            raise PlanError(
                f"{type(self).__name__}.predict_waypoints returned {list(plan.shape)} for one input; expected [N, 3]"
            )
        return plan

    def _check_options(self, options: Mapping[str, Any]) -> None:
        """Refuse an option that ``predict_waypoints`` would not take, rather than drop it."""
        parameters = inspect.signature(self.predict_waypoints).parameters
        if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            return
        if unknown := [key for key in options if key not in parameters]:
            raise NotImplementedByModel(
                f"{type(self).__name__}.predict_waypoints does not take {', '.join(unknown)}; add **kwargs to it"
            )

    def process_ego_state(self, position: Any, heading: float | None, velocity: Any) -> str:
        """Ego state as text of fixed width.

        position: (x, y) in metres, or None; heading: radians, or None (both None in the ego frame, where they are zero);
        velocity: speed in m/s or (vx, vy).
        """
        speed = float(np.linalg.norm(np.asarray(velocity, dtype=np.float64))) if np.ndim(velocity) else float(velocity)
        parts = [] if position is None else [f"position {float(position[0]):+07.1f} {float(position[1]):+07.1f} m"]
        if heading is not None:
            parts.append(f"heading {np.degrees(float(heading)):+06.1f} deg")
        parts.append(f"speed {speed:04.1f} m/s")
        return ", ".join(parts)

    def process_route(self, route: Any) -> str:
        """Route points [R, 2] (metres, ego frame) as text of fixed width: ``route +05.0 +00.1; +10.0 +00.4``."""
        points = np.asarray(route, dtype=np.float64)
        if points.ndim != 2 or points.shape[1] < 2 or len(points) == 0 or not np.isfinite(points[:, :2]).all():
            raise SceneError(
                f"a route of shape {list(points.shape)} cannot be read; expected finite points [R, 2] with R > 0, or None"
            )
        return "route " + "; ".join(f"{x:+05.1f} {y:+05.1f}" for x, y in points[:, :2])

    def build_prompt(self, inputs: VLAInput) -> str:
        """The text that the model reads: instruction, ego state, command and route, one line each, what is unknown left out."""
        lines = [inputs.text] if inputs.text else []
        ego = inputs.ego_state
        if ego is not None and ("speed" in ego or "velocity" in ego):
            line = self.process_ego_state(
                ego.get("position"), ego.get("heading"), ego["velocity"] if "velocity" in ego else ego["speed"]
            )
            for key, unit in (("acceleration", "m/s2"), ("yaw_rate", "rad/s")):
                line += f", {key.replace('_', ' ')} {float(ego[key]):+06.2f} {unit}" if key in ego else ""
            lines.append(line)
        if inputs.command is not None:
            lines.append(f"command {inputs.command}")
        if inputs.route is not None:
            lines.append(self.process_route(inputs.route))
        return "\n".join(lines)

    def waypoints_to_controls(self, waypoints: Any, current_state: Mapping[str, Any]) -> dict[str, float]:
        """Plan [T, 3] and the present ``speed`` -> {"steer", "throttle", "brake"}, by the controller that the spec names.

        The controller remembers past errors: one model drives one vehicle through it; call ``reset_controls`` when an episode
        starts. For several vehicles, use a ``vla_models.control.make_controller`` for each.
        """
        return self._controller().control(waypoints, current_state)

    def reset_controls(self) -> None:
        """Forget the errors of the past episode."""
        self._controller().reset()

    def _controller(self) -> Controller:
        from vla_models.control import make_controller

        wanted = (self.spec.controller, self.spec.dt)
        made, controller = self.__dict__.get("_made_controller", (None, None))
        if made != wanted or controller is None:
            controller = make_controller(*wanted)
            self.__dict__["_made_controller"] = (wanted, controller)
        return cast("Controller", controller)


def _adapted_modules(model: torch.nn.Module) -> list[Any]:
    """The peft models inside ``model`` (recognised by what they do, so that peft need not be installed)."""
    return [m for m in model.modules() if hasattr(m, "disable_adapter") and hasattr(m, "peft_config")]
