"""The conversation of this process with its node's agent.

No thread of launcher's runs here: whoever waits reads for all. What is written is
buffered until something is asked, submitted or too long; see docs/tasks.md section 3.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections import deque
from typing import Any, Callable, Deque, Dict, Iterable, List, Optional, Sequence, Tuple

from . import _frames as f
from . import _pack, _serial
from ._http import Error, socket_path
from ._logs import Printer
from ._refs import PUT_INDEX, ObjectRef
from ._store import Store
from .exceptions import GetTimeoutError, ObjectStoreFullError, RayError, from_wire

COME_BACK = 60.0  # an agent may take so long to be there again
FLUSH_AT = 32 << 10
PROOF_EVERY = 256 << 10
UNPROVEN_MAX = 8 << 20
IDS_AT_ONCE = 50_000
SPACE_WAIT = 60.0

READ, VALUE = 0, 1  # levels of what the agent was asked for

# Values that this process knows, as (kind, form, bytes).
Known = Tuple[int, int, bytes]
_READY: Known = (f.READY, 0, b"")
_SHARED: Known = (f.SHARED, 0, b"")
_END: Known = (f.END, 0, b"")


class Client:
    """One connection, and what this process knows of objects. lock guards all of it."""

    def __init__(self, sock: socket.socket, path: str, hello: List[Any], worker: Any = None, log: bool = True) -> None:
        self.lock = threading.Lock()
        self.come = threading.Condition(self.lock)
        self.sock, self.path, self.hello, self.worker = sock, path, hello, worker
        self.printer = Printer(log)
        self.store = Store()
        self.pid = os.getpid()
        self.closed = ""  # why nothing can be asked any more

        self.out = bytearray()
        self.rest: Any = b""  # of what was to be written
        self.ring: Deque[Tuple[int, bytes]] = deque()  # written, not proven; with the position of the end
        self.end = self.proven = self.asked_proof = 0

        self.buf = bytearray(256 << 10)
        self.window = memoryview(self.buf)
        self.r = self.w = 0
        self.fds: Deque[int] = deque()
        self.reading = False
        self.sleepers = 0

        self.n = 0
        self.refs: Dict[bytes, int] = {}  # references in this process
        self.gone: Deque[bytes] = deque()  # of references that died
        self.left: Deque[Tuple[bytes, int]] = deque()  # streams that nobody reads on
        self.holds: List[bytes] = []
        self.values: Dict[bytes, Known] = {}
        self.asked: Dict[bytes, Tuple[int, int]] = {}  # level, position
        self.watchers: Dict[bytes, List[Callable[[], None]]] = {}
        self.due: List[Callable[[], None]] = []
        self.functions: set[bytes] = set()
        self.shapes: Dict[bytes, int] = {}
        self.calls: Dict[int, Any] = {}  # number -> answer
        self.proofs: Dict[int, int] = {}  # number -> position
        self.call_number = 0
        self.full: Optional[RayError] = None
        self.granted = 0
        self.waiting = 0
        self.void = 0  # Execs that come before the answer to this call were handed back
        self.ahead, self.window_ahead = 0, 0
        self.futures: Any = None
        self._aio: Any = None
        self._handlers: Dict[int, Callable[[memoryview, int], None]] = {
            f.ANSWER: self._on_answer,
            f.GRANTED: self._on_granted,
            f.SEGMENT: self._on_segment,
            f.DROP_SEGMENT: self._on_drop,
            f.LOG: self._on_log,
            f.ERROR: self._on_error,
        }
        if worker is not None:
            worker.client = self
            self._handlers.update(worker.handlers())
        self.hello[8] = os.urandom(16)
        self._greet(sock)

    # Beginning, end, and beginning again.

    def _greet(self, sock: socket.socket) -> None:
        """Say Hello on a new connection and take the answer in."""
        sock.setblocking(True)
        sock.settimeout(COME_BACK)
        sock.sendall(f.GREETING + f.frame(f.HELLO, _pack.pack(self.hello)))
        self.sock, self.r, self.w = sock, 0, 0
        while True:
            self._receive(0)
            got = self._next()
            if got is not None:
                break
        sock.settimeout(None)
        type, body = got
        if type == f.ERROR:
            self._on_error(memoryview(body), 0)
        if type != f.WELCOME:
            raise Error("corrupt", f"the agent answered frame {type:#06x} to the greeting")
        w = _pack.unpack(body)
        if w[0] != f.VERSION:
            raise Error("version", f"the agent speaks version {w[0]}, this SDK version {f.VERSION}", ["use the SDK of the cluster's version"])
        self.number, self.client, self.node, self.cluster, self.job = w[1], w[2], w[3], w[4], w[5]
        self.inline, self.cpus = int(w[6] or f.INLINE_MAX), int(w[8] or 0) / 10000 if len(w) > 8 else 0.0
        self.hello[7] = self.client
        self.base = f.U32x2.pack(self.number, self.client)
        if len(self.fds) < (3 if self.worker is not None else 2):
            raise Error("corrupt", f"the agent's welcome came with {len(self.fds)} descriptors")
        self.store.attach(self.fds.popleft(), self.fds.popleft())
        if self.worker is not None:
            self.worker.control(self.fds.popleft())

    def _reconnect(self, cause: str) -> None:
        """Find the agent again and repeat what it may not have; lock is held."""
        try:
            self.sock.close()
        except OSError:
            pass
        while self.fds:
            os.close(self.fds.popleft())
        end = time.monotonic() + COME_BACK
        while True:
            if self.closed:
                raise Error("unavailable", self.closed)
            try:
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                try:
                    sock.connect(socket_path(self.path))
                    self._greet(sock)
                    break
                except BaseException:
                    sock.close()
                    raise
            except (OSError, Error) as e:
                if isinstance(e, Error) and e.kind not in ("unavailable", "lost") or time.monotonic() > end:
                    self._fail(f"the node's agent is gone ({cause}) and not back within {COME_BACK:.0f} s: {e}")
                time.sleep(0.05)
        again = [(self.proven, b"")] + list(self.ring)
        self.rest = b"".join(data for _, data in again)
        self.asked_proof = self.proven
        levels: Dict[int, List[bytes]] = {}
        for id, (level, _) in self.asked.items():
            levels.setdefault(level, []).append(id)
        for level, ids in levels.items():
            self._get_frames(ids, level)
        self.flush()

    def _fail(self, why: str) -> None:
        self.closed = why
        self.come.notify_all()
        raise Error("unavailable", why)

    def close(self) -> None:
        """End the conversation."""
        with self.lock:
            if self.closed:
                return
            try:
                self.flush()
            except (OSError, Error):
                pass
            self.closed = "launcher.shutdown() has ended the connection"
            try:
                self.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            if not self.reading:
                self.sock.close()
            self.come.notify_all()
            self.values.clear()
        self.printer.close()

    def forked(self) -> None:
        """This is a child of the process that the conversation is of."""
        self.lock = threading.Lock()
        self.come = threading.Condition(self.lock)
        self.closed = f"this process was forked from one (pid {self.pid}) that uses launcher: its references are of no use here; pass values, or use launcher tasks instead of processes"
        self.store.forked()
        self.sock.close()

    def check(self) -> None:
        """Raise if nothing can be asked."""
        if self.closed:
            raise Error("unavailable", self.closed)

    # Writing. lock is held.

    def flush(self) -> None:
        """Write what is buffered."""
        if self.holds:
            self._ids(f.HOLD, self.holds)
            self.holds = []
        if self.gone:
            self._release()
        if self.left:
            self._leave()
        if self.out:
            data = bytes(self.out)
            self.out.clear()
            self.end += len(data)
            self.ring.append((self.end, data))
            if self.end - self.asked_proof > PROOF_EVERY:
                self.asked_proof = self.end
                self.rest = self.rest + data if self.rest else data
                self._call("sync")
                self.flush()
                return
            self.rest = self.rest + data if self.rest else data
        while self.rest:
            try:
                n = self.sock.send(self.rest)
            except InterruptedError:
                continue
            except OSError as e:
                if not self.reading:  # else the reader sees it too
                    self._reconnect(str(e))
                return
            self.rest = self.rest[n:]

    def _release(self) -> None:
        gone, refs = self.gone, self.refs
        ids: List[bytes] = []
        for _ in range(len(gone)):
            id = gone.popleft()
            n = refs.get(id, 0) - 1
            if n > 0:
                refs[id] = n
            elif n == 0:
                del refs[id]
                self.values.pop(id, None)
                self.asked.pop(id, None)
                ids.append(id)
        if ids:
            self._ids(f.RELEASE, ids)

    def _leave(self) -> None:
        """Streams that nobody reads on: their tasks are let go of."""
        ids = [task for task, _ in (self.left.popleft() for _ in range(len(self.left)))]
        self._ids(f.RELEASE, ids)

    def _ids(self, type: int, ids: Sequence[bytes], head: bytes = b"") -> None:
        for i in range(0, len(ids), IDS_AT_ONCE):
            body = b"".join(ids[i : i + IDS_AT_ONCE])
            self.out += f.HEAD.pack(4 + len(head) + len(body), type, 0)
            self.out += head
            self.out += body

    def _get_frames(self, ids: Sequence[bytes], flags: int) -> None:
        self._ids(f.GET, ids, f.U32x2.pack(flags, 0))

    def _call(self, verb: str, *args: Any) -> int:
        self.call_number += 1
        n = self.call_number
        self.out += f.frame(f.CALL, f.U32.pack(n) + _pack.pack([verb, *args]))
        self.proofs[n] = self.end + len(self.out)
        return n

    def _proves(self, at: int) -> None:
        if at > self.proven:
            self.proven = at
            ring = self.ring
            while ring and ring[0][0] <= at:
                ring.popleft()

    # Reading.

    def _receive(self, flags: int) -> bool:
        """Read what is there, or wait for something. False: nothing was there."""
        if self.r == self.w:
            self.r = self.w = 0
        elif self.r > len(self.buf) // 2 or len(self.buf) - self.w < 4096:
            have = self.w - self.r
            if have > len(self.buf) // 2:
                bigger = bytearray(2 * len(self.buf))
                bigger[:have] = self.window[self.r : self.w]
                self.buf, self.window = bigger, memoryview(bigger)
            else:
                self.buf[:have] = bytes(self.window[self.r : self.w])
            self.r, self.w = 0, have
        try:
            n, anc, _, _ = self.sock.recvmsg_into([self.window[self.w :]], _FDS, flags)
        except BlockingIOError:
            return False
        if anc:
            for _, _, data in anc:
                for i in range(0, len(data) - len(data) % 4, 4):
                    self.fds.append(int.from_bytes(data[i : i + 4], "little"))
        if n == 0:
            raise ConnectionResetError("the agent closed the connection")
        self.w += n
        return True

    def _next(self) -> Optional[Tuple[int, bytes]]:
        """The next frame, where they are taken one by one."""
        if self.w - self.r < 8:
            return None
        n, type, _ = f.HEAD.unpack_from(self.buf, self.r)
        if n < 4 or n > f.MAX_FRAME:
            raise Error("corrupt", f"the agent sent a frame of length {n}")
        if self.w - self.r < n + 4:
            return None
        body = bytes(self.window[self.r + 8 : self.r + 4 + n])
        self.r += n + 4
        return type, body

    def _handle(self) -> None:
        """Handle the frames that are there; lock is held."""
        buf, window, w = self.buf, self.window, self.w
        refs, values, asked, watchers = self.refs, self.values, self.asked, self.watchers
        head, value = f.HEAD.unpack_from, f.VALUE.unpack_from
        r = self.r
        while w - r >= 8:
            n, type, flags = head(buf, r)
            if n < 4 or n > f.MAX_FRAME:
                self._fail(f"the agent sent a frame of length {n}")
            end = r + 4 + n
            if end > w:
                break
            if type == f.OBJECT:
                id = bytes(window[r + 8 : r + 24])
                kind, form, count, size = value(buf, r + 24)
                was = asked.get(id)
                if was is not None:
                    if was[1] > self.proven:
                        self._proves(was[1])
                    if was[0] == READ or kind != f.INLINE or not flags & f.READY_ONLY:
                        del asked[id]
                if id in refs:
                    if kind == f.INLINE:
                        if flags & f.READY_ONLY:
                            if id not in values:
                                values[id] = _READY
                        else:
                            at = r + 40 + 16 * count
                            values[id] = (f.INLINE, form, bytes(window[at : at + size]))
                    elif kind == f.SHARED:
                        values[id] = _SHARED
                    elif kind == f.FAILED:
                        if not (flags & f.READY_ONLY and size):
                            at = r + 40 + 16 * count
                            values[id] = (f.FAILED, form, bytes(window[at : at + size]))
                        elif id not in values:
                            values[id] = _READY
                    elif kind == f.END:
                        values[id] = _END
                    if watchers and id in watchers:
                        self.due.extend(watchers.pop(id))
            else:
                handler = self._handlers.get(type)
                if handler is not None:
                    handler(window[r + 8 : end], flags)
            self.r = r = end

    def wait_for(self, done: Callable[[], bool], timeout: Optional[float], nested: bool = False) -> bool:
        """Handle frames until done() says so; False after timeout seconds. lock is held.

        With nested, a worker runs tasks that come meanwhile.
        """
        if done():
            return True
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            self.check()
            if self.worker is not None:
                self.worker.check_cancelled()
            left = None if end is None else max(end - time.monotonic(), 0.0)
            if nested and self.worker.queue and not self.worker.ending:
                self.lock.release()
                try:
                    self.worker.run_next()
                finally:
                    self.lock.acquire()
            elif self.reading:
                self.sleepers += 1
                try:
                    self.come.wait(left)
                finally:
                    self.sleepers -= 1
            else:
                self._read(left)
            if done():
                return True
            if end is not None and time.monotonic() >= end:
                return False

    def _read(self, timeout: Optional[float]) -> None:
        """Wait for frames and handle them, for all threads; lock is held."""
        self.reading = True
        try:
            self.lock.release()
            broken = ""
            try:
                if timeout is None or self._readable(timeout):
                    self._receive(0)
            except (OSError, ValueError) as e:
                broken = str(e) or type(e).__name__
            finally:
                self.lock.acquire()
            if self.closed:
                self.sock.close()
                self.check()
            if broken:
                self._reconnect(broken)
            self._handle()
        finally:
            self.reading = False
            if self.sleepers:
                self.come.notify_all()
        self._after()

    def _readable(self, timeout: float) -> bool:
        p = select.poll()
        p.register(self.sock, select.POLLIN)
        return bool(p.poll(timeout * 1000 if timeout < 1e6 else None))

    def poll(self) -> None:
        """Handle what is there without waiting; lock is held."""
        if not self.reading:
            self._read(0.0)

    def drain(self) -> None:
        """The same inside a signal handler: what is broken is left for others to find."""
        try:
            while not self.reading and not self.closed and self._receive(socket.MSG_DONTWAIT):
                self._handle()
        except (OSError, Error):
            pass

    def _after(self) -> None:
        """What is to be done without the lock after frames were handled."""
        if self.due or self.printer.lines:
            due, self.due = self.due, []
            self.lock.release()
            try:
                self.printer.flush()
                for call in due:
                    call()
            finally:
                self.lock.acquire()

    # What the agent says.

    def _on_answer(self, body: memoryview, flags: int) -> None:
        n, failed = f.U32x2.unpack_from(body)
        at = self.proofs.pop(n, None)
        if at is not None:
            self._proves(at)
        if n == self.void:
            self.void = 0
        if n in self.calls:
            value = _pack.unpack(body[8:])
            self.calls[n] = (error_of(value) if failed else None, value)

    def _on_granted(self, body: memoryview, flags: int) -> None:
        (what,) = f.U32.unpack_from(body)
        self.granted += 1
        if what == 1:
            segment, size = f.U32.unpack_from(body, 4)[0], f.U64.unpack_from(body, 8)[0]
            self.store.add(segment, self._descriptor(), size, True)
        elif what == 2:
            (count,) = f.U32.unpack_from(body, 4)
            for i in range(count):
                segment, _, offset, length = f.EXTENT.unpack_from(body, 8 + 24 * i)
                self.store.give(segment, offset, length)
        else:
            self.full = from_wire(_pack.unpack(body[4:]))

    def _on_segment(self, body: memoryview, flags: int) -> None:
        segment, size = f.U32.unpack_from(body)[0], f.U64.unpack_from(body, 4)[0]
        self.store.add(segment, self._descriptor(), size, False)

    def _descriptor(self) -> int:
        if not self.fds:
            raise Error("corrupt", "a frame of the agent without its descriptor")
        return self.fds.popleft()

    def _on_drop(self, body: memoryview, flags: int) -> None:
        (segment,) = f.U32.unpack_from(body)
        if self.store.drop(segment):
            self.out += f.frame(f.DROPPED, f.U32.pack(segment))

    def _on_log(self, body: memoryview, flags: int) -> None:
        n = int.from_bytes(body[2:4], "little")
        self.printer.add(body[0], bytes(body[4 : 4 + n]), bytes(body[4 + n :]))

    def _on_error(self, body: memoryview, flags: int) -> None:
        e = error_of(_pack.unpack(body))
        self.closed = str(e)
        self.come.notify_all()
        raise e

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

    def finish(self, task: bytes) -> ObjectRef[Any]:
        """A reference of the end of a task."""
        return self.item(task)

    # Values.

    def put(self, value: Any, copies: int = 1) -> ObjectRef[Any]:
        """Make an object of a value."""
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
        with self.lock:
            if self.closed:
                self.check()
            self.n = n = self.n + 1
            id = self.base + f.U64.pack(n << 20 | PUT_INDEX)
            self.refs[id] = 1
            self.values[id] = known
            out = self.out
            if e.refs:
                data = b"".join([r.binary() for r in e.refs]) + data
            out += f.PUT_HEAD.pack(36 + len(data), f.PUT, 0, id, known[0], e.form, 0, len(e.refs), e.size)
            out += data
            if len(out) > FLUSH_AT:
                self.flush()
                self._bound()
        return ObjectRef(id, self)

    def place(self, e: _serial.Encoded) -> bytes:
        """Copy a large value into the object memory; where it is, as frames say it."""
        store = self.store
        with self.lock:
            at = store.take(e.size)
            if at is None:
                at = self._room(e.size)
        segment, offset = at
        store.write(segment, offset, e.head, e.buffers)
        return f.PLACE.pack(segment.number, 0, offset)

    def _room(self, size: int) -> Any:
        """Ask the agent for room in the object memory; lock is held."""
        got: List[Any] = []
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

    def value(self, kind: int, e: _serial.Encoded) -> bytes:
        """An encoded value as frames have it."""
        refs = b"".join([r.binary() for r in e.refs]) if e.refs else b""
        if e.size <= self.inline:
            return f.VALUE.pack(kind, e.form, len(e.refs), e.size) + refs + e.joined()
        return f.VALUE.pack(f.SHARED, e.form, len(e.refs), e.size) + refs + self.place(e)

    def get(self, ref: ObjectRef[Any], timeout: Optional[float]) -> Any:
        """The value of an object."""
        v = self.values.get(ref._id)
        if v is None or v[0] == f.READY:
            self.fetch([ref._id], timeout)
            v = self.values[ref._id]
        if v[0] == f.INLINE:
            return _serial.decode(v[1], v[2])
        return self.load(ref._id, v)

    def load(self, id: bytes, v: Known) -> Any:
        """The value of an object that is there; raises what it failed with."""
        while True:
            if v[0] == f.INLINE:
                return _serial.decode(v[1], v[2])
            if v[0] == f.FAILED:
                raise from_wire(_pack.unpack(v[2]))
            if v[0] == f.END:
                raise StopIteration
            data = self.shared(id)
            if data is not None:
                return _serial.decode(*data)
            with self.lock:
                if self.values.get(id) is v:
                    del self.values[id]
            self.fetch([id], None)
            v = self.values[id]

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
        return form, self.store.view(word, segment, offset, size)

    def fetch(self, ids: List[bytes], timeout: Optional[float]) -> None:
        """Wait until the values of all objects are here."""
        values = self.values
        with self.lock:
            self.check()
            open_ = self._missing(ids, VALUE)
            if not open_:
                return
            blocks = self._block()
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

            self._blocked(blocks, done, timeout, f"{len(open_) - at} of {len(ids)} objects")

    def _blocked(self, blocks: bool, done: Callable[[], bool], timeout: Optional[float], what: str) -> None:
        """Wait; a worker's room is free for others meanwhile. lock is held."""
        self.waiting += 1
        there = False
        try:
            self.flush()
            there = self.wait_for(done, timeout, blocks)
        finally:
            self.waiting -= 1
            if blocks and not there and not self.waiting and not self.closed:
                self.out += f.frame(f.AWAKE, b"")
        if not there:
            raise GetTimeoutError(f"{what} were not there within {timeout} s")

    def _block(self) -> bool:
        """In a worker, hand back what has not begun: this task waits. lock is held."""
        w = self.worker
        if w is None or not w.stack:
            return False
        if not self.waiting:
            w.queue.clear()
            self.out += f.frame(f.HAND_BACK, f.U32.pack((w.begun + 1) & 0xFFFFFFFF))
            self.void = self._call("sync")
        return True

    def _missing(self, ids: Iterable[bytes], level: int) -> List[bytes]:
        values = self.values
        if level == READ:
            return [i for i in ids if i not in values]
        return [i for i in ids if (v := values.get(i)) is None or v[0] == f.READY]

    def _ask(self, ids: List[bytes], level: int, blocks: bool) -> None:
        """Ask the agent for what it was not asked for yet; lock is held."""
        asked = self.asked
        if not blocks:
            ids = [i for i in ids if (a := asked.get(i)) is None or a[0] < level]
            if not ids:
                return
        self._get_frames(ids, (f.GET_VALUES if level == VALUE else 0) | (f.GET_BLOCKS if blocks else 0))
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
            self._ask(ids, VALUE, False)

    def wait(self, refs: Sequence[ObjectRef[Any]], count: int, timeout: Optional[float], local: bool) -> List[int]:
        """The places of up to count references whose objects are there, in order."""
        values = self.values
        first: List[int] = []
        if count == 1:
            for i, r in enumerate(refs):
                if r._id in values:
                    return [i]
        else:
            first = [i for i, r in enumerate(refs) if r._id in values]
            if len(first) >= count:
                return first[:count]
        ids = [r._id for r in refs]
        with self.lock:
            self.check()
            open_ = self._missing(ids, READ)
            need = count - (len(ids) - len(open_))
            if need > 0:
                left = open_

                def done() -> bool:
                    nonlocal left
                    left = [i for i in left if i not in values]
                    return len(open_) - len(left) >= need

                level = VALUE if local else READ
                if timeout is not None and timeout <= 0:
                    self._ask(open_, level, False)
                    self.flush()
                    self.poll()
                else:
                    blocks = self._block()
                    self._ask(open_, level, blocks)
                    try:
                        self._blocked(blocks, done, timeout, "the objects")
                    except GetTimeoutError:
                        pass
        first = [i for i, id in enumerate(ids) if id in values]
        return first[:count]

    def settle(self, ref: ObjectRef[Any], timeout: Optional[float]) -> None:
        """Wait until an object is there, or has failed."""
        if ref._id not in self.values:
            self.fetch([ref._id], timeout)

    def want(self, refs: Iterable[ObjectRef[Any]]) -> None:
        """Ask for values without waiting."""
        with self.lock:
            self._ask(self._missing([r._id for r in refs], VALUE), VALUE, False)

    def kind(self, ref: ObjectRef[Any]) -> int:
        """What is known of an object."""
        return self.values.get(ref._id, _READY)[0]

    # Tasks.

    def submit(self, function: Any, shape: int, returns: int, flags: int, deps: List[bytes], held: List[bytes], payload: bytes) -> Tuple[bytes, List[ObjectRef[Any]]]:
        """Write a task; its id and its results to come."""
        with self.lock:
            if self.closed:
                self.check()
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

    def _bound(self) -> None:
        """Wait while the agent has too much to read; lock is held."""
        if self.end - self.proven > UNPROVEN_MAX:
            self.wait_for(lambda: self.end - self.proven <= UNPROVEN_MAX, None)

    def function(self, id: bytes, name: str, code: bytes) -> None:
        """Tell the agent of a function, once."""
        with self.lock:
            if id not in self.functions:
                text = name.encode("utf-8", "replace")
                self.out += f.frame(f.FUNC, id + f.U32.pack(len(text)) + text + code)
                self.functions.add(id)

    def shape(self, options: bytes) -> int:
        """The number of a set of options (msgpack)."""
        with self.lock:
            n = self.shapes.get(options)
            if n is None:
                n = self.shapes[options] = len(self.shapes) + 1
                self.out += f.frame(f.SHAPE, f.U32.pack(n) + options)
            return n

    def cancel(self, id: bytes, flags: int) -> None:
        """Cancel the task that makes an object."""
        with self.lock:
            self.check()
            self.out += f.frame(f.CANCEL, f.U32x2.pack(flags, 0) + id)
            self.flush()

    def ask(self, verb: str, *args: Any, timeout: float = 60.0) -> Any:
        """Ask the agent something."""
        with self.lock:
            self.check()
            n = self._call(verb, *args)
            self.calls[n] = None
            try:
                self.flush()
                if not self.wait_for(lambda: self.calls[n] is not None, timeout):
                    raise Error("timeout", f"the agent did not answer {verb} within {timeout:.0f} s")
                error, value = self.calls[n]
            finally:
                del self.calls[n]
        if error is not None:
            raise error
        return value

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
                self._ask([id], VALUE, False)
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


_FDS = socket.CMSG_SPACE(4 * 16)

_KINDS = (
    "unknown", "invalid", "not-found", "exists", "unavailable", "timeout", "cancelled", "permission",
    "exhausted", "lost", "version", "corrupt", "unbuilt", "internal", "fenced",
)  # fmt: skip


def error_of(value: Any) -> Error:
    """The error that an agent sent."""
    if isinstance(value, dict):
        value = [value.get("Kind", value.get("kind")), value.get("Msg", value.get("msg")), value.get("Hints", value.get("hints"))]
    if not isinstance(value, list) or len(value) < 2:
        return Error("unknown", str(value))
    kind = value[0]
    if isinstance(kind, int):
        kind = _KINDS[kind] if 0 <= kind < len(_KINDS) else "unknown"
    return Error(str(kind), str(value[1]), [str(h) for h in (value[2] if len(value) > 2 else None) or []])


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
