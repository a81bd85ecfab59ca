"""Values as bytes: form 0 of docs/tasks.md section 2, plain data, errors."""

from __future__ import annotations

import glob
import os
import pickle
import struct
import sys
import traceback
from typing import Any, Dict, List, Optional, Tuple

from . import _pack
from ._refs import ObjectRef, found

FORM_PYTHON, FORM_PLAIN, FORM_BYTES, FORM_ARROW = range(4)

_HEAD = struct.Struct("<II")  # length of the pickle, number of buffers
_BUFFER = struct.Struct("<QQ")  # offset, length

_SCALARS = frozenset((int, float, bool, type(None), str, bytes, complex))
_LEAVES = _SCALARS | {ObjectRef}
_CAUSE_MAX = 1 << 20  # an exception so large is passed on as its text
_TEXT_MAX = 64 << 10
_SMALL = 64  # elements that are looked at one by one before cloudpickle is asked


class Encoded:
    """A value on its way out: its head and pickle, and the buffers that follow."""

    __slots__ = ("form", "size", "head", "buffers", "refs")

    def __init__(self, form: int, size: int, head: bytes, buffers: List[Tuple[int, memoryview]], refs: List[Any]) -> None:
        self.form, self.size, self.head, self.buffers, self.refs = form, size, head, buffers, refs

    def joined(self) -> bytes:
        """All of it in one piece."""
        if not self.buffers:
            return self.head
        out = bytearray(self.size)
        out[: len(self.head)] = self.head
        for at, raw in self.buffers:
            out[at : at + raw.nbytes] = raw
        return bytes(out)


def _cloudpickle() -> Any:
    try:
        import cloudpickle  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        # The agent's copy of the SDK has one beside it, for interpreters without.
        beside = glob.glob(os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "wheels", "cloudpickle-*.whl"))
        if not beside or beside[0] in sys.path:
            raise ImportError(f"launcher needs cloudpickle to pass functions and objects on, and {sys.executable} does not have it\nhint: {sys.executable} -m pip install cloudpickle") from None
        sys.path.append(beside[0])
        return _cloudpickle()
    return cloudpickle


def plain(value: Any, depth: int = 3) -> bool:
    """Whether the pickle of the standard library does: nothing in it is of the program's own.

    It looks at few elements only: what it does not know, cloudpickle does as well.
    """
    t = type(value)
    if t in _LEAVES:
        return True
    if depth == 0:
        return False
    if t is list or t is tuple:
        types = set(map(type, value))
        if types <= _LEAVES:
            return True
        return len(value) <= _SMALL and all([plain(x, depth - 1) for x in value])
    if t is dict:
        return set(map(type, value)) <= _SCALARS and plain(list(value.values()), depth)
    if t.__module__ == "numpy" and t.__name__ == "ndarray":
        return not value.dtype.hasobject
    return False


def encode(value: Any) -> Encoded:
    """Encode a value for Python programs; refs that are met inside are kept in it."""
    t = type(value)
    if t in _SCALARS:
        if t is bytes and len(value) > 1 << 16:
            return Encoded(FORM_BYTES, len(value), b"", [(0, memoryview(value))], [])
        data = pickle.dumps(value, 5)
        n = len(data)
        return Encoded(FORM_PYTHON, 8 + n, _HEAD.pack(n, 0) + data, [], [])
    key = _array_key(value) if _numbers(value) else None
    if key in _heads:
        head, at = _heads[key]
        raw = pickle.PickleBuffer(value).raw()
        return Encoded(FORM_PYTHON, at + raw.nbytes, head, [(at, raw)], [])
    buffers: List[pickle.PickleBuffer] = []
    outer, found.refs = found.refs, []
    try:
        if plain(value):
            data = pickle.dumps(value, 5, buffer_callback=buffers.append)
        else:
            data = _cloudpickle().dumps(value, 5, buffer_callback=buffers.append)
        refs = found.refs
    finally:
        found.refs = outer
    e = _lay(data, buffers, refs)
    if key is not None and buffers:
        _keep(_heads, key, (e.head, e.buffers[0][0]))
    return e


# The pickle of an array of numbers says what it is, not what is in it, so it is kept, for both
# ways. The copy of a large array drives the rest out of the core's cache, after which
# pickling it would cost half as much as the copy.
_Key = Tuple[Any, Tuple[int, ...], str, bool]
_heads: Dict[Optional[_Key], Tuple[bytes, int]] = {}
_arrays: Dict[bytes, Optional[_Key]] = {}  # by their pickles; None: of something else
_KEPT_MAX = 256
_KEPT_BYTES = 1 << 30  # larger ones are not worth it
_SMALL_PICKLE = 256


