"""The pickle machine: what is admitted comes out, everything else is refused, and nothing ever runs."""

from __future__ import annotations

import collections
import copyreg
import functools
import lzma
import operator
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_models.errors import SceneError, UnsafePickleError
from vla_models.scenes import restricted
from vla_models.scenes.metric_cache import read_metric_cache
from vla_models.scenes.pickled import LOG, METRIC_CACHE
from vla_models.scenes.restricted import load, read_pickle

CACHES = Path(__file__).parent.parent / "data" / "metric_cache"
CACHE = CACHES / "v2.2" / "2026.11.24.made" / "unknown" / "02_lead_stopped" / "metric_cache.pkl"


class Calls:
    """Pickled, it is a call of ``function``."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def read(data: bytes) -> Any:
    return load(data, METRIC_CACHE, "hostile.pkl")


@pytest.mark.parametrize("compressed", [False, True])
def test_a_hostile_pickle_cannot_run_a_command(tmp_path: Path, compressed: bool) -> None:
    """It does run under plain pickle, which proves that the attack works and this test can fail."""
    marker = tmp_path / "marker"
    data = pickle.dumps({"observation": Calls(os.system, f"touch {marker}")})
    path = tmp_path / "metric_cache.pkl"
    path.write_bytes(lzma.compress(data, preset=0) if compressed else data)
    with pytest.raises(UnsafePickleError, match=r"metric_cache\.pkl.*(posix|nt)\.system.*nothing was run"):
        read_metric_cache(path)
    assert not marker.exists()
    pickle.loads(data)
    assert marker.exists()


@pytest.mark.parametrize(
    ("attack", "name"),
    [
        (Calls(eval, "1 + 1"), "builtins.eval"),
        (Calls(exec, "x = 1"), "builtins.exec"),
        (Calls(__import__, "os"), "builtins.__import__"),
        (Calls(operator.attrgetter, "system"), "operator.attrgetter"),
        (Calls(functools.partial(print), 1), "functools.partial"),
        (Calls(subprocess.check_call, ["true"]), "subprocess.check_call"),
        (Calls(copyreg._reconstructor, dict, object, None), "copyreg._reconstructor"),
        (Calls(np.load, "x.npy"), "numpy.load"),
        (Calls(np.memmap, "x", "f8"), "numpy.memmap"),
        (Calls(Path, "/"), "pathlib"),
        (collections.Counter("a"), "collections.Counter"),
        (np.ma.masked_array([1.0]), r"numpy.ma"),
    ],
)
def test_names_that_are_not_admitted_are_refused(attack: Any, name: str) -> None:
    for protocol in (3, 4, 5):  # 2 writes the names of Python 2
        with pytest.raises(UnsafePickleError, match=rf"hostile\.pkl.*{name}"):
            load(pickle.dumps(attack, protocol), {k: v for k, v in METRIC_CACHE.items() if k[0] != "pathlib"}, "hostile.pkl")


def stack_global(module: str, name: str) -> bytes:
    return b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name)) + b"\x93"


GETATTR = stack_global("builtins", "getattr")
ENUM = stack_global("nuplan.common.maps.maps_datatypes", "SemanticMapLayer")
CLASS = stack_global("navsim.planning.metric_caching.metric_cache", "MetricCache")
NDARRAY = stack_global("numpy", "ndarray")
DTYPE = stack_global("numpy", "dtype")
RECONSTRUCT = stack_global("numpy.core.multiarray", "_reconstruct")


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (GETATTR + ENUM + text("__class__") + b"\x86R.", "no member '__class__'"),
        (GETATTR + ENUM + text("LANE.__class__.__base__") + b"\x86R.", "no member"),
        (GETATTR + CLASS + text("dump") + b"\x86R.", "getattr of anything but"),
        (GETATTR + NDARRAY + text("tofile") + b"\x86R.", "getattr of anything but"),
        (CLASS + b")R.", "a call of MetricCache is refused"),
        (CLASS + text("x") + b"\x85\x81.", "making a MetricCache with arguments"),
        (GETATTR + b")\x81.", "making a getattr"),
        (CLASS + b")\x81" + text("x") + b"b.", "state of type str for MetricCache"),
        (CLASS + b")\x81}(K\x01K\x02ub.", "state of type dict for MetricCache"),
        (CLASS + b"}b.", "state for a Plain is refused"),
        (CLASS + b")}\x92.", "opcode"),  # NEWOBJ_EX
        (RECONSTRUCT + CLASS + b"K\x00\x85C\x01b\x87R.", "another class than numpy.ndarray"),
        (
            RECONSTRUCT
            + NDARRAY
            + b"K\x00\x85C\x01b\x87R(K\x01K\x02\x85"
            + DTYPE
            + text("O8")
            + b"\x89\x88\x87R(K\x03"
            + text("|")
            + b"NNNtb\x89]tb.",
            "array of objects of shape",
        ),
        (DTYPE + text("V8") + b"\x89\x88\x87R.", "element type 'V8' is refused"),
        (DTYPE + text("f8,f8") + b"\x89\x88\x87R.", "element type 'f8,f8' is refused"),
        (stack_global("numpy._core.multiarray", "fromstring") + b".", "numpy._core.multiarray.fromstring"),
        (stack_global("nuplan.common.utils.io_utils", "save_buffer") + b".", "save_buffer"),
        (stack_global("navsim.planning.metric_caching.metric_cache", "pickle.loads") + b".", "pickle.loads"),
        (b"\x82\x01.", "opcode"),  # EXT1: the extension registry
        (b"\x84\x01\x00\x00\x00.", "opcode"),  # EXT4
        (b"P1\n.", "opcode"),  # PERSID
        (b"K\x01Q.", "opcode"),  # BINPERSID
        (b"(ios\nsystem\n.", "opcode"),  # INST
        (b"(K\x01o.", "opcode"),  # OBJ
        (b"cos\nsystem\n.", r"asks for os\.system"),  # GLOBAL
        (b"\x97.", "opcode"),  # NEXT_BUFFER
        (b"I1\n.", "opcode"),  # protocol 0
        (b"})K\x01K\x02\x86K\x01s.", "items for a tuple"),
        (b"}]K\x01s.", "a list as the key"),
        (b"\x8f(]\x90.", "a list as the key"),
        (b"\x8a\xff" + b"\x7f" * 255 + b".", "integer of 255 bytes"),
    ],
)
def test_crafted_programs_are_refused(program: bytes, message: str) -> None:
    with pytest.raises(UnsafePickleError, match=rf"hostile\.pkl.*{message}"):
        read(b"\x80\x04" + program)


def test_a_key_that_takes_forever_to_hash_is_refused() -> None:
    """((((), ()), ((), ())), …) 60 deep: plain pickle would hash 2^60 tuples."""
    program = b"}" + b")\x94" + b"".join(b"h" + bytes([k]) + b"\x86\x94" for k in range(60)) + b"K\x01s."
    with pytest.raises(UnsafePickleError, match="a tuple as the key"):
        read(b"\x80\x04" + program)


@pytest.mark.parametrize(
    "program",
    [
        b"\x8e" + struct.pack("<Q", 1 << 62) + b"x",  # BINBYTES8
        b"\x96" + struct.pack("<Q", 1 << 40) + b"x",  # BYTEARRAY8
        b"\x8d" + struct.pack("<Q", (1 << 64) - 1),  # BINUNICODE8
        b"B" + struct.pack("<I", 1 << 31) + b"x",
    ],
)
def test_announced_sizes_are_not_believed(program: bytes) -> None:
    with pytest.raises(SceneError, match=r"hostile\.pkl is cut short: \d+ bytes are announced"):
        read(b"\x80\x05" + program)


def test_a_memo_index_of_four_billion_costs_nothing() -> None:
    """CPython's own unpickler allocates (and clears) an array of that length."""
    assert read(b"\x80\x04K\x07r\xff\xff\xff\xff0j\xff\xff\xff\xff.") == 7


