"""One model asked by many episodes at once: requests that wait are decided together, in one ``predict``.

This is our inference side on the record route, where AReaL has SGLang or vLLM on the token route. New weights come in between
two calls of ``predict``, so every decision has one weight version, and it is exactly the version that sampled it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vla_models.errors import NotImplementedByModel, VLAModelsError
from vla_models.inputs import VLAInput
from vla_models.interface import VLAInterface
from vla_models.training.checkpoint import random_stream

WHOLE: Final = 64
"""Decisions after which a model is believed to leave no part out. If it does later, training stops with an error."""


@dataclass(frozen=True)
class Sampling:
    """How to decide; requests with equal ``Sampling`` are decided together."""

    samples: int = 1
    """Plans for each input."""
    temperature: float = 1.0
    top_p: float = 1.0
    deterministic: bool = False
    """The most likely plan; no record."""


@dataclass(frozen=True)
class Sampled:
    """B plans that one ``predict`` sampled."""

    logprobs: Tensor
    """float32 [B, P]"""
    mask: Tensor
    """bool [B, P]: parts of the decision that count."""
    record: dict[str, Tensor]
    """[B, …] what ``evaluate_actions`` replays."""
    version: int
    """Of the weights that decided."""
    samples: int
    """Rows of an input, side by side."""


@dataclass(frozen=True)
class Decision:
    """B = inputs × samples plans, an input's samples side by side."""

    plans: npt.NDArray[np.float32]
    """[B, T, 3]; NaN where the answer was no plan."""
    sampled: Sampled | None
    """What was sampled for this request and those that it was decided together with; None where nothing was sampled."""
    place: slice
    """This request's rows in there."""


@dataclass
class _Request:
    inputs: list[VLAInput]
    sampling: Sampling
    future: Future[Decision] = field(default_factory=Future)

    @property
    def rows(self) -> int:
        return len(self.inputs) * self.sampling.samples


class Decider:
    """A model and the thread that asks it.

    Args:
        model: decides; nobody else may use it.
        seed: of sampling. Samples depend on it, the weight version, and which requests came together.
        most_rows: plans of one ``predict``; a larger request is decided alone.
    """

    def __init__(self, model: VLAInterface, *, seed: int, most_rows: int) -> None:
        self.model, self.seed, self.most_rows = model.eval(), seed, most_rows
        self.version = 0
        """Of the weights; ``load`` sets it."""
        self.calls = 0
        """Calls of ``predict``."""
        self.decided = 0
        """Plans."""
        self._requests: deque[_Request] = deque()
        self._changed = threading.Condition()
        self._paused = self._closed = False
        self._weights = threading.Lock()
        self._generator: torch.Generator | None = None
        self._whole: int | None = 0
        self._thread: threading.Thread | None = None

    def decide(self, inputs: Sequence[VLAInput], sampling: Sampling) -> Future[Decision]:
        """Ask for plans. The future fails with what ``predict`` raises for these inputs; it can be cancelled."""
        request = _Request(list(inputs), sampling)
        with self._changed:
            if self._closed:
                raise VLAModelsError("the model is asked for a plan after the run has ended")
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="areal-model", daemon=True)
                self._thread.start()
            self._requests.append(request)
            self._changed.notify_all()
        return request.future

    def load(self, weights: Mapping[str, Tensor], version: int) -> None:
        """Take new weights, between two calls of ``predict``."""
        with self._weights:
            self.model.load_state_dict(dict(weights))
            self.version, self._generator = version, None

    def pause(self) -> None:
        """Let requests wait. Returns when no ``predict`` runs."""
        with self._changed:
            self._paused = True
        with self._weights:
            pass

    def resume(self) -> None:
        """Decide what waits."""
        with self._changed:
            self._paused = False
            self._changed.notify_all()

    def close(self) -> None:
        """Cancel what waits and end the thread."""
        with self._changed:
            self._closed = True
            waiting, self._requests = self._requests, deque()
            self._changed.notify_all()
        for request in waiting:
            request.future.cancel()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    # -- the thread ------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (requests := self._take()) is not None:
            self._answer(requests)

    def _take(self) -> list[_Request] | None:
        """Requests to decide together: the oldest, and those like it, up to ``most_rows``. None when closed."""
        with self._changed:
            while True:
                if self._closed:
                    return None
                if self._requests and not self._paused:
                    first = self._requests[0]
                    taken, left, rows = list[_Request](), deque[_Request](), 0
                    for request in self._requests:
                        fits = not taken or rows + request.rows <= self.most_rows
                        if request.sampling == first.sampling and fits:
                            taken.append(request)
                            rows += request.rows
                        else:
                            left.append(request)
                    self._requests = left
                    if wanted := [request for request in taken if request.future.set_running_or_notify_cancel()]:
                        return wanted
                else:
                    self._changed.wait()

    def _answer(self, requests: list[_Request]) -> None:
        try:
            decision = self._predict([given for request in requests for given in request.inputs], requests[0].sampling)
        except Exception as e:
            if len(requests) > 1:  # so that only those whose own inputs are at fault fail
                for request in requests:
                    self._answer([request])
            else:
                requests[0].future.set_exception(e)
            return
        at = 0
        for request in requests:
            place = slice(at, at + request.rows)
            request.future.set_result(replace(decision, plans=decision.plans[place], place=place))
            at += request.rows

    def _predict(self, inputs: list[VLAInput], sampling: Sampling) -> Decision:
        with self._weights, torch.no_grad():
            prediction = self.model.predict(
                inputs,
                deterministic=sampling.deterministic,
                num_samples=sampling.samples,
                generator=self._random(),
                temperature=sampling.temperature,
                top_p=sampling.top_p,
            )
            self.calls += 1
            plans = np.asarray(prediction.waypoints, dtype=np.float32).reshape(len(inputs) * sampling.samples, -1, 3)
            self.decided += len(plans)
            if prediction.valid is not None:
                plans = np.where(np.asarray(prediction.valid)[:, None, None], plans, np.float32(np.nan))
            if sampling.deterministic:
                return Decision(plans, None, slice(None))
            if prediction.record is None or prediction.logprobs is None:
                raise NotImplementedByModel(
                    f"{type(self.model).__name__} cannot be trained: its predict returns no record and logprobs "
                    "(see docs/models.md)"
                )
            logprobs = prediction.logprobs.detach().float().flatten(1).cpu()
            record = {name: value.detach() for name, value in prediction.record.items()}
            sampled = Sampled(logprobs, self._mask(record, logprobs), record, self.version, sampling.samples)
            return Decision(plans, sampled, slice(None))

    def _mask(self, record: Mapping[str, Tensor], logprobs: Tensor) -> Tensor:
        """Which parts count: only ``evaluate_actions`` says it. It is asked no longer when of the first ``WHOLE`` decisions
        every part counted."""
        if self._whole is not None and self._whole >= WHOLE:
            return torch.ones_like(logprobs, dtype=torch.bool)
        mask = self.model.evaluate_actions(record)["mask"].flatten(1).cpu()
        if self._whole is not None:
            self._whole = self._whole + len(mask) if bool(mask.all()) else None
        return mask

    def _random(self) -> torch.Generator:
        device = next(self.model.parameters()).device
        if self._generator is None:
            stream = random_stream(self.seed, "rollout", self.version)
            self._generator = torch.Generator(device).manual_seed(stream)
        return self._generator
