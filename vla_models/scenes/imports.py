"""Foreign scenes -> a scene store: ``import_scenes``, in shards, by several processes, as often as it takes.

The store is a folder. ``plan.json`` says what goes into which shard and is written first; each shard is one scene file with a
small report beside it, both written atomically; ``store.json`` makes the folder a store and is written last. A run that was
killed is run again as it was: finished shards are kept, and the result is the same.
"""

from __future__ import annotations

import glob
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

from vla_models import __version__
from vla_models.errors import SceneError, VLAModelsError
from vla_models.files import atomic_path, code_hash
from vla_models.scenes.metric_cache import FILE_NAME, metric_cache_files, read_metric_cache
from vla_models.scenes.navsim import Devkit, scenes_of_log, with_agent_paths
from vla_models.scenes.navsim_logs import Logs, attach_log
from vla_models.scenes.neutral import read_scene
from vla_models.scenes.scene import Scene
from vla_models.scenes.store import MANIFEST, SceneStore, write_manifest, write_scenes
from vla_models.workers import end_with_parent

PLAN: Final = "plan.json"
_SHARD_ITEMS: Final = 256
_LEAST_SHARDS: Final = 32
"""Few files are split finely, so that the progress bar moves and several processes have work."""


@dataclass(frozen=True)
class Options:
    """What is done with each source, beside reading it."""

    logs: Logs | None = None
    """Logs and images that complete metric caches."""
    devkit: Devkit | None = None
    """nuPlan's maps, by which navsim itself reads log files and metric caches get the lanes of reactive traffic (needs navsim
    and nuplan-devkit)."""


@dataclass(frozen=True)
class BadFile:
    """A source that could not be imported."""

    path: str
    message: str


@dataclass(frozen=True)
class Imported:
    """What an import came to."""

    store: SceneStore | None
    """None where bad files were not to be skipped."""
    bad: tuple[BadFile, ...]
    reused: int
    """Shards that an earlier run had finished."""


def find_sources(sources: Sequence[str | Path], devkit: bool = False) -> list[Path]:
    """The files that ``sources`` mean: files, folders (searched for metric caches, ``pdm-scene/1`` files and, with
    ``devkit``, logs) or patterns. SceneError for one that means nothing."""
    found: dict[Path, None] = {}
    for source in sources:
        path = Path(source)
        if path.is_dir():
            files = metric_cache_files(path) + sorted([*path.rglob("*.json"), *path.rglob("*.json.gz")])
            if devkit:
                files += sorted(p for p in path.rglob("*.pkl") if p.name != FILE_NAME)
        else:
            files = [path] if path.is_file() else sorted(Path(name) for name in glob.glob(str(source), recursive=True))
        if not files:
            raise SceneError(f"{str(source)!r} names no metric cache and no pdm-scene/1 file")
        found |= dict.fromkeys(file.resolve() for file in files)
    return list(found)


def read_source(path: Path, options: Options) -> Iterator[Scene]:
    """The scenes in a source file: one, or all of a log."""
    if path.name == FILE_NAME:
        scene = read_metric_cache(path)
        if options.logs is not None:
            scene = attach_log(scene, path.parent.parent.parent.name, options.logs)
        yield scene if options.devkit is None else with_agent_paths(scene, options.devkit)
    elif path.name.endswith((".json", ".json.gz")):
        scene = read_scene(path)
        if scene.reference is None:
            from vla_models.scoring.pdm.closed import plan_pdm_closed

            scene = scene.with_(reference=plan_pdm_closed(scene))
        yield scene
    elif path.suffix == ".pkl" and options.devkit is not None:
        yield from scenes_of_log(path, options.devkit)
    else:
        raise SceneError(
            f"{path} is neither a {FILE_NAME} nor a pdm-scene/1 file (.json, .json.gz); NavSim's log files need --maps and "
            "an installed navsim"
        )


