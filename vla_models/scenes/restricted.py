"""Reading a foreign pickle without running anything: a small pickle machine of our own.

A pickle is a program, and Python's unpickler calls whatever the program names. This machine has no such step. It knows the
opcodes that a pickle of data consists of, and the names that NavSim's and nuPlan's files contain (``Admitted``): each stands
for one of our own constructors, and an object becomes a ``Record``, the name of its class and a dict of what was stored.
Nothing is imported, no attribute is looked up or set, so it does not matter whether navsim, nuplan or shapely are installed.
Every other name, opcode or construction is an ``UnsafePickleError`` that says what was asked for.

What a file can cost is bounded by its size: lengths are checked before anything is allocated, the memo is a dict, and the
keys of a dict are flat (a tuple of tuples can take exponential time to hash).
"""

from __future__ import annotations

import lzma
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from vla_models.errors import SceneError, UnsafePickleError

MAX_BYTES: Final = 512 << 20
"""A decompressed file may not be larger: real metric caches have a few megabytes, real logs a few hundred."""
_MAX_LONG: Final = 64
"""Bytes of an integer at most."""
_LZMA_MAGIC: Final = b"\xfd7zXZ\x00"


class Record:
    """An object of a foreign class: its class's name, the arguments it was made with, what was stored in it."""

    __slots__ = ("args", "name", "state")

    def __init__(self, name: str, args: tuple[Any, ...] = ()) -> None:
        self.name = name
        self.args = args
        self.state: dict[str, Any] = {}

    def __getitem__(self, field: str) -> Any:
        try:
            return self.state[field]
        except KeyError:
            raise SceneError(f"a pickled {self.name} has no {field!r}; it has {', '.join(self.state) or 'nothing'}") from None

    def __repr__(self) -> str:
        return f"<{self.name} {', '.join(self.state) or self.args}>"


class Member(NamedTuple):
    """A member of a foreign enumeration, by value (or by name, where the pickle has the name)."""

    enum: str
    value: int | str


class Plain(NamedTuple):
    """An admitted class whose objects are made empty and then filled."""

    name: str


class Maker(NamedTuple):
    """An admitted name that is called: one of our functions stands in its place."""

    name: str
    make: Callable[[tuple[Any, ...]], Any]


class Pending:
    """What a maker returns where the pickle fills the object afterwards (NumPy's arrays and element types): ``finish`` makes
    the object of what BUILD brings, and takes this one's place."""

    __slots__ = ("finish", "keys")

    def __init__(self, finish: Callable[[Any], Any]) -> None:
        self.finish = finish
        self.keys: list[int] = []


Admitted = Mapping[tuple[str, str], Plain | Maker]
"""(module, name) in the pickle -> what stands for it."""


