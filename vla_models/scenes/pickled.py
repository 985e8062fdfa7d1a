"""What NavSim's and nuPlan's pickles may contain: the admitted names, and what stands for them.

Classes are those of navsim 1.1 and 2.2 and nuplan-devkit 1.2 (e924167) that are reachable from a ``MetricCache`` or a log;
NumPy's arrays are made from their bytes here, shapely's geometries are kept as WKB until somebody asks for their rings.
"""

from __future__ import annotations

import codecs
import struct
from pathlib import PurePosixPath
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vla_models.errors import SceneError, UnsafePickleError
from vla_models.scenes.restricted import Admitted, Maker, Member, Pending, Plain, Record

_PDM: Final = "navsim.planning.simulation.planner.pdm_planner"
_ACTOR: Final = "nuplan.common.actor_state"
_TRAJECTORY: Final = "nuplan.planning.simulation.trajectory"
_DTYPES: Final = "biuf"
"""Kinds of numbers in arrays; strings and objects are handled apart."""


class Geometry:
    """A shapely geometry as it was pickled: well-known binary (OGC 06-103r4, 8.2; Z, M and SRID as shapely writes them)."""

    __slots__ = ("wkb",)

    def __init__(self, wkb: bytes) -> None:
        self.wkb = wkb

    def polygons(self) -> list[list[npt.NDArray[np.float64]]]:
        """Its polygons, each a list of rings [n, 2]: the outer one first, then the holes. SceneError for another geometry."""
        try:
            polygons, _ = _polygons(self.wkb, 0, nested=True)
        except (struct.error, ValueError, IndexError) as error:
            raise SceneError(f"a pickled geometry is damaged ({error})") from error
        return polygons


