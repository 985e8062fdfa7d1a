"""The batched world as arrays: what the columns mean. N environments, everything that changes and everything that does not.

All tables have the environment first, so that a row is an environment's whole state: a snapshot is a copy of rows, nothing
else. Numbers are float64 even where they are indices (exact up to 2^53), so that one table holds an actor.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from vla_models.simulation.roads import PATH_COLUMNS

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Int8Array = npt.NDArray[np.int8]

TICK: Final = 0.05
"""Seconds of a simulator step: 20 Hz, as Bench2Drive's evaluator."""
MAX_TICKS: Final = 4000
"""Ticks of an episode, at most, where nothing else is asked for (the cap in Bench2Drive's scenario_manager.py)."""


class Kind(IntEnum):
    """What an actor is (for the renderer and for who counts as what in a collision)."""

    CAR, TRUCK, POLICE, AMBULANCE, BICYCLE, WALKER, CONE, SIGN, BARRIER, DEBRIS, DOOR = range(11)


class Phase(IntEnum):
    """Where an actor is in its little life."""

    WAITING, DELAYED, MOVING, GONE = range(4)


class Start(IntEnum):
    """What sets an actor moving, once its scenario has begun."""

    AT_ONCE, EGO_NEAR_PLACE, WITH_SCENARIO, EGO_NEAR_ME = range(4)


class Shown(IntEnum):
    """From when on an actor is there at all (CARLA hides those of later underground)."""

    ALWAYS, WITH_SCENARIO, WHEN_MOVING = range(3)


class Speed(IntEnum):
    """What speed an actor wants."""

    PATH, FIXED, EGO_PLUS, SYNCHRONISED, LEAD = range(5)


class Event(IntEnum):
    """What an episode's events are: the rows that the metrics count."""

    (
        COLLISION_STATIC, COLLISION_PEDESTRIAN, COLLISION_VEHICLE, TRAFFIC_LIGHT, STOP, MIN_SPEED, YIELD_TO_EMERGENCY,
        SCENARIO_TIMEOUT, OUTSIDE_ROUTE_LANES, ROUTE_DEVIATION, VEHICLE_BLOCKED, ROUTE_TIMEOUT, ROUTE_COMPLETED,
    ) = range(13)  # fmt: skip


ACTOR_COLUMNS: Final = (
    # state
    "x", "y", "heading",  # box centre
    "speed", "acceleration", "s", "d",  # m/s, m/s², metres along the path, metres beside it (left positive)
    "d_to",  # the lateral offset it is moving to
    "phase", "since",  # Phase, and the tick at which it began
    "gap", "ahead",  # metres to what it follows and that one's speed, as last seen
    "travelled",  # metres since it set off
    "present",  # 1: it is in the world
    "brake_until",  # tick until which it brakes whatever happens
    "stop_passed",  # metres along the path of the last stop sign at which it has stopped
    "near_since",  # tick at which the ego first came within leave_distance (-1: not yet)
    # what it is
    "kind", "length", "width", "colour", "solid",  # solid 0: one drives over it
    "path", "scenario", "background",  # path or -1 (stands), scenario or -1, 1: of the traffic around the ego
    # how it drives
    "speed_mode", "target", "accel", "decel", "headway", "min_gap",  # target: m/s, factor of the path's cap, or increment
    "obeys", "yields", "sees",  # lights and stop signs; right of way; whatever is ahead
    # when it acts
    "start", "start_x", "start_y", "start_distance", "start_time", "delay", "shown",
    "travel_limit", "at_end",  # metres after which it is at its end; at_end 0: stands there, 1: leaves
    "leave_distance", "leave_after",  # leaves so many seconds after the ego first came so near (inf: never)
    "brake_seconds",  # brakes so long from the scenario's begin on
    "sync_s", "sync_x", "sync_y",  # SYNCHRONISED: is at sync_s when the ego is at the place
    "emergency",  # 1: the ego must have let it pass when it leaves
)  # fmt: skip
(
    AX, AY, AH, AV, AACC, AS, AD, AD_TO, PHASE, SINCE, GAP, AHEAD, TRAVELLED, PRESENT, BRAKE_UNTIL, STOP_PASSED, NEAR_SINCE,
    KIND, LENGTH, WIDTH, COLOUR, SOLID, PATH, SCENARIO, BACKGROUND, SPEED_MODE, TARGET, ACCEL, DECEL, HEADWAY, MIN_GAP,
    OBEYS, YIELDS, SEES, START, START_X, START_Y, START_DISTANCE, START_TIME, DELAY, SHOWN, TRAVEL_LIMIT, AT_END,
    LEAVE_DISTANCE, LEAVE_AFTER, BRAKE_SECONDS, SYNC_S, SYNC_X, SYNC_Y, EMERGENCY,
) = range(len(ACTOR_COLUMNS))  # fmt: skip
ACTOR_INDEX: Final = {name: k for k, name in enumerate(ACTOR_COLUMNS)}

