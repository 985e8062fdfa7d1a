"""``write_report``: one self-contained HTML file that says what a run reached, how it got there and where it still fails."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vla_models.errors import MissingDependency
from vla_models.files import atomic_path
from vla_models.report.run import PLANNERS, SIGNS, SUB_SCORES, Heldout, Run, read_run

FloatArray = npt.NDArray[np.float64]

IMPROVED: Final = 4
FAILURES: Final = 6
"""How many scenes are shown of each sort."""

FACTORS: Final = {"v1": ("nc", "dac"), "v2": ("nc", "dac", "ddc", "tlc")}
WEIGHTS: Final = {"v1": {"ep": 5.0, "ttc": 5.0, "comfort": 2.0}, "v2": {"ep": 5.0, "ttc": 5.0, "comfort": 2.0, "lk": 2.0}}
"""How the PDM score is put together: factors, and the weights of the mean that they multiply."""


def write_report(run_dir: Path) -> Path:
    """Write ``run_dir/report.html`` from what the run folder holds, and return its path.

    Read are ``summary.json`` (needed), ``config.yaml``, ``metrics.jsonl`` and ``heldout.npz`` with its scene file; what is
    missing among these is named in the report, which is written all the same. An older report is replaced in one step.

    Raises:
        RunError: ``summary.json`` is missing or unusable.
        MissingDependency: matplotlib or jinja2 is not installed.
    """
    try:
        import jinja2
        import matplotlib as _matplotlib  # noqa: F401  # the pictures import it deep inside; say early what is missing
    except ImportError as e:
        raise MissingDependency(f"reports need matplotlib and jinja2 ({e}): pip install matplotlib jinja2") from e
    run = read_run(Path(run_dir))
    if run.on_routes:
        from vla_models.report.routes import route_content

        name, content = "routes.html", route_content(run)
    else:
        name, content = "scenes.html", _scene_content(run)
    templates = files("vla_models.report")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: templates.joinpath(name).read_text(encoding="utf-8")),
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["png"] = _data_url
    environment.filters["duration"] = duration
    html = environment.get_template(name).render(**_frame(run), **content)
    out = Path(run_dir) / "report.html"
    with atomic_path(out) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return out


def lost_by(scores: dict[str, FloatArray], row: int, version: str = "v1") -> list[str]:
    """Names of the sub-scores that cost row ``row`` its points, the gravest first.

    The factors of the score (collision, area, lights) come first wherever they are below 1, then the parts of its weighted mean
    by what they cost. What does not count is not named: ``ddc`` in v1, and progress where a factor of 0 has voided it.
    ``scores``: sub-score -> [n].
    """
    lost = {name: 1.0 - float(values[row]) for name, values in scores.items()}
    factors = sorted((name for name in FACTORS[version] if lost.get(name, 0.0) > 1e-9), key=lambda name: -lost[name])
    void = any(lost[name] > 1.0 - 1e-9 for name in factors)
    parts = [name for name in WEIGHTS[version] if lost.get(name, 0.0) > 0.02 and not (void and name == "ep")]
    return factors + sorted(parts, key=lambda name: -WEIGHTS[version][name] * lost[name])


def duration(seconds: float) -> str:
    """Seconds as people say them: "42 s", "7 min 05 s", "1 h 02 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _data_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _frame(run: Run) -> dict[str, Any]:
    """What base.html shows of any run."""
    return {
        "run": run.path.resolve().name,
        "summary": run.summary,
        "before": run.score("imitation"),
        "after": run.score("rl"),
        "count": len(run.heldout.tokens) if run.heldout is not None else None,
        "planners": {name: title for name, (title, _) in run.planners.items()},
        "config": run.config,
        "times": _times(run),
        "versions": run.summary.get("versions") if isinstance(run.summary.get("versions"), dict) else {},
        "missing": run.missing,
        "written": time.strftime("%Y-%m-%d %H:%M"),
    }