def read_pickle(path: Path, admitted: Admitted) -> Any:
    """The data in a pickle file, plain or lzma-compressed.

    Raises UnsafePickleError for what is not admitted, SceneError for a file that is missing, cut short or no pickle.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise SceneError(f"{path} cannot be read: {error}") from error
    if raw[:6] == _LZMA_MAGIC:
        raw = _decompress(raw, path)
    return load(raw, admitted, str(path))


def _decompress(raw: bytes, path: Path) -> bytes:
    decompressor = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=MAX_BYTES)
    try:
        data = decompressor.decompress(raw, max_length=MAX_BYTES)
    except lzma.LZMAError as error:
        raise SceneError(f"{path} is damaged (lzma: {error}); make it again") from error
    if not decompressor.eof:
        if len(data) >= MAX_BYTES:
            raise SceneError(f"{path} unpacks to more than {MAX_BYTES >> 20} MiB, which no metric cache does; it is not read")
        raise SceneError(f"{path} is cut short: its compressed data ends too early; make it again")
    return data


def load(data: bytes, admitted: Admitted, source: str) -> Any:
    """The data in the pickle ``data`` (protocols 2 to 5); ``source`` is what errors call it. Raises as ``read_pickle``."""
    try:
        return _run(data, admitted, source)
    except SceneError as error:  # what a maker refuses does not know the file
        if source in str(error):
            raise
        raise type(error)(f"{source}: {error}") from error
    except (IndexError, struct.error, KeyError) as error:
        raise SceneError(f"{source} is cut short or no pickle ({type(error).__name__}: {error})") from error
    except (TypeError, ValueError, AttributeError, UnicodeDecodeError, OverflowError) as error:
        raise SceneError(f"{source} is a damaged pickle ({type(error).__name__}: {error})") from error


_DOUBLE, _U2, _U4, _U8, _I4 = (struct.Struct(f).unpack_from for f in (">d", "<H", "<I", "<Q", "<i"))


def _key(key: Any, source: str) -> Any:
    """``key`` if it may be a dict's key or a set's element."""
    if type(key) in (str, int, bytes, float, bool, type(None), Member):
        return key
    if type(key) is tuple and all(type(part) in (str, int, Member) for part in key):
        return key
    raise UnsafePickleError(f"{source}: a {type(key).__name__} as the key of a dict is refused")


def _build(target: Record, state: Any, source: str) -> None:
    """BUILD of an object: a dict, or (dict or None, dict) as objects with slots store it."""
    for part in state if type(state) is tuple and len(state) == 2 else (state,):
        if part is None:
            continue
        if type(part) is not dict or not all(type(name) is str for name in part):
            raise UnsafePickleError(f"{source}: state of type {type(part).__name__} for {target.name} is refused")
        target.state.update(part)


def _call(callee: Any, args: Any, source: str) -> Any:
    """REDUCE: an admitted maker with its arguments."""
    if type(callee) is not Maker or type(args) is not tuple:
        what = callee.name if isinstance(callee, (Plain, Record)) else type(callee).__name__
        raise UnsafePickleError(f"{source}: a call of {what} is refused; nothing was run")
    return callee.make(args)


def _run(data: bytes, admitted: Admitted, source: str) -> Any:
    """The machine: opcodes as in CPython's ``pickletools``, most frequent first."""
    end = len(data)
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    push, pop = stack.append, stack.pop
    at = 0

    def since_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    def remember(index: int) -> None:
        top = stack[-1]
        memo[index] = top
        if type(top) is Pending:
            top.keys.append(index)

    def take(length: int) -> int:
        """Where the next ``length`` bytes end."""
        if length < 0 or length > end - at:
            raise SceneError(f"{source} is cut short: {length} bytes are announced at byte {at}, {end - at} are left")
        return at + length

    def named(module: Any, name: Any) -> Any:
        entry = admitted.get((module, name)) if type(module) is str and type(name) is str else None
        if entry is None:
            raise UnsafePickleError(
                f"{source}: the pickle asks for {module}.{name}, which is not among what NavSim's files contain; it was not "
                "imported and nothing was run. Do not trust this file"
            )
        return entry

    while True:
        op = data[at]
        at += 1
        if op == 0x94:  # MEMOIZE
            remember(len(memo))
        elif op == 0x6A:  # LONG_BINGET
            push(memo[_U4(data, at)[0]])
            at += 4
        elif op == 0x68:  # BINGET
            push(memo[data[at]])
            at += 1
        elif op == 0x47:  # BINFLOAT
            push(_DOUBLE(data, at)[0])
            at += 8
        elif op == 0x28:  # MARK
            marks.append(len(stack))
        elif op == 0x62:  # BUILD
            state = pop()
            target = stack[-1]
            if type(target) is Record:
                _build(target, state, source)
            elif type(target) is Pending:
                made = stack[-1] = target.finish(state)
                for index in target.keys:
                    memo[index] = made
            else:
                raise UnsafePickleError(f"{source}: state for a {type(target).__name__} is refused")
        elif op == 0x7D:  # EMPTY_DICT
            push({})
        elif op == 0x29:  # EMPTY_TUPLE
            push(())
        elif op == 0x81:  # NEWOBJ
            args, cls = pop(), pop()
            if type(cls) is not Plain or args != ():
                what = cls.name if isinstance(cls, (Plain, Maker)) else type(cls).__name__
                raise UnsafePickleError(f"{source}: making a {what} with arguments is refused; nothing was run")
            push(Record(cls.name))
        elif op == 0x4E:  # NONE
            push(None)
        elif op == 0x75:  # SETITEMS
            items = since_mark()
            target = stack[-1]
            if type(target) is not dict:
                raise UnsafePickleError(f"{source}: items for a {type(target).__name__} are refused")
            for k in range(0, len(items), 2):
                target[_key(items[k], source)] = items[k + 1]
        elif op == 0x73:  # SETITEM
            value, key = pop(), pop()
            if type(stack[-1]) is not dict:
                raise UnsafePickleError(f"{source}: items for a {type(stack[-1]).__name__} are refused")
            stack[-1][_key(key, source)] = value
        elif op == 0x86:  # TUPLE2
            second = pop()
            stack[-1] = (stack[-1], second)
        elif op == 0x52:  # REDUCE
            args, callee = pop(), pop()
            push(_call(callee, args, source))
        elif op == 0x4B:  # BININT1
            push(data[at])
            at += 1
        elif op == 0x85:  # TUPLE1
            stack[-1] = (stack[-1],)
        elif op == 0x8A:  # LONG1
            length = data[at]
            at += 1
            stop = take(length)
            if length > _MAX_LONG:
                raise UnsafePickleError(f"{source}: an integer of {length} bytes is refused")
            push(int.from_bytes(data[at:stop], "little", signed=True))
            at = stop
        elif op == 0x74:  # TUPLE
            items = since_mark()
            push(tuple(items))
        elif op in (0x8C, 0x58, 0x8D):  # SHORT_BINUNICODE, BINUNICODE, BINUNICODE8
            length, at = _length(data, at, op, 0x8C, 0x58)
            stop = take(length)
            push(data[at:stop].decode("utf-8", "surrogatepass"))
            at = stop
        elif op in (0x43, 0x42, 0x8E):  # SHORT_BINBYTES, BINBYTES, BINBYTES8
            length, at = _length(data, at, op, 0x43, 0x42)
            stop = take(length)
            push(data[at:stop])
            at = stop
        elif op == 0x96:  # BYTEARRAY8
            length = _U8(data, at)[0]
            at += 8
            stop = take(length)
            push(data[at:stop])  # bytes: nobody writes into it
            at = stop
        elif op == 0x5D:  # EMPTY_LIST
            push([])
        elif op in (0x65, 0x61):  # APPENDS, APPEND
            items = since_mark() if op == 0x65 else [pop()]
            if type(stack[-1]) is not list:
                raise UnsafePickleError(f"{source}: elements for a {type(stack[-1]).__name__} are refused")
            stack[-1].extend(items)
        elif op == 0x87:  # TUPLE3
            third, second = pop(), pop()
            stack[-1] = (stack[-1], second, third)
        elif op == 0x88:  # NEWTRUE
            push(True)
        elif op == 0x89:  # NEWFALSE
            push(False)
        elif op == 0x4A:  # BININT
            push(_I4(data, at)[0])
            at += 4
        elif op == 0x4D:  # BININT2
            push(_U2(data, at)[0])
            at += 2
        elif op == 0x93:  # STACK_GLOBAL
            name, module = pop(), pop()
            push(named(module, name))
        elif op == 0x63:  # GLOBAL
            first = data.index(b"\n", at)
            second_end = data.index(b"\n", first + 1)
            push(named(data[at:first].decode(), data[first + 1 : second_end].decode()))
            at = second_end + 1
        elif op == 0x71:  # BINPUT
            remember(data[at])
            at += 1
        elif op == 0x72:  # LONG_BINPUT
            remember(_U4(data, at)[0])
            at += 4
        elif op == 0x95:  # FRAME: its length is no promise that we need
            at += 8
        elif op == 0x8F:  # EMPTY_SET
            push(set())
        elif op == 0x90:  # ADDITEMS
            items = since_mark()
            if type(stack[-1]) is not set:
                raise UnsafePickleError(f"{source}: elements for a {type(stack[-1]).__name__} are refused")
            stack[-1].update(_key(item, source) for item in items)
        elif op == 0x91:  # FROZENSET
            push(frozenset(_key(item, source) for item in since_mark()))
        elif op == 0x30:  # POP
            if marks and marks[-1] == len(stack):
                marks.pop()
            else:
                pop()
        elif op == 0x31:  # POP_MARK
            since_mark()
        elif op == 0x80:  # PROTO
            if not 2 <= data[at] <= 5:
                raise SceneError(f"{source} has pickle protocol {data[at]}, protocols 2 to 5 are read")
            at += 1
        elif op == 0x2E:  # STOP
            return pop()
        else:
            raise UnsafePickleError(
                f"{source}: pickle opcode {chr(op)!r} (0x{op:02x}) at byte {at - 1} is refused: no pickle of data needs it"
            )


def _length(data: bytes, at: int, op: int, one: int, four: int) -> tuple[int, int]:
    """A length field of 1, 4 or 8 bytes (by the opcode), and where it ends."""
    if op == one:
        return data[at], at + 1
    if op == four:
        return _U4(data, at)[0], at + 4
    return _U8(data, at)[0], at + 8