SCENARIO_COLUMNS: Final = (
    "begin", "end",  # metres along the route at which it begins and ends
    "state", "since",  # 0 waiting, 1 running, 2 over; tick
    "timeout",  # seconds after which it counts as not solved (inf: never)
    "wrong_way",  # 1: the oncoming lane may be used while it runs
    "script_seconds", "script_end",  # how long the first row of its light script holds, and when the second one ends
    "window",  # metres along the route from which its actors are there
    "quiet_x", "quiet_y", "quiet_radius",  # where the background traffic stays away
)  # fmt: skip
(
    BEGIN, END, STATE, STATE_SINCE, TIMEOUT, WRONG_WAY, SCRIPT_SECONDS, SCRIPT_END, WINDOW, QUIET_X, QUIET_Y, QUIET_RADIUS,
) = range(len(SCENARIO_COLUMNS))  # fmt: skip

FLOW_COLUMNS: Final = (
    "path", "speed", "gap_from", "gap_to",  # metres between two of its actors: uniform
    "next_gap", "count", "last",  # state: the next gap, actors so far, the youngest one's slot (-1: none)
    "scenario", "first", "slots",  # its actors are slots first … first + slots - 1
    "fill",  # 1: the whole path is populated when it starts
    "start_x", "start_y", "start_distance", "delay", "state", "since",  # starts when the ego came near (inf: at once)
)  # fmt: skip
(
    F_PATH, F_SPEED, F_FROM, F_TO, F_NEXT, F_COUNT, F_LAST, F_SCENARIO, F_FIRST, F_SLOTS, F_FILL, F_X, F_Y, F_DISTANCE, F_DELAY,
    F_STATE, F_SINCE,
) = range(len(FLOW_COLUMNS))  # fmt: skip

ENV_COLUMNS: Final = (
    "tick", "seed", "done",  # done: 0, or 1 + the event that ended the episode
    "x", "y", "heading", "speed", "acceleration", "lateral_acceleration", "yaw_rate",  # ego: rear axle
    "steer", "throttle", "brake",  # the controls last applied
    "index", "progress", "route_length",  # route point passed, metres along the route, metres in all
    "outside", "outside_metres", "wrong_way_metres",  # outside the route's lanes now; metres driven so
    "collision_tick", "collision_x", "collision_y", "collision_actor",  # the last collision counted
    "light",  # the light row last run
    "stop", "stopped",  # the stop sign (row of stops) that one is at, and whether one has stopped
    "stop_done",  # row of the stop sign last counted
    "slow_since",  # tick since which the ego stands
    "far_metres",  # metres of the route passed beyond 15 m from it
    "checkpoint", "own_speed", "other_speed", "speed_points",  # min-speed bookkeeping
    "events", "awake",  # rows used
    "plan_tick", "plan_dt", "plan_length",  # the plan in force
    "pid_at",  # next place in the controller's window
    "draws",  # numbers drawn for the traffic so far
    "n_actors", "n_scenarios", "n_flows", "n_lights", "n_slippery", "n_traffic",  # rows in use
)  # fmt: skip
(
    E_TICK, E_SEED, E_DONE, E_X, E_Y, E_H, E_V, E_ACC, E_LATERAL, E_YAW_RATE, E_STEER, E_THROTTLE, E_BRAKE, E_INDEX, E_PROGRESS,
    E_ROUTE_LENGTH, E_OUTSIDE, E_OUTSIDE_METRES, E_WRONG_METRES, E_HIT_TICK, E_HIT_X, E_HIT_Y, E_HIT_ACTOR, E_LIGHT, E_STOP,
    E_STOPPED, E_STOP_DONE, E_SLOW_SINCE, E_FAR_METRES, E_CHECKPOINT, E_OWN_SPEED, E_OTHER_SPEED, E_SPEED_POINTS, E_EVENTS,
    E_AWAKE, E_PLAN_TICK, E_PLAN_DT, E_PLAN_LENGTH, E_PID_AT, E_DRAWS, N_ACTORS, N_SCENARIOS, N_FLOWS, N_LIGHTS, N_SLIPPERY,
    N_TRAFFIC,
) = range(len(ENV_COLUMNS))  # fmt: skip

