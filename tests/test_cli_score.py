"""``vla-models score``: equal to the official arrays through the command, whole folders, and what it says to bad input."""

from __future__ import annotations

import csv
import gzip
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import vla_models.scoring.bulk.run
from vla_models.scenes.neutral import read_scene
from vla_models.scenes.store import write_manifest, write_scenes

Run = Callable[..., tuple[int, str, str]]

DATA = Path(__file__).parent / "data"
GOLDEN = DATA / "pdm"
SCENES = sorted(p.name.removesuffix(".json.gz") for p in GOLDEN.glob("*.json.gz"))
DISCRETE = {"nc", "dac", "ddc", "tlc", "ttc", "lk", "hc", "comfort", "mult", "nc_idx", "ttc_idx", "ec_pairs", "ego_areas"}


@pytest.fixture(scope="module")
def official() -> dict[str, dict[str, np.ndarray]]:
    """Scene -> all its official arrays, with what the committed files hold apart."""
    more = np.load(DATA / "pdm_interp_and_reference.npz")
    found = {}
    for name in SCENES:
        with np.load(GOLDEN / f"{name}.npz") as file:
            found[name] = dict(file)
        for version in ("v1", "v2"):  # the official code drives the same in both
            found[name][f"{version}_interp"] = more[f"{name}/interp"]
            found[name][f"{version}_states"] = found[name]["v1_states"]
            found[name][f"{version}_ref_states"] = more[f"{name}/ref_states"]
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with three scenes and another with their proposals."""
    (tmp_path / "scenes").mkdir()
    (tmp_path / "plans").mkdir()
    for name in SCENES[:3]:
        shutil.copy(GOLDEN / f"{name}.json.gz", tmp_path / "scenes")
        np.save(tmp_path / "plans" / f"{name}.npy", np.load(GOLDEN / f"{name}.npz")["proposals"])
    return tmp_path


# -- one scene -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_every_official_array_comes_out_of_the_command(run: Run, tmp_path: Path, official, name: str, version: str) -> None:
    golden = official[name]
    np.save(tmp_path / "P.npy", golden["proposals"])
    scene, out = GOLDEN / f"{name}.json.gz", tmp_path / "O.npz"
    code, said, _ = run("score", "--scene", scene, "--proposals", tmp_path / "P.npy", "--version", version, "--out", out)
    assert code == 0
    assert f"{name}: means over 64 proposals, {version}" in said
    written = np.load(out)
    expected = {key.removeprefix(f"{version}_"): value for key, value in golden.items() if key.startswith(f"{version}_")}
    assert {"score", "nc", "states", "interp", "ref_states", "ref_mult", "ego_areas"} <= expected.keys() <= set(written.files)
    assert ("f_nc" in written.files) == (version == "v2" and read_scene(scene).human is not None)
    for key, value in expected.items():
        array = written[key]
        assert len(array.shape) == len(value.shape)
        if key == "states":
            array = array[::4]
        elif key == "interp":
            array = array[::16]
        if key.startswith("f_"):
            array, value = array[:16], value[:16]
        if key in DISCRETE:
            np.testing.assert_array_equal(array, value, err_msg=key)
        else:
            np.testing.assert_allclose(array, value, rtol=0, atol=1e-6, err_msg=key)
    provenance = json.loads(str(written["provenance"]))
    assert provenance["score"] == version
    assert provenance["definition"].startswith("NavSim v1.1" if version == "v1" else "NavSim v2.2")
    assert provenance["scorer"].startswith(f"vla_models.scoring.pdm {vla_models.__version__}+")
    assert len(provenance["source_sha256"]) == len(provenance["proposals_sha256"]) == 64


def test_an_unzipped_scene_and_single_precision_will_do(run: Run, tmp_path: Path, official) -> None:
    (tmp_path / "S.json").write_bytes(gzip.decompress((GOLDEN / f"{SCENES[4]}.json.gz").read_bytes()))
    plans = official[SCENES[4]]["proposals"]
    np.save(tmp_path / "P.npy", np.asfortranarray(plans.astype(np.float32)))
    os.chdir(tmp_path)
    assert run("score", "--scene", "S.json", "--proposals", "P.npy", "--out", "O.npz")[0] == 0
    np.testing.assert_allclose(np.load("O.npz")["score"], official[SCENES[4]]["v1_score"], atol=0.05)


def test_one_proposal_is_enough(run: Run, tmp_path: Path, official) -> None:
    np.save(tmp_path / "P.npy", official[SCENES[2]]["proposals"][:1])
    scene, out = GOLDEN / f"{SCENES[2]}.json.gz", tmp_path / "O.npz"
    assert run("score", "--scene", scene, "--proposals", tmp_path / "P.npy", "--version", "v2", "--out", out)[0] == 0
    assert np.load(out)["ec_pairs"].shape == (0,)
    assert np.load(out)["score"] == pytest.approx(official[SCENES[2]]["v2_score"][:1], abs=1e-6)


def test_a_row_that_is_not_finite_is_refused_or_marked(run: Run, tmp_path: Path, official) -> None:
    plans = official[SCENES[2]]["proposals"].copy()
    plans[5, 3, 1], plans[9] = np.nan, np.inf
    np.save(tmp_path / "P.npy", plans)
    out = tmp_path / "O.npz"
    arguments = ["score", "--scene", GOLDEN / f"{SCENES[2]}.json.gz", "--proposals", tmp_path / "P.npy", "--out", out]
    code, _, err = run(*arguments, "--version", "v2")
    assert code == 2
    assert "row 5" in err
    assert "row 9" in err
    assert not out.exists()
    code, _, err = run(*arguments, "--version", "v2", "--on-error", "mark")
    assert code == 0
    assert "[5, 9]" in err
    written, golden = np.load(out), official[SCENES[2]]
    good = np.setdiff1d(np.arange(64), [5, 9])
    np.testing.assert_allclose(written["score"][good], golden["v2_score"][good], atol=1e-6)
    assert np.isnan(written["score"][[5, 9]]).all()
    assert np.isnan(written["states"][[5, 9]]).all()
    assert np.isnan(written["ec_pairs"][[4, 5, 8, 9]]).all()
    assert np.isfinite(np.delete(written["ec_pairs"], [4, 5, 8, 9])).all()


# -- many scenes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["npz", "csv", "parquet"])
def test_rows_of_a_folder(run: Run, folder: Path, official, ending: str) -> None:
    out = folder / f"scores.{ending}"
    code, said, err = run(
        "score", "--scene", folder / "scenes", "--proposals", folder / "plans", "--version", "v2", "--human-filter",
        "--out", out, "--threads", 1,
    )  # fmt: skip
    assert code == 0, err
    assert "means over 192 proposals in 3 scenes, v2" in said
    assert err == "", "no progress bar where nobody looks"
    if ending == "npz":
        rows = dict(np.load(out))
        provenance = json.loads(str(rows["provenance"]))
    elif ending == "parquet":
        table = pq.read_table(out)
        rows = {name: table[name].to_numpy() for name in table.column_names}
        provenance = json.loads(table.schema.metadata[b"provenance"])
    else:
        with out.open() as file:
            listed = list(csv.DictReader(file))
        rows = {n: np.array([row[n] for row in listed]) for n in listed[0]}
        provenance = {"scorer": listed[0]["scorer"], "score": listed[0]["score_version"]}
    assert provenance["score"] == "v2"
    assert provenance["scorer"].startswith("vla_models.scoring.pdm ")
    assert rows["token"].tolist() == [name for name in SCENES[:3] for _ in range(64)]
    assert rows["proposal"].astype(int).tolist() == list(range(64)) * 3
    for name in ("score", "nc", "dac", "ddc", "ep", "ttc", "tlc", "lk", "hc", "mult", "progress_raw", "nc_idx"):
        golden = np.concatenate([official[scene][f"v2_{name}"] for scene in SCENES[:3]])
        np.testing.assert_allclose(rows[name].astype(float), golden, rtol=0, atol=1e-6, err_msg=name)
    assert SCENES[2].startswith("04")  # the one with a human
    for name in ("nc", "dac", "ttc", "lk", "mult"):
        np.testing.assert_array_equal(rows[f"f_{name}"].astype(float)[128:144], official[SCENES[2]][f"v2_f_{name}"][:16])
    f = {name: rows[f"f_{name}"].astype(float) for name in ("mult", "ep", "ttc", "lk", "hc", "score")}
    total = f["mult"] * (5 * f["ep"] + 5 * f["ttc"] + 2 * f["lk"] + 2 * f["hc"]) / 14
    np.testing.assert_allclose(f["score"], total, atol=1e-12)
    assert set(rows["error"]) == {""}
    assert {p.name for p in folder.iterdir()} == {"scenes", "plans", out.name}, "nothing is left beside the result"


def same(run: Run, out: Path, *arguments: object) -> dict[str, np.ndarray]:
    code, _, err = run("score", *arguments, "--out", out, "--threads", 1)
    assert code == 0, err
    return {name: value for name, value in np.load(out).items() if name != "provenance"}


def test_all_ways_to_name_scenes_and_proposals_agree(run: Run, folder: Path) -> None:
    plans = {name: np.load(folder / "plans" / f"{name}.npy") for name in SCENES[:3]}
    write_scenes(folder / "S.arrow", [read_scene(folder / "scenes" / f"{name}.json.gz") for name in SCENES[:3]])
    (folder / "D").mkdir()
    shutil.copy(folder / "S.arrow", folder / "D" / "part.arrow")
    write_manifest(folder / "D", ["part.arrow"], {})
    np.savez(folder / "by_name.npz", **plans)
    reverse = SCENES[2::-1]
    np.savez(folder / "by_token.npz", tokens=reverse, proposals=np.stack([plans[name] for name in reverse]))
    np.save(folder / "stacked.npy", np.stack(list(plans.values())))
    first = same(run, folder / "o.npz", "--scene", folder / "scenes", "--proposals", folder / "plans")
    scenes = [folder / "scenes", f"{folder}/scenes/*.json.gz", f"{folder}/**/*.json.gz", folder / "S.arrow", folder / "D"]
    proposals = [
        folder / "plans",
        f"{folder}/plans/*.npy",
        folder / "by_name.npz",
        folder / "by_token.npz",
        folder / "stacked.npy",
    ]
    for scene, proposal in [(s, proposals[0]) for s in scenes] + [(scenes[3], p) for p in proposals]:
        again = same(run, folder / "o.npz", "--scene", scene, "--proposals", proposal)
        assert again.keys() == first.keys()
        for name, value in first.items():
            np.testing.assert_array_equal(again[name], value, err_msg=f"{scene} {proposal} {name}")


def test_one_proposals_file_serves_every_scene(run: Run, folder: Path) -> None:
    one = folder / "plans" / f"{SCENES[0]}.npy"
    rows = same(run, folder / "o.npz", "--scene", folder / "scenes", "--proposals", one)
    assert len(rows["score"]) == 192
    (folder / "golden").mkdir()
    shutil.copy(GOLDEN / f"{SCENES[0]}.npz", folder / "golden")
    again = same(run, folder / "o.npz", "--scene", folder / "scenes", "--proposals", folder / "golden" / f"{SCENES[0]}.npz")
    np.testing.assert_array_equal(again["score"], rows["score"])


def test_a_batch_names_all_that_is_bad_and_scores_the_rest_if_asked(run: Run, folder: Path) -> None:
    good = SCENES[0]
    (folder / "scenes" / f"{SCENES[1]}.json.gz").write_bytes(b"\x1f\x8b not a gzip file")
    np.save(folder / "plans" / f"{SCENES[2]}.npy", np.zeros((4, 10, 3)))
    (folder / "scenes" / "alone.json").write_text("{}")
    nan = np.load(folder / "plans" / f"{good}.npy")
    nan[7] = np.nan
    np.save(folder / "plans" / f"{good}.npy", nan)
    out = folder / "o.npz"
    arguments = ["score", "--scene", folder / "scenes", "--proposals", folder / "plans", "--out", out, "--threads", 1]
    code, _, err = run(*arguments)
    assert code == 2
    assert err.startswith("error 4 of 4 scenes cannot be scored as they are:")
    for pattern in (
        rf"{good}: proposals \[7\]: .*not finite",
        rf"{SCENES[1]}: .*damaged|not JSON",
        rf"{SCENES[2]}: .*\(4, 10, 3\)",
        "alone: no proposals",
    ):
        assert re.search(pattern, err), (pattern, err)
    assert not out.exists()
    code, said, err = run(*arguments, "--on-error", "mark")
    assert code == 0
    assert "means over 63 proposals" in said
    assert "4 of 4 scenes have rows without a score" in err
    rows = np.load(out)
    assert np.isfinite(rows["score"]).sum() == 63
    assert set(rows["token"][rows["error"] != ""]) == {good, SCENES[1], SCENES[2], "alone"}
    assert rows["token"].tolist().count(SCENES[1]) == 64
    assert rows["token"].tolist().count(SCENES[2]) == 1, "how many proposals there are is not known"
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]


def test_a_person_sees_a_bar(folder: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "vla_models", "score", "--scene", folder / "scenes", "--proposals", folder / "plans"]
    subprocess.run(
        [*command, "--out", folder / "o.csv", "--threads", "1"], stderr=theirs, stdout=subprocess.DEVNULL, check=True
    )
    os.close(theirs)
    assert b"3/3" in os.read(ours, 1 << 16)
    os.close(ours)


def test_ctrl_c_says_how_to_go_on(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(vla_models.scoring.bulk.run, "score_jobs", stopped)
    code, _, err = run("score", "--scene", folder / "scenes", "--proposals", folder / "plans", "--out", folder / "o.csv")
    assert code == 130
    assert "the same command goes on from here" in err


# -- why -------------------------------------------------------------------------------------------------------------------


def test_explain_says_and_draws_why(run: Run, folder: Path) -> None:
    name = SCENES[2]
    code, said, _ = run(
        "score", "--scene", folder / "scenes", "--proposals", folder / "plans", "--explain", name, "--row", 5, "--out",
        folder / "o.csv", "--threads", 1,
    )  # fmt: skip
    assert code == 0
    assert f"{name}, proposal 5: 0.0000 (v1, driven backwards 0.00 m)" in said
    assert "hits vehicle 'veh_004' at 2.9 s, going 7.9 m/s; at fault, because it is off the drivable area" in said
    assert "front right corner off the drivable area from 2.9 s, 27.5 m ahead and 0.8 m to the right of the start" in said
    picture = folder / f"o.{name}.5.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert (folder / "o.csv").exists()
    code, said, _ = run("score", "--scene", folder / "scenes", "--proposals", folder / "plans", "--explain", name, "--row", 10)
    assert code == 0
    assert "nothing was lost" in said
    assert "--picture FILE.png draws it" in said


# -- what is wrong ---------------------------------------------------------------------------------------------------------

ONE = ["--scene", "S", "--proposals", "P", "--out", "O.npz"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--scene": "nowhere.json"}, "scene file nowhere.json does not exist"),
        ({"--scene": "void"}, "scene folder void holds no .json.gz or .json files"),
        ({"--scene": "*.jsn"}, "scene glob '*.jsn' matches no"),
        ({"--scene": "P"}, "P is not JSON"),
        ({"--scene": "half.json.gz"}, "half.json.gz"),
        ({"--scene": "other.json"}, "field 'format' is 'something-else/1'"),
        ({"--scene": "bare.json"}, "has no reference"),
        ({"--scene": "twice"}, "several files are named 'a'"),
        ({"--proposals": "nowhere.npy"}, "proposals file nowhere.npy does not exist"),
        ({"--proposals": "void"}, "proposals folder void holds no .npy or .npz files"),
        ({"--proposals": "S"}, "is no .npy file with numbers"),
        ({"--proposals": "long.npy"}, r"(4, 10, 3), expected [N, 8, 3]"),
        ({"--proposals": "flat.npy"}, "(8, 3), expected"),
        ({"--proposals": "none.npy"}, "holds no proposals"),
        ({"--proposals": "words.npy"}, "holds <U1, expected numbers"),
        ({"--proposals": "pickled.npy"}, "is no .npy file with numbers"),
        ({"--proposals": "seven.npy"}, "proposals for 7 scenes, but there are 1"),
        ({"--proposals": "other.npz"}, "has no array of that name"),
        ({"--proposals": "tokens.npz"}, "has no such token"),
        ({"--proposals": "counts.npz"}, "2 tokens, but proposals of shape (1, 4, 8, 3)"),
        ({"--proposals": "far.npy"}, "row 0"),
        ({"--out": "missing/O.npz"}, "there is no folder missing for O.npz; make it: mkdir -p missing"),
        ({"--out": "O.txt"}, "results can be written to .npz, .csv, .parquet, not to 'O.txt'"),
        ({"--out": "/proc/O.npz"}, "/proc"),
        ({"--out": "/proc/O.csv"}, "/proc"),
        ({"--out": None}, "--out O.npz"),
        ({"--version": "v3"}, "v3"),
        ({"--human-filter": True}, "--human-filter belongs to version 2"),
        ({"--traffic": "reactive_idm"}, "--traffic reactive_idm belongs to version 2"),
        ({"--picture": "a.png"}, "--explain TOKEN"),
        ({"--explain": "nobody"}, "--explain 'nobody': there is no such scene among the 1; the first is 'S'"),
        ({"--explain": "S", "--row": 99}, "--row 99: scene 'S' has proposals 0 to 63"),
        ({"--explain": "S", "--picture": "missing/a.png"}, "there is no folder missing for a.png"),
    ],
)  # fmt: skip
def test_bad_input_is_one_message_and_exit_code_2(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    raw = (GOLDEN / f"{SCENES[1]}.json.gz").read_bytes()
    scene = json.loads(gzip.decompress(raw))
    Path("S").write_bytes(raw)
    Path("half.json.gz").write_bytes(raw[: len(raw) // 2])
    Path("other.json").write_text(json.dumps(scene | {"format": "something-else/1"}))
    Path("bare.json").write_text(json.dumps(scene | {"reference": None}))
    Path("void").mkdir()
    Path("twice").mkdir()
    Path("twice/a.json").touch()
    Path("twice/a.json.gz").touch()
    plans = np.load(GOLDEN / f"{SCENES[1]}.npz")["proposals"]
    for name, array in {
        "long": np.zeros((4, 10, 3)), "flat": plans[0], "none": plans[:0], "words": np.full((4, 8, 3), "a"),
        "pickled": np.array([{}]), "seven": np.zeros((7, 4, 8, 3)), "far": np.full((1, 8, 3), 1e9),
    }.items():  # fmt: skip
        np.save(f"{name}.npy", array, allow_pickle=True)
    np.savez("other.npz", somebody=plans)
    np.savez("tokens.npz", tokens=["somebody"], proposals=plans[None])
    np.savez("counts.npz", tokens=["a", "b"], proposals=plans[None, :4])
    np.save("P.npy", plans)
    Path("P.npy").rename("P")
    arguments = dict(zip(ONE[::2], ONE[1::2], strict=True)) | change
    flat = [
        part for key, value in arguments.items() if value is not None for part in ([key] if value is True else [key, value])
    ]
    code, _, err = run("score", *flat)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert not Path("O.npz").exists()