def import_scenes(
    sources: Sequence[str | Path],
    out: Path,
    options: Options | None = None,
    *,
    workers: int = 1,
    skip_bad: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Imported:
    """Make the store ``out`` (a folder) of ``sources``; ``progress(done, count)`` counts source files.

    All sources are tried. Those that cannot be read are left out (``skip_bad``), or their shards are, and then there is no
    store yet: mend or remove them and run again. Raises SceneError where ``out`` holds something else, or a token comes twice.
    """
    options = options or Options()
    if options.logs is not None:
        options.logs.check()
    files = find_sources(sources, options.devkit is not None)
    plan = _plan(files, options, out)
    size = plan["shard_items"]
    shards = [files[k : k + size] for k in range(0, len(files), size)]
    todo = [k for k in range(len(shards)) if not _finished(out, k, skip_bad)]
    done = len(files) - sum(len(shards[k]) for k in todo)
    if progress is not None:
        progress(done, len(files))
    bad: list[BadFile] = []
    for k, unread in _run(todo, shards, options, out, skip_bad, workers):
        done += len(shards[k])
        bad += unread
        if progress is not None:
            progress(done, len(files))
    if bad and not skip_bad:
        return Imported(None, tuple(sorted(bad, key=lambda b: b.path)), len(shards) - len(todo))
    reports = [json.loads(_report(out, k).read_text(encoding="utf-8")) for k in range(len(shards))]
    left_out = [BadFile(**one) for report in reports for one in report["bad"]]
    _check_tokens(out, [report["tokens"] for report in reports])
    provenance = {
        "made_by": f"vla_models {__version__} scenes import",
        "scorer": scorer_version(),
        "source": hashlib.sha256("".join(report["source"] for report in reports).encode()).hexdigest()[:16],
        "sources": json.dumps([str(source) for source in sources]),
        "source_files": str(len(files)),
        "left_out": str(len(left_out)),
        "options": plan["options"],
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    store = write_manifest(out, [_shard(out, k).name for k in range(len(shards))], provenance)
    return Imported(store, tuple(left_out), len(shards) - len(todo))


def scorer_version() -> str:
    """The version of this package's PDM score, with a hash of its code: for stamping stores and results."""
    folder = Path(__file__).parent.parent / "scoring" / "pdm"
    return f"vla_models.scoring.pdm {__version__}+{code_hash(folder.glob('*.py'))}"


def _shard(out: Path, k: int) -> Path:
    return out / f"shard-{k:05d}.arrow"


def _report(out: Path, k: int) -> Path:
    return out / f"shard-{k:05d}.json"


def _plan(files: list[Path], options: Options, out: Path) -> dict[str, Any]:
    """The plan in ``out``, made now if there is none. SceneError if it is a plan for something else."""
    digest = hashlib.sha256("\n".join(map(str, files)).encode()).hexdigest()
    plan = {
        "files": digest,
        "count": len(files),
        "shard_items": min(_SHARD_ITEMS, math.ceil(len(files) / _LEAST_SHARDS)),
        "options": repr(options),
        "code": scorer_version(),
    }
    path = out / PLAN
    if path.exists():
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise SceneError(f"{path} is damaged ({error}); delete {out} and import again") from error
        differs = [name for name in ("files", "count", "options", "code") if known.get(name) != plan[name]]
        if differs:
            what = {"files": "other files", "count": "other files", "options": "other options", "code": "another version"}
            raise SceneError(f"{out} was begun with {what[differs[0]]}; give another --out, or delete it")
        return dict(known)
    if out.exists() and any(out.iterdir()):
        raise SceneError(f"{out} is not empty and no import; give another --out")
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(plan, indent=2) + "\n", encoding="utf-8")
    return plan


def _finished(out: Path, k: int, skip_bad: bool) -> bool:
    """Whether an earlier run finished shard ``k``, and without leaving out what is not to be left out now."""
    if not _shard(out, k).exists():
        return False
    return skip_bad or not json.loads(_report(out, k).read_text(encoding="utf-8"))["bad"]


def _run(
    todo: list[int], shards: list[list[Path]], options: Options, out: Path, skip_bad: bool, workers: int
) -> Iterator[tuple[int, list[BadFile]]]:
    """Make the shards ``todo`` and tell of each as it is finished."""
    workers = min(workers, len(todo))
    if workers <= 1:
        for k in todo:
            yield k, _make_shard(out, k, shards[k], options, skip_bad)
        return
    with ExitStack() as stack:
        pool = stack.enter_context(ProcessPoolExecutor(workers, get_context("spawn"), end_with_parent))
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        futures: dict[Future[list[BadFile]], int] = {
            pool.submit(_make_shard, out, k, shards[k], options, skip_bad): k for k in todo
        }
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool:
            raise SceneError(
                f"a worker process died (out of memory?); what is finished in {out} is kept: run the import again, with fewer "
                "--workers"
            ) from None


class _HasBadFilesError(Exception):
    pass


def _make_shard(out: Path, k: int, files: list[Path], options: Options, skip_bad: bool) -> list[BadFile]:
    """Write shard ``k`` and its report; its bad files. Nothing is written where they are not to be skipped."""
    bad: list[BadFile] = []
    tokens: list[str] = []
    source = hashlib.sha256()

    def scenes() -> Iterator[Scene]:
        for file in files:
            try:
                found = [_scorable(scene) for scene in read_source(file, options)]
                source.update(hashlib.sha256(file.read_bytes()).digest())
            except (VLAModelsError, OSError) as error:
                bad.append(BadFile(str(file), str(error) if str(file) in str(error) else f"{file}: {error}"))
                continue
            tokens.extend(scene.token for scene in found)
            yield from found
        if bad and not skip_bad:
            raise _HasBadFilesError
        report = {"source": source.hexdigest(), "tokens": tokens, "bad": [{"path": b.path, "message": b.message} for b in bad]}
        with atomic_path(_report(out, k)) as temporary:  # before the shard, which says that both are there
            temporary.write_text(json.dumps(report) + "\n", encoding="utf-8")

    try:
        write_scenes(_shard(out, k), scenes(), {"part_of": MANIFEST})
    except _HasBadFilesError:
        _shard(out, k).unlink(missing_ok=True)
    return bad


def _scorable(scene: Scene) -> Scene:
    """``scene``; SceneError with all that keeps it from being scored."""
    from vla_models.scoring.pdm.check import scene_problems

    problems = scene_problems(scene)
    if problems:
        raise SceneError(f"scene {scene.token!r} " + "; it ".join(problems))
    return scene


def _check_tokens(out: Path, tokens: list[list[str]]) -> None:
    """SceneError for a token that comes twice."""
    seen: set[str] = set()
    for token in (token for shard in tokens for token in shard):
        if token in seen:
            raise SceneError(f"two sources of {out} have the token {token!r}; tokens must be unique in a store")
        seen.add(token)