EVENT_COLUMNS: Final = ("tick", "kind", "value", "x", "y", "other")
LOG_COLUMNS: Final = (
    "x", "y", "heading", "speed", "acceleration", "lateral_acceleration", "yaw_rate", "progress", "outside", "steer",
    "throttle", "brake",
)  # fmt: skip
MAX_EVENTS: Final = 128
PLAN_POSES: Final = 64
"""Poses of a plan, at most."""
PID_WINDOW: Final = 40

GREEN, YELLOW, RED = 0, 1, 2
"""States of a traffic light."""


class Tables(NamedTuple):
    """Everything of N environments. Capacities: A actors (0 is the ego), W path points, P paths, C crossings, G light rows, Q
    stop places, K scenarios, F flows, Z slippery places, B paths of the background traffic."""

    env: FloatArray  # [N, 47] ENV_COLUMNS
    actors: FloatArray  # [N, A, 50] ACTOR_COLUMNS
    awake: IntArray  # [N, A] slots that are looked at
    points: FloatArray  # [N, W, 13] roads.PATH_COLUMNS, path after path; path 0 is the route
    path_offsets: IntArray  # [N, P + 1]
    cross_offsets: IntArray  # [N, P + 1]
    cross: FloatArray  # [N, C, 5] other path, metres on this one, metres on the other, this one's rank, the other's
    stop_offsets: IntArray  # [N, P + 1]
    stops: FloatArray  # [N, Q, 3] metres along the path, light row or -1, stop sign row or -1
    lights: Int8Array  # [N, G] GREEN, YELLOW, RED
    light_cycle: FloatArray  # [N, G, 4] offset, green, yellow, period (ticks)
    script: Int8Array  # [N, K, G, 2] states while the scenario runs (-1: as always)
    scenarios: FloatArray  # [N, K, 12] SCENARIO_COLUMNS
    flows: FloatArray  # [N, F, 17] FLOW_COLUMNS
    slippery: FloatArray  # [N, Z, 4] x, y, radius, scenario
    traffic: FloatArray  # [N, B, 2] path, metres along the route where it is nearest to it
    plan: FloatArray  # [N, 64, 3] the plan in force: poses in the town's frame
    pid: FloatArray  # [N, 2, 40] errors of turn and speed
    events: FloatArray  # [N, 128, 6] EVENT_COLUMNS
    log: FloatArray  # [N, ticks, 12] LOG_COLUMNS


def empty_tables(count: int, sizes: dict[str, int], max_ticks: int = MAX_TICKS) -> Tables:
    """Zeroed tables for ``count`` environments with capacities ``sizes`` (keys A, W, P, C, G, Q, K, F, Z, B)."""
    s = sizes

    def full(*shape: int, kind: Any = np.float64) -> Any:
        return np.zeros((count, *shape), dtype=kind)

    return Tables(
        env=full(len(ENV_COLUMNS)),
        actors=full(s["A"], len(ACTOR_COLUMNS)),
        awake=full(s["A"], kind=np.int64),
        points=full(s["W"], len(PATH_COLUMNS)),
        path_offsets=full(s["P"] + 1, kind=np.int64),
        cross_offsets=full(s["P"] + 1, kind=np.int64),
        cross=full(s["C"], 5),
        stop_offsets=full(s["P"] + 1, kind=np.int64),
        stops=full(s["Q"], 3),
        lights=full(s["G"], kind=np.int8),
        light_cycle=full(s["G"], 4),
        script=full(s["K"], s["G"], 2, kind=np.int8),
        scenarios=full(s["K"], len(SCENARIO_COLUMNS)),
        flows=full(s["F"], len(FLOW_COLUMNS)),
        slippery=full(s["Z"], 4),
        traffic=full(s["B"], 2),
        plan=full(PLAN_POSES, 3),
        pid=full(2, PID_WINDOW),
        events=full(MAX_EVENTS, len(EVENT_COLUMNS)),
        log=full(max_ticks, len(LOG_COLUMNS)),
    )


def new_actor(kind: Kind, length: float, width: float, **columns: float) -> FloatArray:
    """A row of the actor table [50]: stands where it is put, solid, of no scenario; ``columns`` set the rest by name."""
    row = np.zeros(len(ACTOR_COLUMNS))
    defaults = {
        "kind": kind, "length": length, "width": width, "solid": 1.0, "path": -1.0, "scenario": -1.0, "gap": 1e9, "target": 1.0,
        "accel": 1.8, "decel": 2.5, "headway": 1.3, "min_gap": 2.0, "travel_limit": np.inf, "leave_after": np.inf,
        "near_since": -1.0, "brake_until": -1.0, "stop_passed": -1.0,
    }  # fmt: skip
    for name, value in (defaults | columns).items():
        row[ACTOR_INDEX[name]] = value
    return row
