"""Driving: many episodes in a few worlds at once, with one model, on an event loop of our own.

Episodes are cut into chunks. Each world takes the next chunk when it is done with one, and while it drives (in its own thread)
the model decides for another world: nobody waits for the slowest. What a chunk samples depends on its number alone, so the
result does not depend on who was quicker.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vla_models.errors import NotImplementedByModel
from vla_models.frameworks.siirl.batch import Driven
from vla_models.frameworks.siirl.embedding import embed_videos, trajectory
from vla_models.inputs import VLAInput, VLAPrediction

if TYPE_CHECKING:
    from vla_models.frameworks.siirl.batch import RecordWords
    from vla_models.frameworks.siirl.embedding import VideoEmbedding
    from vla_models.frameworks.siirl.env import SiirlEnvAdapter
    from vla_models.interface import VLAInterface

WORLDS: Final = 2
"""Worlds of a rank: one drives while the model decides for the other."""


@dataclass(frozen=True)
class Asked:
    """How a model is asked, and what its drives count for."""

    temperature: float = 1.0
    top_p: float = 1.0
    success_score: float = 0.8
    """Where an environment does not say ``success``: the score from which an episode is one."""


@dataclass
class _Chunk:
    """Episodes on the way; lists have an entry for each decision."""

    ids: list[int]
    made: npt.NDArray[np.int64]
    valid: npt.NDArray[np.bool_]
    finished: npt.NDArray[np.bool_]
    """Terminated by the task, not by a limit."""
    rows: list[npt.NDArray[np.int64]] = field(default_factory=list)
    records: list[Tensor] = field(default_factory=list)
    plans: list[npt.NDArray[np.float32]] = field(default_factory=list)
    rewards: list[npt.NDArray[np.float32]] = field(default_factory=list)
    values: list[Tensor | None] = field(default_factory=list)
    seen: list[dict[str, Any]] = field(default_factory=list)
    totals: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)


class Rollout:
    """One rank's episodes.

    Args:
        model: what decides.
        worlds: environments that run side by side.
        records: how records become words.
        longest: most decisions of an episode.
        asked: sampling and what answers count for.
        embeds: whether embeddings are wanted (SRPO); else they are [B, 1] zeros.
        video: the video embedding; without one, ``embedding.trajectory``.
        threads: torch threads of the model.
    """

    def __init__(
        self,
        model: VLAInterface,
        worlds: Sequence[SiirlEnvAdapter],
        records: RecordWords,
        longest: int,
        asked: Asked,
        *,
        embeds: bool = False,
        video: VideoEmbedding | None = None,
        threads: int = 1,
    ) -> None:
        self.model, self.worlds, self.records = model, list(worlds), records
        self.longest, self.asked, self.embeds, self.video = longest, asked, embeds, video
        self._loop = asyncio.new_event_loop()  # never made the current one: siiRL has its own
        self._thread = ThreadPoolExecutor(1, "vla-model", initializer=torch.set_num_threads, initargs=(threads,))
        self._model_s = self._world_s = 0.0

    def drive(
        self, ids: Sequence[int], group: int, *, deterministic: bool = False, stream: Callable[[int], int] | None = None
    ) -> Driven:
        """Run an episode for each of ``ids`` (places in the worlds' tokens).

        Args:
            ids: runs of ``group`` equal ones in training; any in evaluation.
            group: G.
            deterministic: the most likely plans.
            stream: seed of a chunk's samples, by its number; without it sampling is torch's own.
        """
        size = self.worlds[0].env.num_envs // group * group
        waiting = list(enumerate(list(ids[at : at + size]) for at in range(0, len(ids), size)))
        done: list[_Chunk | None] = [None] * len(waiting)
        self._model_s = self._world_s = 0.0
        started = time.perf_counter()

        async def work(world: SiirlEnvAdapter) -> None:
            while waiting:
                number, part = waiting.pop(0)
                seed = None if stream is None else stream(number)
                done[number] = await self._chunk(world, part, group, deterministic, seed)

        async def all_of_them() -> None:
            async with asyncio.TaskGroup() as tasks:
                for world in self.worlds:
                    tasks.create_task(work(world))

        try:
            self._loop.run_until_complete(all_of_them())
        except BaseExceptionGroup as e:  # the cause is what matters, and siiRL's nodes know no groups
            raise e.exceptions[0] from None
        return self._assemble([chunk for chunk in done if chunk is not None], time.perf_counter() - started)

    def close(self) -> None:
        """End the worlds and the threads."""
        for world in self.worlds:
            world.close()
        self._thread.shutdown()
        self._loop.close()

    # -- one chunk -------------------------------------------------------------------------------------------------------

    async def _chunk(self, world: SiirlEnvAdapter, ids: list[int], group: int, deterministic: bool, seed: int | None) -> _Chunk:
        """Episodes ``ids`` in one world, from their first observation to the end of the last."""
        count = len(ids)
        device = next(self.model.parameters()).device
        generator = None if seed is None or deterministic else torch.Generator(device).manual_seed(seed)
        chunk = _Chunk(ids, np.zeros(count, int), np.ones(count, bool), np.zeros(count, bool))
        observation = await self._timed(world.reset(ids))
        live = np.arange(count)
        while len(live) and len(chunk.rows) < self.longest:
            together = group if not chunk.rows and not deterministic else 1  # later, a group's members stand in other places
            prediction = await self._decide(observation, live, together, deterministic, generator)
            planned = np.ones(len(live), bool) if prediction.valid is None else np.asarray(prediction.valid)
            self._note(chunk, observation, live, prediction, deterministic)
            observation, rewards, terminated, _, info = await self._timed(
                world.step({"indices": live[planned], "actions": prediction.waypoints[planned]})
            )
            failed = np.isnan(rewards[live])
            chunk.valid[live[failed]] = False
            chunk.finished[live] = terminated[live] & ~failed
            chunk.rewards.append(np.nan_to_num(rewards[live]).astype(np.float32))
            chunk.totals = {name: values[:count] for name, values in info["totals"].items()}
            live = np.flatnonzero(~info["over"][:count])
        return chunk

    async def _decide(
        self,
        observation: Mapping[str, Any],
        live: npt.NDArray[np.int64],
        together: int,
        deterministic: bool,
        generator: torch.Generator | None,
    ) -> VLAPrediction:
        """Plans for some rows, in the model's thread; equal neighbours are shown to the model once."""
        shown = live[::together]
        inputs = VLAInput.batch(_rows(observation, shown))
        options: dict[str, Any] = {"deterministic": deterministic, "num_samples": together}
        if not deterministic:
            options |= {"temperature": self.asked.temperature, "top_p": self.asked.top_p, "generator": generator}

        def ask() -> VLAPrediction:
            started = time.perf_counter()
            with torch.no_grad():
                prediction = self.model.predict(inputs, **options)
            self._model_s += time.perf_counter() - started
            return prediction

        return await asyncio.get_running_loop().run_in_executor(self._thread, ask)

    async def _timed(self, waited: Any) -> Any:
        started = time.perf_counter()
        result = await waited
        self._world_s += time.perf_counter() - started
        return result

    def _note(
        self,
        chunk: _Chunk,
        observation: Mapping[str, Any],
        live: npt.NDArray[np.int64],
        prediction: VLAPrediction,
        deterministic: bool,
    ) -> None:
        """Keep what a decision was made from and what it was; evaluation keeps no records."""
        chunk.rows.append(live)
        if not deterministic:
            chunk.records.append(self._pack(prediction))
        values = prediction.values
        chunk.values.append(None if values is None else values.detach().float().cpu())
        if self.embeds:
            chunk.plans.append(prediction.waypoints)
            seen = {name: np.asarray(observation[name])[live] for name in ("ego", "route") if name in observation}
            if self.video is not None:
                seen["frame"] = next(iter(observation["images"].values()))[live]
            chunk.seen.append(seen)
        chunk.made[live] += 1

    def _pack(self, prediction: VLAPrediction) -> Tensor:
        """The record of some decisions as words."""
        if prediction.record is None or prediction.logprobs is None:
            raise NotImplementedByModel(
                f"{type(self.model).__name__} cannot be trained: its predict returns no record and logprobs "
                "(see docs/models.md)"
            )
        return self.records.pack(prediction.record, prediction.logprobs)

    # -- all of them -----------------------------------------------------------------------------------------------------

    def _assemble(self, chunks: Sequence[_Chunk], wall: float) -> Driven:
        """Chunks in their order as one batch."""
        sizes = [len(chunk.ids) for chunk in chunks]
        total, longest = sum(sizes), max(len(chunk.rows) for chunk in chunks)
        width = self.records.width if any(chunk.records for chunk in chunks) else 0
        records = torch.zeros(total, longest, width, dtype=torch.int64)
        rewards = torch.zeros(total, longest)
        with_values = all(v is not None for chunk in chunks for v in chunk.values)
        values = torch.zeros(total, longest) if with_values else None
        start = 0
        for chunk, size in zip(chunks, sizes, strict=True):
            for at, rows in enumerate(chunk.rows):
                where = slice(start, start + size) if len(rows) == size else torch.from_numpy(rows + start)
                if width:
                    records[where, at] = chunk.records[at]
                rewards[where, at] = torch.from_numpy(chunk.rewards[at])
                if values is not None:
                    values[where, at] = chunk.values[at]  # type: ignore[assignment]
            start += size
        valid = np.concatenate([chunk.valid for chunk in chunks])
        rewards[torch.from_numpy(~valid)] = 0.0
        names = {name for chunk in chunks for name in chunk.totals}
        zeros = {chunk_size: np.zeros(chunk_size, np.float32) for chunk_size in sizes}
        totals = {
            name: np.concatenate([c.totals.get(name, zeros[n]) for c, n in zip(chunks, sizes, strict=True)])
            for name in sorted(names)
        }
        finished = np.concatenate([chunk.finished for chunk in chunks])
        if "success" in totals:
            finished = totals["success"] > 0.5
        elif "score" in totals:
            finished = totals["score"] >= self.asked.success_score
        embedding = np.zeros((total, 1), dtype=np.float32)
        if self.embeds:
            embedding = np.concatenate([self._embed(chunk) for chunk in chunks])
        embedding[~valid] = 0.0
        return Driven(
            records=records,
            rewards=rewards,
            values=values,
            decisions=torch.from_numpy(np.concatenate([chunk.made for chunk in chunks])),
            valid=torch.from_numpy(valid),
            success=torch.from_numpy(finished & valid),
            embedding=torch.from_numpy(embedding),
            totals=totals,
            model_s=self._model_s,
            world_s=self._world_s,
            wall_s=wall,
        )

    def _embed(self, chunk: _Chunk) -> npt.NDArray[np.float32]:
        """SRPO's embedding of each episode of a chunk."""
        episodes, decisions = len(chunk.ids), len(chunk.rows)

        def whole(parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
            """What was kept at each decision for the rows that then ran -> [episodes, decisions, …]."""
            out = np.zeros((episodes, decisions, *parts[0].shape[1:]), dtype=parts[0].dtype)
            for at, (rows, part) in enumerate(zip(chunk.rows, parts, strict=True)):
                out[rows, at] = part
            return out

        seen = {name: whole([kept[name] for kept in chunk.seen]) for name in chunk.seen[0]}
        if self.video is not None:
            frames = [list(pictures[:made]) for pictures, made in zip(seen["frame"], chunk.made, strict=True)]
            return embed_videos(self.video, [str(i) for i in chunk.ids], frames)
        return trajectory(whole(chunk.plans), seen, chunk.made, self.longest == 1)


def _rows(observation: Mapping[str, Any], rows: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Some rows of an observation."""

    def some(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: some(v) for name, v in value.items()}
        return [value[i] for i in rows] if isinstance(value, list) else value[rows]

    return {name: some(value) for name, value in observation.items()}
