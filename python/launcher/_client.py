"""Objects and tasks as this process knows them."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from typing import Any, Callable, Deque, Iterable, List, Optional, Sequence, Tuple

from . import _frames as f
from . import _pack, _serial
from ._connection import _READY, _SHARED, COME_BACK, FLUSH_AT, READ, UNPROVEN_MAX, VALUE, Connection, Known
from ._refs import PUT_INDEX, ObjectRef
from ._store import Pin, Segment
from .exceptions import GetTimeoutError, ObjectStoreFullError, RayError, from_wire

SPACE_WAIT = 60.0
_BLOCKS = 8
_COPIED = 1 << 20  # values up to this are copied when few pins are left


def made_of(value: Any) -> Any:
    """The memory of an array that create made, for it to be put as it is."""
    if type(value).__name__ != "ndarray" or "launcher._create" not in sys.modules:
        return None
    from . import _create

    return _create.made_of(value)


class Client(Connection):
    """The client of this process's code: get, put, wait, submit."""

    _aio: Any = None
    futures: Any = None

    # References.

    def hold(self, id: bytes) -> ObjectRef[Any]:
        """A reference that was found in a value."""
        with self.lock:
            self.check()
            n = self.refs.get(id, 0)
            self.refs[id] = n + 1
            if n == 0:
                self.holds.append(id)
            return ObjectRef(id, self)

    def item(self, id: bytes) -> ObjectRef[Any]:
        """The reference of a result to come of a stream of this process."""
        with self.lock:
            self.refs[id] = self.refs.get(id, 0) + 1
            return ObjectRef(id, self)

    def queue(self) -> Deque[ObjectRef[Any]]:
        """A list of what was asked for ahead."""
        return deque()

    # Values.

    def put(self, value: Any, copies: int = 1) -> ObjectRef[Any]:
        """Make an object of a value."""
        made = made_of(value)
        if made is not None:
            ref = self._put(_SHARED, _serial.FORM_PYTHON, [], *made.value())
            value.flags.writeable = False
            self.ask("sync")
            at = self.store.pin(ref.binary())
            if at is not None:  # while the program has the array, it stays where it is
                made.pin = Pin(self.store, at[0], made.segment)
        else:
            ref = self.put_encoded(_serial.encode(value))
        if copies > 1:
            self.ask("copies", ref.binary(), copies)
        return ref

    def put_encoded(self, e: _serial.Encoded) -> ObjectRef[Any]:
        """Make an object of an encoded value."""
        if e.size <= self.inline:
            data = e.joined() if e.buffers else e.head
            known: Known = (f.INLINE, e.form, data)
        else:
            known, data = _SHARED, self.place(e)
        return self._put(known, e.form, e.refs, e.size, data)

    def _put(self, known: Known, form: int, refs: List[Any], size: int, data: bytes) -> ObjectRef[Any]:
        with self.lock:
            if self.closed:
                self.check()
            self.n = n = self.n + 1
            id = self.base + f.U64.pack(n << 20 | PUT_INDEX)
            self.refs[id] = 1
            self.values[id] = known
            out = self.out
            if refs:
                data = b"".join([r.binary() for r in refs]) + data
                f.fits("what was put, with the references in it,", 32 + len(data))
            out += f.PUT_HEAD.pack(36 + len(data), f.PUT, 0, id, known[0], form, 0, len(refs), size)
            out += data
            if len(out) > FLUSH_AT:
                self.flush()
                self._bound()
        return ObjectRef(id, self)

    def place(self, e: _serial.Encoded) -> bytes:
        """Copy a large value into the object memory; where it is, as frames say it."""
        segment, offset = self.room(e.size)
        self.store.write(segment, offset, e.head, e.buffers)
        return f.PLACE.pack(segment.number, 0, offset)

    def room(self, size: int) -> Tuple[Segment, int]:
        """Room in the object memory: a segment of this process's, and where in it."""
        with self.lock:
            self.check()
            return self.store.take(size) or self._room(size)

    def _room(self, size: int) -> Tuple[Segment, int]:
        """Ask the agent for room in the object memory; lock is held."""
        got: List[Tuple[Segment, int]] = []
        deadline = time.monotonic() + SPACE_WAIT

        def there() -> bool:
            at = self.store.take(size)
            if at is not None:
                got.append(at)
            return at is not None or self.full is not None or self.granted != granted

        while not got:
            left = deadline - time.monotonic()
            self.full, granted = None, self.granted
            self.out += f.frame(f.SPACE, f.U64x2.pack(size, max(int(left * 1000), 0)))
            self.flush()
            if not self.wait_for(there, left + 10):
                raise ObjectStoreFullError(f"the agent found no room for an object of {size} bytes within {SPACE_WAIT:.0f} s")
            if not got and self.full is not None:
                raise self.full
        return got[0]

    def value(self, e: _serial.Encoded) -> bytes:
        """An encoded value as frames have it."""
        return self.several([e])[0]

    def several(self, es: List[_serial.Encoded]) -> List[bytes]:
        """The values of one frame: what is inline is bounded in sum too."""
        f.fits("a result, with the references in it,", sum([32 + 16 * len(e.refs) for e in es]) + f.INLINE_SUM)
        out: List[bytes] = []
        placed: List[Tuple[Segment, int, int]] = []
        room = f.INLINE_SUM
        try:
            for e in es:
                refs = b"".join([r.binary() for r in e.refs]) if e.refs else b""
                if e.size <= self.inline and e.size <= room:
                    room -= e.size
                    out.append(f.VALUE.pack(f.INLINE, e.form, len(e.refs), e.size) + refs + e.joined())
                    continue
                segment, offset = self.room(e.size)
                placed.append((segment, offset, e.size))
                self.store.write(segment, offset, e.head, e.buffers)
                out.append(f.VALUE.pack(f.SHARED, e.form, len(e.refs), e.size) + refs + f.PLACE.pack(segment.number, 0, offset))
        except BaseException:
            self.store.unused.extend(placed)
            raise
        return out

    def get(self, ref: ObjectRef[Any], timeout: Optional[float]) -> Any:
        """The value of an object."""
        v = self.values.get(ref._id)
        end = None if timeout is None else time.monotonic() + timeout
        if v is None or v[0] == f.READY:
            self.fetch([ref._id], timeout)
            v = self.values[ref._id]
        if v[0] == f.INLINE:
            return _serial.decode(v[1], v[2])
        return self.load(ref._id, v, end)

    def get_all(self, ids: List[bytes], timeout: Optional[float]) -> List[Any]:
        """The values of objects."""
        end = None if timeout is None else time.monotonic() + timeout
        self.fetch(ids, timeout)
        values, load = self.values, self.load
        try:
            return [load(i, values[i], end) for i in ids]
        except ObjectStoreFullError:
            with self.lock:
                for i in ids:
                    if values.get(i, _READY)[0] == f.FAILED:
                        del values[i]
            raise

    def load(self, id: bytes, v: Known, end: Optional[float]) -> Any:
        """The value of an object that is there; raises what it failed with. end: when not to wait for room any more."""
        while True:
            if v[0] == f.INLINE:
                return _serial.decode(v[1], v[2])
            if v[0] == f.FAILED:
                raise self._failure(id, v)  # not by way of a name here: it would keep all frames, and what they refer to
            if v[0] == f.END:
                return None
            data = self.shared(id)
            if data is not None:
                return _serial.decode(*data)
            with self.lock:
                if self.values.get(id) is v:
                    del self.values[id]
            self.fetch([id], None if end is None else max(end - time.monotonic(), 0.0))
            v = self.values[id]

    def _failure(self, id: bytes, v: Known) -> RayError:
        """What an object has failed with; for want of room it is only this time."""
        error = from_wire(_pack.unpack(v[2]))
        if isinstance(error, ObjectStoreFullError):
            with self.lock:
                if self.values.get(id) is v:
                    del self.values[id]
        return error

    def shared(self, id: bytes) -> Optional[Tuple[int, memoryview]]:
        """Form and bytes of an object in shared memory; None if it is not there."""
        at = self.store.pin(id)
        if at is None:
            return None
        word, number, offset, size, form = at
        segment = self.store.segments.get(number)
        if segment is None:
            try:
                with self.lock:
                    self.out += f.frame(f.OPEN_SEGMENT, f.U32.pack(number))
                    self.flush()
                    self.wait_for(lambda: number in self.store.segments, COME_BACK)
                    segment = self.store.segments[number]
            except BaseException:
                self.store.unpin(word)
                raise
        view = self.store.view(word, segment, offset, size)
        if size <= _COPIED and 8 * self.store.free() < len(self.store.words):
            return form, memoryview(bytes(view))
        return form, view

    def fetch(self, ids: List[bytes], timeout: Optional[float]) -> None:
        """Wait until the values of all objects are here."""
        values = self.values
        with self.lock:
            self.check()
            open_ = self._missing(ids, VALUE)
            if not open_:
                return
            blocks = self._block()
            if blocks:
                self._get_frames(open_, f.GET_VALUES | f.GET_BLOCKS)
            self._ask(open_, VALUE, blocks)
            if len(ids) == 1:
                self._ask_ahead(ids[0])
            at = 0

            def done() -> bool:
                nonlocal at
                while at < len(open_):
                    v = values.get(open_[at])
                    if v is None or v[0] == f.READY:
                        return False
                    at += 1
                return True

            if not self._blocked(blocks, done, timeout):
                raise GetTimeoutError(f"{len(self._missing(open_, VALUE))} of {len(ids)} objects were not there within {timeout} s")

    def _blocked(self, blocks: bool, done: Callable[[], bool], timeout: Optional[float]) -> bool:
        """Wait; this process's room is free for others meanwhile. lock is held."""
        self.waiting += 1
        there = False
        try:
            self.flush()
            there = self.wait_for(done, timeout, blocks and self.worker is not None and self.worker.actor is None)
        finally:
            self.waiting -= 1
            if blocks and not there and not self.waiting and not self.closed:
                self.out += f.frame(f.AWAKE, b"")
        return there

    def _block(self) -> bool:
        """Whether the agent is to know what this process waits for. A worker hands back
        what it has not begun. lock is held."""
        w = self.worker
        if w is None:
            return self.in_run
        if not w.stack:
            return False
        if w.actor is not None:
            return bool(w.actor.blocks)
        if not self.waiting:
            w.hand_back((w.begun + 1) & 0xFFFFFFFF)
        return True

    def _missing(self, ids: Iterable[bytes], level: int) -> List[bytes]:
        values = self.values
        if level == READ:
            return [i for i in ids if i not in values]
        return [i for i in ids if (v := values.get(i)) is None or v[0] == f.READY]

    def _ask(self, ids: List[bytes], level: int, asked_already: bool = False) -> None:
        """Ask the agent for what it was not asked for yet; lock is held."""
        asked = self.asked
        if not asked_already:
            ids = [i for i in ids if (a := asked.get(i)) is None or a[0] < level]
            if not ids:
                return
            self._get_frames(ids, f.GET_VALUES if level == VALUE else 0)
        entry = (level, self.end + len(self.out))
        for i in ids:
            asked[i] = entry

    def _ask_ahead(self, id: bytes) -> None:
        """Ask for the results of the tasks after this one too, when they are got one by one."""
        if id[:8] != self.base:
            return
        low = int.from_bytes(id[8:], "little")
        if low & PUT_INDEX != 1:
            return
        n = low >> 20
        if not self.ahead <= n <= self.ahead + 1:
            self.ahead, self.window_ahead = n, 1
            return
        self.window_ahead = min(2 * self.window_ahead, 1024)
        ids = []
        for m in range(n + 1, min(n + self.window_ahead, self.n) + 1):
            other = self.base + f.U64.pack(m << 20 | 1)
            if other in self.refs and other not in self.values and other not in self.asked:
                ids.append(other)
        self.ahead = n + self.window_ahead
        if ids:
            self._ask(ids, VALUE)

    def wait(self, refs: Sequence[ObjectRef[Any]], count: int, timeout: Optional[float], local: bool, asked: bool) -> List[int]:
        """The places of up to count references whose objects are there, in order.

        asked: the agent was asked for all of them before, and nothing is known to be new.
        """
        values = self.values

        def there() -> List[int]:
            if count == 1:
                for i, r in enumerate(refs):
                    if r._id in values:
                        return [i]
                return []
            return [i for i, r in enumerate(refs) if r._id in values][:count]

        places = there()
        if len(places) == count:
            return places
        with self.lock:
            self.check()
            if not asked:
                self._ask(self._missing([r._id for r in refs], READ), VALUE if local else READ)
            if timeout is not None and timeout <= 0:
                self.flush()
                self.poll()
                return there()

            def done() -> bool:
                nonlocal places
                places = there()
                return len(places) == count

            blocks = self._block()
            if blocks:  # a few will do: the first that comes ends the wait, or most of it
                ids = [r._id for r in refs if r._id not in values][: max(_BLOCKS, count - len(places))]
                self._get_frames(ids, (f.GET_VALUES if local else 0) | f.GET_BLOCKS)
            if self._blocked(blocks, done, timeout) and blocks and not self.waiting and any(i not in values for i in ids):
                self.out += f.frame(f.AWAKE, b"")
            return places

    def settle(self, ref: ObjectRef[Any], timeout: Optional[float]) -> None:
        """Wait until an object is there, or has failed."""
        if ref._id not in self.values:
            self.fetch([ref._id], timeout)

    def want(self, refs: Iterable[ObjectRef[Any]]) -> None:
        """Ask for values without waiting."""
        with self.lock:
            self._ask(self._missing([r._id for r in refs], VALUE), VALUE)

    def kind(self, ref: ObjectRef[Any]) -> int:
        """What is known of an object."""
        return self.values.get(ref._id, _READY)[0]

    # Tasks.

    def submit(self, function: Any, shape: int, returns: int, flags: int, deps: List[bytes], held: List[bytes], payload: bytes, number: int = 0) -> Tuple[bytes, List[ObjectRef[Any]]]:
        """Write a task; its id and its results to come. number: one that reserve gave."""
        if len(deps) > f.MANY_MAX:
            raise ValueError(f"a task with {len(deps)} arguments that are references; at most {f.MANY_MAX} are allowed: pass a list of references, and get() them in the task")
        if held:
            f.fits("a task, with the references in its arguments,", 52 + 16 * (len(deps) + len(held)) + len(payload))
        with self.lock:
            if self.closed:
                self.check()
            n = number
            if not n:
                self.n = n = self.n + 1
            low = n << 20
            task = self.base + f.U64.pack(low)
            out = self.out
            out += f.SUBMIT_HEAD.pack(
                56 + 16 * (len(deps) + len(held)) + len(payload), f.SUBMIT, 0, task, function, shape, returns, flags, len(deps), len(held)
            )
            if deps or held:
                out += b"".join(deps)
                out += b"".join(held)
            out += payload
            refs = self.refs
            results: List[ObjectRef[Any]] = []
            if returns != f.STREAM:
                for i in range(1, returns + 1):
                    id = self.base + f.U64.pack(low | i)
                    refs[id] = 1
                    results.append(ObjectRef(id, self))
            self.flush()
            if self.end - self.proven > UNPROVEN_MAX:
                self._bound()
            return task, results

    def reserve(self) -> Tuple[int, bytes]:
        """A number for a task that is submitted later, and the id that it will have."""
        with self.lock:
            self.check()
            self.n = n = self.n + 1
            return n, self.base + f.U64.pack(n << 20)

    def kill(self, actor: bytes, no_restart: bool) -> None:
        """End an actor's process."""
        with self.lock:
            self.check()
            self.out += f.frame(f.KILL, actor + f.U32.pack(1 if no_restart else 0))
            if no_restart:
                self.killed.append(actor)
        self.ask("sync")  # an agent that is being restarted did not hear it, and the program may do nothing else for long

    def _bound(self) -> None:
        """Wait while the agent has too much to read; lock is held."""
        if self.end - self.proven > UNPROVEN_MAX:
            self.wait_for(lambda: self.end - self.proven <= UNPROVEN_MAX, None)

    def function(self, id: bytes, name: str, code: bytes) -> None:
        """Tell the agent of a function, once."""
        with self.lock:
            if id not in self.functions:
                text = name.encode("utf-8", "replace")
                if len(code) + len(text) + 20 > f.BODY_MAX:
                    raise ValueError(f"the function {name} is {len(code) >> 20} MiB large, with what it uses from outside; put() large values and pass their references as arguments")
                self.out += f.frame(f.FUNC, id + f.U32.pack(len(text)) + text + code)
                self.functions.add(id)
                if self.worker is not None:
                    self.worker.told(id, name, code)

    def shape(self, options: bytes) -> int:
        """The number of a set of options (msgpack)."""
        with self.lock:
            n = self.shapes.get(options)
            if n is None:
                if len(options) > f.OPTIONS_MAX:
                    raise ValueError(f"the options of a task take {len(options)} bytes, allowed are {f.OPTIONS_MAX}")
                n = self.shapes[options] = len(self.shapes) + 1
                self.out += f.frame(f.SHAPE, f.U32.pack(n) + options)
            return n

    def cancel(self, id: bytes, flags: int) -> None:
        """Cancel the task that makes an object."""
        with self.lock:
            self.check()
            self.out += f.frame(f.CANCEL, f.U32x2.pack(flags, 0) + id)
            self.flush()

    # Futures.

    def watch(self, id: bytes, call: Callable[[], None]) -> None:
        """Have call called, by whoever reads, once an object is there."""
        with self.lock:
            self.check()
            v = self.values.get(id)
            if v is not None and v[0] != f.READY:
                self.due.append(call)
            else:
                self.watchers.setdefault(id, []).append(call)
                self._ask([id], VALUE)
            self.flush()
            self._after()

    @property
    def aio(self) -> Any:
        """The bridge to asyncio."""
        if self._aio is None:
            from ._futures import Asyncio

            self._aio = Asyncio(self)
        return self._aio

    def future(self, ref: ObjectRef[Any]) -> Any:
        """A concurrent Future of an object's value."""
        if self.futures is None:
            from ._futures import Futures

            self.futures = Futures(self)
        return self.futures.future(ref)


_current: Optional[Client] = None


def connected() -> Client:
    """The client of this process; it is made on first use."""
    if _current is not None:
        return _current
    from . import _api

    return _api.auto_init()


def current() -> Optional[Client]:
    """The client of this process, if there is one."""
    return _current


def use(client: Optional[Client]) -> None:
    """Make a client that of this process."""
    global _current
    _current = client


def _forked() -> None:
    global _current
    if _current is not None:
        _current.forked()
        _current = None


os.register_at_fork(after_in_child=_forked)
