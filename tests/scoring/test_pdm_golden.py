"""Equality with the official NavSim v1.1 and v2.2 code: 12 scenes x 64 proposals, every sub-metric, every one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vla_models.scenes.neutral import read_scene
from vla_models.scoring.pdm import extended_comfort, human_filtered, score
from vla_models.scoring.pdm.track import plan_headings, simulate

DATA = Path(__file__).parents[1] / "data" / "pdm"
SCENES = sorted(p.name.removesuffix(".json.gz") for p in DATA.glob("*.json.gz"))
DISCRETE = {"nc", "dac", "ddc", "tlc", "ttc", "lk", "hc", "comfort", "mult", "nc_idx", "ttc_idx"}


def load(name):
    return read_scene(DATA / f"{name}.json.gz"), np.load(DATA / f"{name}.npz")


def test_there_are_twelve_scenes():
    assert len(SCENES) == 12


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_every_array_equals_the_official_one(name, version):
    scene, golden = load(name)
    scores = score(scene, golden["proposals"], version, states=True)
    arrays = {k: getattr(scores, k) for k in ("score", "mult", "progress_raw", "nc_idx", "ttc_idx")}
    for key, array in {**scores.terms(), **arrays}.items():
        official = golden[f"{version}_{key}"]
        if key in DISCRETE:
            np.testing.assert_array_equal(array[0], official, err_msg=key)
        else:
            np.testing.assert_allclose(array[0], official, rtol=0, atol=1e-6, err_msg=key)
    assert abs(scores.ref_progress_raw[0] - golden[f"{version}_ref_progress_raw"]) < 1e-6
    assert scores.ref_mult[0] == golden[f"{version}_ref_mult"]
    np.testing.assert_array_equal(scores.ego_areas[0], golden[f"{version}_ego_areas"])
    states = scores.states[0, ::4].copy()
    states[..., :2] += scene.origin
    np.testing.assert_allclose(states, golden["v1_states"], rtol=0, atol=1e-6)  # identical in both versions


@pytest.mark.parametrize("name", SCENES)
def test_simulate_alone_gives_the_same_states(name):
    scene, golden = load(name)
    states = simulate(golden["proposals"][::4], scene.ego, scene.time_us)
    states[..., :2] += scene.origin
    np.testing.assert_allclose(states, golden["v1_states"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", SCENES)
def test_extended_comfort_equals_the_official_one(name):
    scene, golden = load(name)
    driven = score(scene, golden["proposals"], "v2", states=True).states[0]
    np.testing.assert_array_equal(extended_comfort(driven[:-1], driven[1:]), golden["v2_ec_pairs"])


@pytest.mark.parametrize("name", [n for n in SCENES if "v2_f_nc" in np.load(DATA / f"{n}.npz")])
def test_human_filter_equals_the_official_one(name):
    scene, golden = load(name)
    plain = score(scene, golden["proposals"][:16], "v2")
    filtered = human_filtered(scene, plain)
    for key, array in {**filtered.terms(), "mult": filtered.mult}.items():
        np.testing.assert_allclose(array[0], golden[f"v2_f_{key}"][:16], rtol=0, atol=1e-6, err_msg=key)
    np.testing.assert_array_equal(filtered.score, plain.score)


def test_half_turns_go_the_official_way():
    """Plans that turn round by exactly pi between two poses: rounding decides whether to the left or to the right.

    ``tests/data/pdm_official/half_turns.npz``: 8 egos with 12 plans each, driven by NavSim v1.1; every eighth pose. NumPy's
    sines or its BLAS round otherwise on another kind of processor, and the official code with them: where the file was made all
    96 are equal, on an AMD EPYC 7003 two are not.
    """
    data = np.load(DATA.parent / "pdm_official" / "half_turns.npz")
    elsewhere = 0
    for k in range(8):
        plans, ego = data[f"plans_{k}"], data[f"ego_{k}"]
        apart = np.abs(simulate(plans, ego, int(data[f"time_{k}"]))[:, ::8, :3] - data[f"poses_{k}"])
        elsewhere += int((apart > 1e-6).any(axis=(1, 2)).sum())
        origin = pose_matrix(ego[2])
        for plan, headings in zip(plans, plan_headings(plans, ego[2]), strict=True):
            turned = origin @ np.array([pose_matrix(heading) for heading in plan[:, 2]])
            np.testing.assert_array_equal(headings, [np.arctan2(m[1, 0], m[0, 0]) for m in turned])
    assert elsewhere <= 4


def pose_matrix(heading):
    """nuPlan's ``matrix_from_pose`` at the origin."""
    c, s = np.cos(heading), np.sin(heading)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
