"""msgpack for what launcher's frames carry: plain data and two extensions."""

from __future__ import annotations

import struct
from typing import Any, Callable, List, Optional, Tuple

_U16, _U32, _U64 = struct.Struct(">H"), struct.Struct(">I"), struct.Struct(">Q")
_I8, _I16, _I32, _I64 = struct.Struct(">b"), struct.Struct(">h"), struct.Struct(">i"), struct.Struct(">q")
_F32, _F64 = struct.Struct(">f"), struct.Struct(">d")
_DEPTH = 256


class Ext:
    """An extension: its number and its bytes."""

    __slots__ = ("code", "data")

    def __init__(self, code: int, data: bytes) -> None:
        self.code, self.data = code, data


def pack(value: Any, default: Optional[Callable[[Any], Any]] = None) -> bytes:
    """Encode; default turns what msgpack does not have into something that it has."""
    out: List[bytes] = []
    _pack(value, out.append, default, 0)
    return b"".join(out)


def _pack(v: Any, put: Callable[[bytes], None], default: Optional[Callable[[Any], Any]], depth: int) -> None:
    if depth > _DEPTH:
        raise ValueError(f"a value nested more than {_DEPTH} deep")
    if v is None:
        put(b"\xc0")
    elif v is True:
        put(b"\xc3")
    elif v is False:
        put(b"\xc2")
    elif isinstance(v, int):
        put(_integer(v))
    elif isinstance(v, float):
        put(b"\xcb" + _F64.pack(v))
    elif isinstance(v, str):
        b = v.encode("utf-8", "surrogateescape")
        put(_length(len(b), 0xA0, 32, b"\xd9", b"\xda", b"\xdb"))
        put(b)
    elif isinstance(v, (bytes, bytearray, memoryview)):
        put(_length(len(v), 0, 0, b"\xc4", b"\xc5", b"\xc6"))
        put(bytes(v))
    elif isinstance(v, (list, tuple)):
        put(_length(len(v), 0x90, 16, b"", b"\xdc", b"\xdd"))
        for x in v:
            _pack(x, put, default, depth + 1)
    elif isinstance(v, dict):
        put(_length(len(v), 0x80, 16, b"", b"\xde", b"\xdf"))
        for k, x in v.items():
            _pack(k, put, default, depth + 1)
            _pack(x, put, default, depth + 1)
    elif isinstance(v, Ext):
        n = len(v.data)
        fixed = {1: b"\xd4", 2: b"\xd5", 4: b"\xd6", 8: b"\xd7", 16: b"\xd8"}.get(n)
        put(fixed if fixed else _length(n, 0, 0, b"\xc7", b"\xc8", b"\xc9"))
        put(bytes((v.code,)) + v.data)
    elif default is not None:
        _pack(default(v), put, default, depth + 1)
    else:
        raise TypeError(f"a {type(v).__name__} is no plain data")


def _integer(v: int) -> bytes:
    if 0 <= v:
        if v < 0x80:
            return bytes((v,))
        if v < 1 << 8:
            return bytes((0xCC, v))
        if v < 1 << 16:
            return b"\xcd" + _U16.pack(v)
        if v < 1 << 32:
            return b"\xce" + _U32.pack(v)
        if v < 1 << 64:
            return b"\xcf" + _U64.pack(v)
    elif v >= -32:
        return _I8.pack(v)
    elif v >= -(1 << 7):
        return b"\xd0" + _I8.pack(v)
    elif v >= -(1 << 15):
        return b"\xd1" + _I16.pack(v)
    elif v >= -(1 << 31):
        return b"\xd2" + _I32.pack(v)
    elif v >= -(1 << 63):
        return b"\xd3" + _I64.pack(v)
    raise OverflowError("plain data has whole numbers of 64 bits only")


def _length(n: int, fixed: int, below: int, one: bytes, two: bytes, four: bytes) -> bytes:
    if n < below:
        return bytes((fixed | n,))
    if one and n < 1 << 8:
        return one + bytes((n,))
    if n < 1 << 16:
        return two + _U16.pack(n)
    if n < 1 << 32:
        return four + _U32.pack(n)
    raise OverflowError("plain data of more than 4 GiB in one piece")


def unpack(data: Any, ext: Optional[Callable[[int, bytes], Any]] = None) -> Any:
    """Decode one value that is all of data; ext makes something of an extension.

    Raises ValueError for what is no msgpack.
    """
    view = memoryview(data)
    try:
        value, at = _unpack(view, 0, ext or Ext, 0)
    except (IndexError, struct.error) as e:
        raise ValueError("msgpack that ends too early") from e
    if at != len(view):
        raise ValueError(f"{len(view) - at} bytes after the msgpack")
    return value


_SIMPLE = {0xC0: None, 0xC2: False, 0xC3: True}
_NUMBER = {0xCA: _F32, 0xCB: _F64, 0xCC: struct.Struct(">B"), 0xCD: _U16, 0xCE: _U32, 0xCF: _U64, 0xD0: _I8, 0xD1: _I16, 0xD2: _I32, 0xD3: _I64}
_SIZED = {
    0xC4: (1, "bin"), 0xC5: (2, "bin"), 0xC6: (4, "bin"), 0xC7: (1, "ext"), 0xC8: (2, "ext"), 0xC9: (4, "ext"),
    0xD9: (1, "str"), 0xDA: (2, "str"), 0xDB: (4, "str"), 0xDC: (2, "array"), 0xDD: (4, "array"), 0xDE: (2, "map"), 0xDF: (4, "map"),
}  # fmt: skip
_FIXEXT = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}


def _unpack(b: memoryview, at: int, ext: Callable[[int, bytes], Any], depth: int) -> Tuple[Any, int]:
    if depth > _DEPTH:
        raise ValueError(f"msgpack nested more than {_DEPTH} deep")
    t = b[at]
    at += 1
    if t < 0x80:
        return t, at
    if t >= 0xE0:
        return t - 256, at
    if t < 0x90:
        kind, n = "map", t & 15
    elif t < 0xA0:
        kind, n = "array", t & 15
    elif t < 0xC0:
        kind, n = "str", t & 31
    elif t in _SIMPLE:
        return _SIMPLE[t], at
    elif t in _NUMBER:
        s = _NUMBER[t]
        return s.unpack_from(b, at)[0], at + s.size
    elif t in _FIXEXT:
        kind, n = "ext", _FIXEXT[t]
    elif t in _SIZED:
        width, kind = _SIZED[t]
        if at + width > len(b):
            raise IndexError
        n = int.from_bytes(b[at : at + width], "big")
        at += width
    else:
        raise ValueError(f"msgpack has no type {t:#04x}")
    if kind == "array":
        if n > len(b) - at:
            raise IndexError
        items = []
        for _ in range(n):
            x, at = _unpack(b, at, ext, depth + 1)
            items.append(x)
        return items, at
    if kind == "map":
        if n > len(b) - at:
            raise IndexError
        table = {}
        for _ in range(n):
            k, at = _unpack(b, at, ext, depth + 1)
            x, at = _unpack(b, at, ext, depth + 1)
            if isinstance(k, (list, dict)):
                raise ValueError("msgpack with a key that is a list or a map")
            table[k] = x
        return table, at
    code = 0
    if kind == "ext":
        code = _I8.unpack_from(b, at)[0]
        at += 1
    end = at + n
    if end > len(b):
        raise IndexError
    data = bytes(b[at:end])
    if kind == "str":
        return data.decode("utf-8", "surrogateescape"), end
    return (ext(code, data) if kind == "ext" else data), end