def _scene_content(run: Run) -> dict[str, Any]:
    """What scenes.html shows of a run in NavSim."""
    from vla_models.report.pictures import health_curves, learning_curve, sign_curves, sub_score_curves

    used = [name for name in SUB_SCORES if any(run.sub_score(planner, name) is not None for planner in PLANNERS)]
    signs = [name for name in SIGNS if any(run.sub_score(planner, name) is not None for planner in PLANNERS)]
    table = [
        {
            "name": name,
            "title": title,
            "what": what,
            "score": run.score(name),
            "subs": [run.sub_score(name, key) for key in used],
            "signs": [run.sub_score(name, key) for key in signs],
        }
        for name, (title, what) in PLANNERS.items()
    ]
    charts = [
        (
            "Learning curve",
            "Sampling explores, so sampled plans usually earn less than the most likely one.",
            learning_curve,
        ),
        (
            "Sub-scores",
            "Lines: plans sampled on training scenes. Dots: the most likely plan on held-out scenes.",
            sub_score_curves,
        ),
        (
            "Is the reward being gamed?",
            "A total that rises while the ego drives backwards, or while it gets less far, is not better driving.",
            sign_curves,
        ),
        ("Is the optimisation sound?", "", health_curves),
    ]
    drawn = [(title, note, picture) for title, note, make in charts if (picture := make(run)) is not None]
    if run.metrics and not any(title == "Sub-scores" for title, _, _ in drawn):
        run.missing.append("metrics.jsonl has no sub-scores.")
    improved, failures = _scenes(run)
    kinds = _by_kind(run.heldout) if run.heldout is not None else []
    return {
        "score": "score",
        "best": 1,
        "digits": 3,
        "things": "scenes",
        "sub_scores": [(name, SUB_SCORES[name][0]) for name in used],
        "signs": [(name, SIGNS[name]) for name in signs],
        "uncounted": [name for name in used if name not in FACTORS[run.version] and name not in WEIGHTS[run.version]],
        "version": run.version,
        "table": table,
        "charts": drawn,
        "improved": improved,
        "failures": failures,
        "losses": _losses(run.heldout, run.version) if run.heldout is not None else [],
        "kinds": kinds,
    }


def _scenes(run: Run) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Cards of the scenes that RL improved most, and of those where its plan is worst."""
    held = run.heldout
    if held is None or "rl" not in held.plans or "score" not in held.scores["rl"] or held.store is None:
        if held is not None and held.store is not None:
            run.missing.append("heldout.npz has no plans and scores of rl: there are no pictures of scenes.")
        return [], []
    after = held.scores["rl"]["score"]
    before = held.scores["imitation"].get("score")
    improved: list[int] = []
    if before is not None and "imitation" in held.plans:
        gain = after - before
        improved = [int(row) for row in np.argsort(-gain, kind="stable")[:IMPROVED] if gain[row] > 0.01]
    failures = [int(row) for row in np.argsort(after, kind="stable") if after[row] < 0.999][: 3 * FAILURES]
    failures = _varied(failures, lambda row: (lost_by(held.scores["rl"], row, run.version) or [""])[0], FAILURES)
    cards = {row: _card(held, row, run.version) for row in dict.fromkeys(improved + failures)}
    lacking = [held.tokens[row] for row, card in cards.items() if card is None]
    if lacking:
        run.missing.append(f"The scene file lacks {len(lacking)} scene(s) that would be shown, for example {lacking[0]}.")
    return [c for row in improved if (c := cards[row])], [c for row in failures if (c := cards[row])]


def _varied(rows: list[int], sort: Callable[[int], str], count: int) -> list[int]:
    """The first ``count`` rows, taking the sorts in turn, so that one kind of failure does not fill the page."""
    groups: dict[str, list[int]] = {}
    for row in rows:
        groups.setdefault(sort(row), []).append(row)
    chosen: list[int] = []
    while len(chosen) < min(count, len(rows)):
        for group in groups.values():
            if group and len(chosen) < count:
                chosen.append(group.pop(0))
    return chosen


def _card(held: Heldout, row: int, version: str) -> dict[str, Any] | None:
    """One scene with its plans before and after, the reference's and what was lost; None where the scene is gone."""
    from vla_models.report.pictures import bird_picture, camera_picture

    scene = held.scene(row)
    if scene is None:
        return None
    shown = {"imitation": "before", "rl": "after", "pdm_closed": "pdm_closed"}
    plans = {label: held.plans[name][row] for name, label in shown.items() if name in held.plans}
    image = next(iter(scene.images.values()), None)
    names = [name for name in SUB_SCORES if name in held.scores["rl"]]
    counted = [name for name in names if name in FACTORS[version] or name in WEIGHTS[version]]
    rows = []
    for name, label in (("imitation", "before"), ("rl", "after")):
        scores = held.scores[name]
        if "score" in scores:
            rows.append((label, float(scores["score"][row]), [float(scores[k][row]) if k in scores else None for k in names]))
    return {
        "token": scene.token,
        "kind": (scene.kind or "scene").replace("_", " "),
        "town": scene.town,
        "bird": bird_picture(scene, plans),
        "camera": None if image is None else camera_picture(image),
        "names": names,
        "counted": counted,
        "rows": rows,
        "before": float(held.scores["imitation"]["score"][row]) if "score" in held.scores["imitation"] else None,
        "after": float(held.scores["rl"]["score"][row]),
        "lost": [(name, SUB_SCORES[name][1]) for name in lost_by(held.scores["rl"], row, version)],
    }