def _keep(where: Dict[Any, Any], key: Any, value: Any) -> None:
    if len(where) >= _KEPT_MAX:
        where.clear()
    where[key] = value


def _numbers(value: Any) -> bool:
    """Whether it is an array of numbers in one piece."""
    t = type(value)
    if t.__module__ != "numpy" or t.__name__ != "ndarray":
        return False
    return value.dtype.kind in "biufc" and value.dtype.metadata is None and value.flags.forc and 0 < value.nbytes <= _KEPT_BYTES


def _array_key(a: Any) -> _Key:
    flags = a.flags
    return a.dtype.str, a.shape, "C" if flags.c_contiguous else "F", flags.writeable


def _array_of(data: bytes, value: Any) -> Optional[_Key]:
    """What array the pickle tells of that gave value, if it is that of an array alone."""
    import numpy

    dtype, shape, order, _ = _array_key(value)
    for writeable in (True, False):
        like = numpy.empty(shape, dtype, "C" if order == "C" else "F")
        like.flags.writeable = writeable
        if pickle.dumps(like, 5, buffer_callback=lambda _: None) == data:
            return value.dtype, shape, order, writeable
    return None


def _array(key: _Key, raw: memoryview) -> Any:
    dtype, shape, order, writeable = key
    a = sys.modules["numpy"].frombuffer(raw, dtype)
    if a.shape != shape:
        a = a.reshape(shape, order=order)
    if not writeable:
        a.flags.writeable = False
    return a


def _lay(data: bytes, buffers: List[pickle.PickleBuffer], refs: List[Any]) -> Encoded:
    n = len(data)
    if not buffers:
        return Encoded(FORM_PYTHON, 8 + n, _HEAD.pack(n, 0) + data, [], refs)
    head = bytearray(_HEAD.pack(n, len(buffers)))
    at = 8 + 16 * len(buffers) + n
    placed: List[Tuple[int, memoryview]] = []
    for b in buffers:
        raw = b.raw()
        at = (at + 63) & ~63
        head += _BUFFER.pack(at, raw.nbytes)
        placed.append((at, raw))
        at += raw.nbytes
    head += data
    return Encoded(FORM_PYTHON, at, bytes(head), placed, refs)


def decode(form: int, data: Any) -> Any:
    """The value of its bytes; large parts stay where data is."""
    if form == FORM_PYTHON:
        view = memoryview(data)
        n, count = _HEAD.unpack_from(view, 0)
        at = 8 + 16 * count
        if at + n > len(view):
            raise ValueError("a value that ends too early")
        if not count:
            return pickle.loads(view[at : at + n])
        buffers = []
        for i in range(count):
            offset, length = _BUFFER.unpack_from(view, 8 + 16 * i)
            if offset + length > len(view):
                raise ValueError("a value that ends too early")
            buffers.append(view[offset : offset + length])
        if count > 1 or n > _SMALL_PICKLE:
            return pickle.loads(view[at : at + n], buffers=buffers)
        pickled = bytes(view[at : at + n])
        key = _arrays.get(pickled)
        if key is not None:
            return _array(key, buffers[0])
        value = pickle.loads(pickled, buffers=buffers)
        if _numbers(value) and pickled not in _arrays:
            _keep(_arrays, pickled, _array_of(pickled, value))
        return value
    if form == FORM_PLAIN:
        return _pack.unpack(data, _extension)
    if form == FORM_BYTES:
        return bytes(data)
    if form == FORM_ARROW:
        import pyarrow  # type: ignore[import-not-found,import-untyped,unused-ignore]

        return pyarrow.ipc.open_stream(pyarrow.py_buffer(data)).read_all()
    raise ValueError(f"a value of the unknown form {form}")


# Plain data, for functions that are called by name.