def test_what_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.pkl"
    path.write_bytes(lzma.compress(bytes(1 << 20)))
    monkeypatch.setattr(restricted, "MAX_BYTES", 1 << 19)
    with pytest.raises(SceneError, match=r"bomb\.pkl"):
        read_pickle(path, METRIC_CACHE)


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated_files(tmp_path: Path, part: float) -> None:
    raw = lzma.decompress(CACHE.read_bytes())
    for name, data in (("raw.pkl", raw), ("packed.pkl", CACHE.read_bytes())):
        path = tmp_path / name
        path.write_bytes(data[: int(len(data) * part)])
        with pytest.raises(SceneError, match=rf"{name}.*(cut short|damaged|no pickle)"):
            read_metric_cache(path)


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(SceneError, match=r"nothing\.pkl cannot be read"):
        read_metric_cache(tmp_path / "nothing.pkl")
    path = tmp_path / "other.pkl"
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(SceneError, match=r"other\.pkl holds a dict, not a MetricCache"):
        read_metric_cache(path)
    path.write_bytes(b"\x80\x06.")
    with pytest.raises(SceneError, match="protocol 6"):
        read_metric_cache(path)


RAW = lzma.decompress(CACHE.read_bytes())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(RAW) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_flipped_bytes_give_a_scene_or_a_named_error(tmp_path_factory: pytest.TempPathFactory, changes: Any) -> None:
    data = bytearray(RAW)
    for at, value in changes:
        data[at] = value
    path = tmp_path_factory.mktemp("flipped") / "metric_cache.pkl"
    path.write_bytes(bytes(data))
    problem = f"{path}: none"
    try:
        read_metric_cache(path)
    except SceneError as error:
        problem = str(error)
    assert str(path) in problem


data = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 200), 1 << 200) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.tuples(inner, inner) | st.tuples(inner)
    ),
    max_leaves=20,
)


@given(data, st.sampled_from([2, 3, 4, 5]))
def test_plain_data_comes_out_as_python_reads_it(value: Any, protocol: int) -> None:
    assert load(pickle.dumps(value, protocol), LOG, "x") == value


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", ["f8", ">f4", "i8", "u1", "?", "U3", "S2", "O"])
def test_arrays_come_out_as_numpy_reads_them(protocol: int, dtype: str) -> None:
    array = np.arange(6).astype(dtype)
    value = {"a": array, "b": array.reshape(2, 3).T if dtype != "O" else array, "c": [array, array], "d": array[0]}
    found = load(pickle.dumps(value, protocol), LOG, "x")
    for key in "ab":
        np.testing.assert_array_equal(np.asarray(found[key]), value[key])
        assert dtype == "O" or found[key].dtype == array.dtype
    assert found["c"][0] is found["c"][1]
    assert found["d"] == array[0]


def test_enumerations_and_sets() -> None:
    assert read(b"\x80\x04" + ENUM + b"K\x0b\x85R.") == ("SemanticMapLayer", 11)
    assert read(b"\x80\x04" + GETATTR + ENUM + text("LANE_CONNECTOR") + b"\x86R.") == ("SemanticMapLayer", 11)
    assert load(pickle.dumps({1, 2}, 4), LOG, "x") == {1, 2}
    assert load(pickle.dumps(collections.OrderedDict(a=1), 4), LOG, "x") == {"a": 1}
    assert load(pickle.dumps(Path("a/b"), 4), LOG, "x") == "a/b"
    for queue in (collections.deque([1, 2]), collections.deque([1, 2], 5)):
        assert load(pickle.dumps(queue, 4), LOG, "x") == [1, 2]


def test_reading_needs_none_of_the_official_packages() -> None:
    code = (
        "import sys, pathlib\n"
        "from vla_models.scenes.metric_cache import read_metric_cache\n"
        f"read_metric_cache(pathlib.Path({str(CACHE)!r}))\n"
        "sys.exit(any(m.split('.')[0] in ('navsim', 'nuplan', 'shapely', 'scipy', 'torch') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
