"""Routes and paths on a real town, and traffic lights along them."""

from __future__ import annotations

import itertools

import numpy as np

from vla_models.geometry import wrap_angle
from vla_models.scenes.routes import extend_backward, extend_forward, lay_paths, resample_path, road_net, shift
from vla_models.scenes.signals import GREEN, RED, YELLOW, light_states, stop_points


def test_turns_are_told_apart() -> None:
    net = road_net("Town03")
    for lanes, low, high in ((net.left, 40, 140), (net.right, -140, -40), (net.straight, -20, 20)):
        assert len(lanes) > 20
        assert (net.graph.junction[lanes] >= 0).all()
        assert ((np.degrees(net.turn[lanes]) > low) & (np.degrees(net.turn[lanes]) < high)).all()
    assert (net.graph.junction[net.free] < 0).all()


def test_paths_are_evenly_spaced_and_continuous() -> None:
    net, rng = road_net("Town03"), np.random.default_rng(0)
    lanes = rng.choice(net.free, 30)
    paths = lay_paths(net, [[int(lane)] for lane in lanes], np.full(30, 3.0), 150, rng)
    for i in range(30):
        n = int(paths.length[i]) + 1
        step = np.hypot(*np.diff(paths.pose[i, :n, :2], axis=0).T)
        assert np.all((step > 0.7) & (step < 1.3))
        direction = np.arctan2(np.diff(paths.pose[i, :n, 1]), np.diff(paths.pose[i, :n, 0]))
        assert np.abs(wrap_angle(direction - paths.pose[i, : n - 1, 2])).max() < 0.35
        followed = list(dict.fromkeys(paths.lane[i].tolist()))
        for a, b in itertools.pairwise(followed):  # lanes shorter than a step may be passed over
            assert b in net.graph.next_lanes(a) or any(b in net.graph.next_lanes(c) for c in net.graph.next_lanes(a))


def test_routes_extend_both_ways() -> None:
    net, rng = road_net("Town01"), np.random.default_rng(1)
    start = [int(net.left[0])]
    ahead = extend_forward(net, start, 100.0, rng)
    back, added = extend_backward(net, start, 100.0, rng)
    assert net.graph.length[ahead[1:]].sum() >= 100.0
    assert added == net.graph.length[back[:-1]].sum() >= 100.0
    for route in (ahead, back):
        assert all(b in net.graph.next_lanes(a) for a, b in itertools.pairwise(route))


def test_shift_and_resample() -> None:
    pose = np.stack([np.arange(20.0), np.zeros(20), np.zeros(20)], -1)
    np.testing.assert_allclose(shift(pose, np.full(20, 1.5))[:, 1], 1.5)
    slanted = shift(pose, np.linspace(0.0, 1.9, 20))
    np.testing.assert_allclose(slanted[:, 2], np.arctan(0.1))
    np.testing.assert_allclose(resample_path(pose, np.array([0.0, 2.25, 19.0]))[:, 0], [0.0, 2.25, 19.0])


def test_lights_alternate_and_a_chosen_one_turns_yellow_on_time() -> None:
    net, rng = road_net("Town03"), np.random.default_rng(2)
    lane = int(np.flatnonzero(net.light >= 0)[0])
    light = int(net.light[lane])
    center = net.graph.light_pose[light, :2]
    near, states = light_states(net, center, 100.0, 1200, 0.1, rng, light, 6.0)
    own = states[:, int(np.flatnonzero(near == light)[0])]
    assert (own[:60] == GREEN).all()
    assert (own[60:90] == YELLOW).all()
    assert own[95] == RED
    assert set(own.tolist()) == {GREEN, YELLOW, RED}
    # never green on both axes of a junction
    members = np.flatnonzero(net.graph.light_junction[near] == net.graph.light_junction[light])
    across = np.abs(np.sin(net.graph.light_pose[near[members], 2] - net.graph.light_pose[light, 2])) > np.sqrt(0.5)
    assert across.any()
    for k in members[across]:
        assert not ((own != RED) & (states[:, k] != RED)).any()


def test_stop_points_lie_before_the_junction() -> None:
    net, rng = road_net("Town03"), np.random.default_rng(3)
    lit = np.flatnonzero((net.light >= 0) & (np.diff(net.graph.predecessor_offsets) > 0))
    lane = int(lit[0])
    before = int(net.graph.previous_lanes(lane)[0])
    paths = lay_paths(net, [[before, lane]], [0.0], 200, rng)
    at, which = stop_points(net, paths, np.array([int(net.light[lane])]))
    assert which[0, 0] == 0
    assert abs(at[0, 0] + 1.0 - net.graph.length[before]) <= 1.0