def encode_plain(value: Any) -> Encoded:
    """Encode a value for any language: bytes, Arrow tables, what msgpack has."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        raw = memoryview(value).cast("B")
        return Encoded(FORM_BYTES, raw.nbytes, b"", [(0, raw)], [])
    module = type(value).__module__
    if module.startswith("pyarrow") and type(value).__name__ in ("Table", "RecordBatch"):
        import pyarrow  # type: ignore[import-not-found,import-untyped,unused-ignore]

        sink = pyarrow.BufferOutputStream()
        with pyarrow.ipc.new_stream(sink, value.schema) as writer:
            writer.write(value)
        raw = memoryview(sink.getvalue())
        return Encoded(FORM_ARROW, raw.nbytes, b"", [(0, raw)], [])
    refs: List[Any] = []
    data = _pack.pack(value, lambda v: _as_plain(v, refs))
    return Encoded(FORM_PLAIN, len(data), data, [], refs)


def _as_plain(v: Any, refs: List[Any]) -> Any:
    if isinstance(getattr(v, "_ref", None), ObjectRef):  # a handle of an actor
        v = v._ref
    if isinstance(v, ObjectRef):
        refs.append(v)
        return _pack.Ext(2, v.binary())
    if hasattr(v, "tolist") and hasattr(v, "dtype"):  # arrays and scalars of numpy
        return v.tolist()
    raise TypeError(f"a {type(v).__name__} is no plain data: a function called by name takes and gives None, bool, int, float, str, bytes, lists, dicts and references")


def _extension(code: int, data: bytes) -> Any:
    if code == 2:
        from ._refs import load_ref

        return load_ref(data)
    raise ValueError(f"the unknown extension {code}")


# Functions and errors.


def dump_function(f: Any) -> Tuple[bytes, List[ObjectRef[Any]]]:
    """The code of a function, and the references that it has from outside: every task of it
    holds them."""
    outer, found.refs = found.refs, []
    try:
        return _cloudpickle().dumps(f, 5), list(dict.fromkeys(found.refs))
    except ImportError:
        raise
    except Exception as e:
        raise TypeError(f"the function {name_of(f)} cannot be passed on: {type(e).__name__}: {e}\nhint: something that it uses from outside (a lock, a file, a connection) cannot be pickled: make it inside the function") from e
    finally:
        found.refs = outer


def load_function(code: bytes) -> Tuple[Any, List[ObjectRef[Any]]]:
    """The counterpart of dump_function."""
    outer, found.loaded = found.loaded, []
    try:
        return pickle.loads(code), found.loaded
    finally:
        found.loaded = outer


def name_of(f: Any) -> str:
    """What a function is called in tables and messages."""
    return getattr(f, "__qualname__", None) or getattr(f, "__name__", None) or type(f).__name__


def unpicklable(arguments: Dict[str, Any], name: str, e: BaseException) -> TypeError:
    """The error about arguments that cannot be pickled: it says which."""
    which = [k for k, v in arguments.items() if not _passes(v)]
    what = ", ".join(which) if which else "its arguments"
    types = f" (a {type(arguments[which[0]]).__name__})" if len(which) == 1 else ""
    return TypeError(f"the argument {what}{types} of {name} cannot be passed on: {type(e).__name__}: {e}")


def _passes(v: Any) -> bool:
    try:
        encode(v)
    except Exception:
        return False
    return True


def error_value(code: str, message: str, trace: str = "", cause: Optional[BaseException] = None, name: str = "", node: str = "", pid: int = 0, hints: Optional[List[str]] = None) -> bytes:
    """The bytes of an error (kind 3)."""
    carried: Optional[bytes] = None
    if cause is not None:
        try:
            carried = _cloudpickle().dumps(cause, 5)
            if len(carried) > _CAUSE_MAX:
                carried = None
            else:
                pickle.loads(carried)
        except Exception:  # only its text can be carried over
            carried = None
    return _pack.pack([code, _clip(message), _clip(trace), carried, name, node, pid, hints or []])


def _clip(text: str) -> str:
    """A text of an error, bounded: all results of the task have it, in each frame."""
    n = _TEXT_MAX // 2
    return text if len(text) <= _TEXT_MAX else f"{text[:n]} [...] {text[-n:]}"


def task_failed(e: BaseException, name: str, node: str, pid: int, skip: int = 0) -> bytes:
    """The error value of a task whose code raised."""
    tb = e.__traceback__
    for _ in range(skip):  # frames of launcher's own
        tb = tb.tb_next if tb is not None else None
    trace = "".join(traceback.format_exception(type(e), e, tb))
    text = str(e)
    message = f"{type(e).__name__}: {text}" if text else type(e).__name__
    return error_value("task", message, trace, e, name, node, pid)
