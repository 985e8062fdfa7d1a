"""Map polygons: outlines agree with shapely's unions, roadblocks with their lanes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_models.scenes.routes import road_net
from vla_models.scenes.scene import LAYERS
from vla_models.scenes.surfaces import TOLERANCE, cut, outline, simplify, town_surfaces

shapely = pytest.importorskip("shapely")
from shapely.geometry import LineString, Polygon  # noqa: E402
from shapely.ops import unary_union  # noqa: E402


def bar(x: float, y: float, heading: float, length: float, width: float) -> np.ndarray:
    c, s = np.cos(heading), np.sin(heading)
    corners = np.array([[length, width], [-length, width], [-length, -width], [length, -width]]) / 2.0
    return corners @ np.array([[c, s], [-s, c]]) + [x, y]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(-8, 8), st.floats(-8, 8), st.floats(0, 3.1), st.floats(10, 40), st.floats(3, 8)),
        min_size=1,
        max_size=6,
    )
)
def test_an_outline_is_the_union_with_holes_filled(bars: list[tuple[float, float, float, float, float]]) -> None:
    rings = [bar(*b) for b in bars]
    union = unary_union([Polygon(r) for r in rings]).buffer(0.25)
    parts = [union] if union.geom_type == "Polygon" else list(union.geoms)
    filled = unary_union([Polygon(part.exterior) for part in parts])
    found = unary_union([Polygon(ring) for ring in outline(rings)])
    assert all(Polygon(ring).is_valid for ring in outline(rings))
    # the grid rounds corners and may bridge or close gaps of its own size
    assert found.symmetric_difference(filled).area < 0.01 * filled.area + 0.12 * filled.length
    assert found.buffer(0.05).contains(unary_union([Polygon(r) for r in rings]))


def test_simplify_stays_within_its_tolerance() -> None:
    t = np.linspace(0.0, 3.0, 400)
    line = np.stack([30.0 * np.cos(t), 30.0 * np.sin(t)], -1)
    short = simplify(line)
    assert len(short) < 120
    assert LineString(short).hausdorff_distance(LineString(line)) <= TOLERANCE + 1e-9
    np.testing.assert_array_equal(simplify(line[:2]), line[:2])


def test_a_towns_polygons() -> None:
    surfaces, net = town_surfaces("Town03"), road_net("Town03")
    graph = net.graph
    assert (np.diff(surfaces.offsets) >= 3).all()
    assert (surfaces.lane_polygon >= 0).all()
    assert (surfaces.lane_block >= 0).all()
    kinds = [LAYERS[k] for k in surfaces.layer[surfaces.lane_polygon]]
    assert [kind == "lane_connector" for kind in kinds] == (graph.junction >= 0).tolist()
    # every lane lies in its roadblock, every connector in an intersection
    shapes = [
        Polygon(surfaces.vertices[a:b]).buffer(0.05) for a, b in zip(surfaces.offsets[:-1], surfaces.offsets[1:], strict=True)
    ]
    crossings = unary_union([s for s, k in zip(shapes, surfaces.layer, strict=True) if LAYERS[k] == "intersection"])
    for lane in range(0, len(graph), 5):
        middle = LineString(graph.center[graph.stations(lane)][:, :2])
        around = crossings if graph.junction[lane] >= 0 else shapes[int(surfaces.lane_block[lane])]
        assert around.contains(middle), graph.names[lane]


def test_cutting_takes_what_is_near() -> None:
    surfaces, net = town_surfaces("Town01"), road_net("Town01")
    lane = int(net.left[0])
    x, y = net.graph.center[net.graph.offsets[lane], :2]
    polygons, index = cut(surfaces, float(x), float(y), 50.0, [lane])
    assert 0 < len(polygons) < len(surfaces.layer)
    assert all(Polygon(polygons.ring(p)).distance(shapely.Point(0.0, 0.0)) < 75.0 for p in range(len(polygons)))
    assert polygons.on_route[index[int(surfaces.lane_polygon[lane])]]
    assert polygons.ids[index[int(surfaces.lane_polygon[lane])]] == net.graph.names[lane]