def _polygons(wkb: bytes, at: int, nested: bool) -> tuple[list[list[npt.NDArray[np.float64]]], int]:
    order = "<" if wkb[at] == 1 else ">"
    (code,) = struct.unpack_from(order + "I", wkb, at + 1)
    at += 5 + (4 if code & 0x20000000 else 0)
    columns = 2 + bool(code & 0x80000000) + bool(code & 0x40000000)
    code &= 0x0FFFFFFF
    columns += (0, 1, 1, 2)[code // 1000] if code < 4000 else 0
    kind = code % 1000
    (count,) = struct.unpack_from(order + "I", wkb, at)
    at += 4
    if kind == 6 and nested:
        found: list[list[npt.NDArray[np.float64]]] = []
        for _ in range(count):
            part, at = _polygons(wkb, at, nested=False)
            found += part
        return found, at
    if kind != 3:
        raise SceneError(f"a pickled geometry of WKB type {kind} stands where a polygon is expected")
    rings = []
    for _ in range(count):
        (points,) = struct.unpack_from(order + "I", wkb, at)
        at += 4
        ring = np.frombuffer(wkb, order + "f8", points * columns, at).reshape(points, columns)
        rings.append(ring[:, :2].astype(np.float64))
        at += ring.nbytes
    return ([rings] if rings else []), at


def _dtype(args: tuple[Any, ...]) -> Pending:
    """``numpy.dtype(code, False, True)``, then (3, byte order, ...)."""
    code = args[0] if args else None
    if type(code) is not str or not ((code[:1] in _DTYPES and code[1:].isdigit()) or code[:1] in "USO"):
        raise UnsafePickleError(f"an array's element type {code!r} is refused")

    def finish(state: Any) -> np.dtype[Any]:
        order = state[1]
        if state[2:5] != (None, None, None) or order not in ("<", ">", "|", "="):
            raise UnsafePickleError(f"an array's element type with fields is refused ({code!r})")
        return np.dtype(code if order in "|=" else order + code)

    return Pending(finish)


def _array(shape: Any, dtype: Any, fortran: bool, content: Any) -> Any:
    """An array from its bytes; one of objects (always 1-D here) becomes a list."""
    if type(shape) is int:
        shape = (shape,)
    if not isinstance(dtype, np.dtype) or not all(type(n) is int and n >= 0 for n in shape):
        raise UnsafePickleError("an array without an element type or a shape is refused")
    if dtype.kind == "O":
        if type(content) is not list or len(shape) != 1 or len(content) != shape[0]:
            raise UnsafePickleError(f"an array of objects of shape {shape} is refused")
        return content
    if type(content) is not bytes:
        raise UnsafePickleError(f"an array from a {type(content).__name__} is refused")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def _reconstruct(args: tuple[Any, ...]) -> Pending:
    """``numpy.core.multiarray._reconstruct(ndarray, (0,), b"b")``, then (version, shape, dtype, Fortran order, content)."""
    if not args or type(args[0]) is not Plain or args[0].name != "ndarray":
        raise UnsafePickleError("an array of another class than numpy.ndarray is refused")
    return Pending(lambda state: _array(state[1], state[2], bool(state[3]), state[4]))


def _frombuffer(args: tuple[Any, ...]) -> Any:
    """``numpy.core.numeric._frombuffer(content, dtype, shape, order)``: protocol 5."""
    content, dtype, shape, order = args
    return _array(shape, dtype, order == "F", content)


def _scalar(args: tuple[Any, ...]) -> Any:
    """``numpy.core.multiarray.scalar(dtype, content)`` as a Python number or string."""
    dtype, content = args
    found = _array((1,), dtype, False, [content] if dtype.kind == "O" else content)
    return found[0] if dtype.kind == "O" else found[0].item()


def _encode(args: tuple[Any, ...]) -> bytes:
    """``_codecs.encode(text, "latin1")``: how protocol 2 writes bytes."""
    if len(args) != 2 or type(args[0]) is not str or args[1] not in ("latin1", "latin-1"):
        raise UnsafePickleError("_codecs.encode with other arguments than (text, 'latin1') is refused")
    return codecs.latin_1_encode(args[0])[0]


def _no_bytes(args: tuple[Any, ...]) -> bytes:
    """``bytes()``: how protocol 2 writes none."""
    if args:
        raise UnsafePickleError("bytes of something are refused")
    return b""


def _getattr(args: tuple[Any, ...]) -> Member:
    """``getattr(enumeration, name)``: how Python 3.11.0 to 3.11.3 pickle a member. No attribute is looked up."""
    if len(args) != 2 or type(args[0]) is not Maker or args[0].name not in _ENUMS or type(args[1]) is not str:
        raise UnsafePickleError("getattr of anything but an enumeration's member is refused; nothing was run")
    name = args[1]
    members = _ENUMS[args[0].name]
    if name not in members:
        raise UnsafePickleError(f"{args[0].name} has no member {name!r}")
    return Member(args[0].name, members[name])


def _wkb(args: tuple[Any, ...]) -> Geometry:
    if len(args) != 1 or type(args[0]) is not bytes:
        raise UnsafePickleError("a geometry that is not well-known binary is refused")
    return Geometry(args[0])


def _path(args: tuple[Any, ...]) -> str:
    if not all(type(part) is str for part in args):
        raise UnsafePickleError("a path with parts that are no text is refused")
    return str(PurePosixPath(*args))


def _ordered(args: tuple[Any, ...]) -> dict[Any, Any]:
    if args:
        raise UnsafePickleError("an OrderedDict with arguments is refused")
    return {}


def _deque(args: tuple[Any, ...]) -> list[Any]:
    """``deque([], maxlen)``, then its elements: a list. Nobody adds to it, so that its length is what was pickled."""
    if args and args[0] not in ((), []):
        raise UnsafePickleError("a deque of something that is no empty list is refused")
    return []


def _enumeration(name: str) -> Maker:
    def member(args: tuple[Any, ...]) -> Member:
        value = args[0] if len(args) == 1 else None
        if type(value) is tuple and value:  # TrackedObjectType's values are pickled as given: (0, "vehicle")
            value = value[0]
        if type(value) is not int or value not in _ENUMS[name].values():
            raise UnsafePickleError(f"{name} has no member with value {value!r}")
        return Member(name, value)

    return Maker(name, member)


def _made(name: str) -> Maker:
    """A class whose objects are pickled by what they are made of."""
    return Maker(name, lambda args: Record(name, args))


_LAYER_NAMES: Final = (
    "LANE", "INTERSECTION", "STOP_LINE", "TURN_STOP", "CROSSWALK", "DRIVABLE_AREA", "YIELD", "TRAFFIC_LIGHT", "STOP_SIGN",
    "EXTENDED_PUDO", "SPEED_BUMP", "LANE_CONNECTOR", "BASELINE_PATHS", "BOUNDARIES", "WALKWAYS", "CARPARK_AREA", "PUDO",
    "ROADBLOCK", "ROADBLOCK_CONNECTOR",
)  # fmt: skip
_OBJECT_NAMES: Final = (
    "VEHICLE", "PEDESTRIAN", "BICYCLE", "TRAFFIC_CONE", "BARRIER", "CZONE_SIGN", "GENERIC_OBJECT", "EGO",
)  # fmt: skip
_CORNER_NAMES: Final = (
    "FRONT_BUMPER", "REAR_BUMPER", "FRONT_LEFT", "FRONT_RIGHT", "REAR_LEFT", "REAR_RIGHT", "CENTER", "LEFT", "RIGHT",
)  # fmt: skip
_ENUMS: Final[dict[str, dict[str, int]]] = {
    "SemanticMapLayer": {name: k for k, name in enumerate(_LAYER_NAMES)},
    "TrackedObjectType": {name: k for k, name in enumerate(_OBJECT_NAMES)},
    "TrafficLightStatusType": {"GREEN": 0, "YELLOW": 1, "RED": 2, "UNKNOWN": 3},
    "SceneFrameType": {"ORIGINAL": 0, "SYNTHETIC": 1},
    "OrientedBoxPointType": {name: k for k, name in enumerate(_CORNER_NAMES, start=1)},
}
"""Enumeration -> members by name: nuplan/common/maps/maps_datatypes.py, tracked_objects_types.py, navsim/common/enums.py."""

MAP_LAYERS: Final = {
    Member("SemanticMapLayer", _ENUMS["SemanticMapLayer"][theirs]): ours
    for theirs, ours in (
        ("ROADBLOCK", "roadblock"), ("LANE", "lane"), ("LANE_CONNECTOR", "lane_connector"), ("INTERSECTION", "intersection"),
        ("CARPARK_AREA", "carpark"), ("DRIVABLE_AREA", "drivable_area"),
    )
}  # fmt: skip
"""nuPlan's layers that the score knows -> names in ``scene.LAYERS``."""
OBJECT_TYPES: Final = {Member("TrackedObjectType", k): name.lower() for name, k in _ENUMS["TrackedObjectType"].items()}
"""nuPlan's object types -> names in ``scene.AGENT_KINDS`` (and "ego")."""
ORIGINAL_SCENE: Final = Member("SceneFrameType", 0)

_NUMPY: Final[dict[tuple[str, str], Plain | Maker]] = {
    ("numpy", "dtype"): Maker("dtype", _dtype),
    ("numpy", "ndarray"): Plain("ndarray"),
    **{
        (f"numpy.{core}.{module}", name): Maker(name, make)
        for core in ("core", "_core")
        for module, name, make in (
            ("multiarray", "_reconstruct", _reconstruct), ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _frombuffer),
        )
    },
}  # fmt: skip