def _losses(held: Heldout, version: str) -> list[dict[str, Any]]:
    """For each sub-score that counts: share of held-out scenes that lose by it, by planner."""
    lost = {
        planner: [lost_by({k: v for k, v in scores.items() if k != "score"}, row, version) for row in range(len(held.tokens))]
        for planner, scores in held.scores.items()
    }
    out = []
    for name, (title, loss) in SUB_SCORES.items():
        if name not in FACTORS[version] and name not in WEIGHTS[version]:
            continue
        shares = [
            sum(name in names for names in lost[planner]) / len(lost[planner])
            if lost[planner] and name in held.scores[planner]
            else None
            for planner in PLANNERS
        ]
        if any(share is not None for share in shares):
            out.append({"name": name, "title": title, "loss": loss, "shares": shares})
    return out


def _by_kind(held: Heldout) -> list[dict[str, Any]]:
    """Mean score by kind of scene and planner, the kinds where the trained model is worst first."""
    if held.store is None:
        return []
    known = dict(zip(held.store.tokens, held.store.kinds, strict=True))
    kinds = np.array([known.get(token) or "unknown" for token in held.tokens])
    rows = []
    for kind in np.unique(kinds):
        chosen = kinds == kind
        means = [float(held.scores[p]["score"][chosen].mean()) if "score" in held.scores[p] else None for p in PLANNERS]
        rows.append({"kind": str(kind).replace("_", " "), "count": int(chosen.sum()), "means": means})
    last = list(PLANNERS).index("rl")
    return sorted(rows, key=lambda row: (row["means"][last] is None, row["means"][last], row["kind"]))


def _times(run: Run) -> list[tuple[str, str]]:
    """Wall times of the phases, and how RL's was spent."""
    out: list[tuple[str, str]] = []
    total = run.summary.get("wall_s")
    if isinstance(total, (int, float)):
        out.append(("whole run", duration(total)))
    ends = {phase: run.series(phase, "wall_s")[1] for phase in ("imitation", "rl")}
    if len(ends["imitation"]):
        out.append(("imitation", f"{duration(ends['imitation'].max())} for {len(ends['imitation'])} steps"))
    if len(ends["rl"]):
        before = ends["imitation"].max() if len(ends["imitation"]) else 0.0
        out.append(
            (
                "reinforcement learning",
                f"{duration(ends['rl'].max() - before)} for {len(ends['rl'])} steps, evaluations included",
            )
        )
        parts = {"sampling": "sample_s", "scoring": "score_s", "updating": "update_s"}
        sums = {name: run.series("rl", key)[1].sum() for name, key in parts.items()}
        if sum(sums.values()) > 0.0:
            out.append(("of which", ", ".join(f"{name} {duration(value)}" for name, value in sums.items())))
    return out