LOG: Final[Admitted] = {
    **_NUMPY,
    ("_codecs", "encode"): Maker("encode", _encode),
    ("__builtin__", "bytes"): Maker("bytes", _no_bytes),
    ("collections", "OrderedDict"): Maker("OrderedDict", _ordered),
    ("collections", "deque"): Maker("deque", _deque),
    ("pathlib", "PosixPath"): Maker("PosixPath", _path),
    ("pathlib._local", "PosixPath"): Maker("PosixPath", _path),
}
"""Names in NavSim's log files: dicts, lists and arrays."""

METRIC_CACHE: Final[Admitted] = {
    **LOG,
    ("builtins", "getattr"): Maker("getattr", _getattr),
    ("nuplan.common.utils.io_utils", "NuPath"): Maker("NuPath", _path),
    ("shapely.io", "from_wkb"): Maker("from_wkb", _wkb),
    ("shapely.geometry.polygon", "_unpickle_linearring"): Maker("linearring", _wkb),
    ("navsim.planning.metric_caching.metric_cache", "MetricCache"): Plain("MetricCache"),
    ("navsim.planning.metric_caching.metric_cache", "MapParameters"): Plain("MapParameters"),
    ("navsim.common.dataclasses", "Trajectory"): Plain("Trajectory"),
    ("navsim.common.enums", "SceneFrameType"): _enumeration("SceneFrameType"),
    (f"{_PDM}.observation.pdm_observation", "PDMObservation"): Plain("PDMObservation"),
    (f"{_PDM}.observation.pdm_occupancy_map", "PDMOccupancyMap"): _made("PDMOccupancyMap"),
    (f"{_PDM}.observation.pdm_occupancy_map", "PDMDrivableMap"): _made("PDMDrivableMap"),
    (f"{_PDM}.utils.pdm_path", "PDMPath"): _made("PDMPath"),
    (f"{_TRAJECTORY}.interpolated_trajectory", "InterpolatedTrajectory"): _made("InterpolatedTrajectory"),
    (f"{_TRAJECTORY}.predicted_trajectory", "PredictedTrajectory"): Plain("PredictedTrajectory"),
    (f"{_TRAJECTORY}.trajectory_sampling", "TrajectorySampling"): Plain("TrajectorySampling"),
    ("nuplan.planning.simulation.observation.observation_type", "DetectionsTracks"): Plain("DetectionsTracks"),
    ("nuplan.common.maps.maps_datatypes", "SemanticMapLayer"): _enumeration("SemanticMapLayer"),
    ("nuplan.common.maps.maps_datatypes", "TrafficLightStatusType"): _enumeration("TrafficLightStatusType"),
    ("nuplan.common.maps.maps_datatypes", "TrafficLightStatusData"): Plain("TrafficLightStatusData"),
    (f"{_ACTOR}.tracked_objects_types", "TrackedObjectType"): _enumeration("TrackedObjectType"),
    (f"{_ACTOR}.oriented_box", "OrientedBoxPointType"): _enumeration("OrientedBoxPointType"),
    (f"{_ACTOR}.vehicle_parameters", "VehicleParameters"): _made("VehicleParameters"),
    **{
        (f"{_ACTOR}.{module}", name): Plain(name)
        for module, names in (
            ("agent", "Agent"), ("agent_state", "AgentState"), ("car_footprint", "CarFootprint"),
            ("dynamic_car_state", "DynamicCarState"), ("ego_state", "EgoState"), ("oriented_box", "OrientedBox Dimension"),
            ("scene_object", "SceneObject SceneObjectMetadata"), ("static_object", "StaticObject"),
            ("state_representation", "StateSE2 StateVector2D Point2D TimePoint TimeDuration ProgressStateSE2"),
            ("tracked_objects", "TrackedObjects"), ("waypoint", "Waypoint"),
        )
        for name in names.split()
    },
}  # fmt: skip
"""Names in metric caches of navsim 1.1 and 2.2."""
