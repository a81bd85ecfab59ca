"""The connection of this process to its node's agent: frames out, frames in.

No thread of launcher's runs here: whoever waits reads for all. What is written is
buffered until something is asked, submitted or too long; see docs/tasks.md section 3.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
import time
from collections import deque
from typing import Any, Callable, Deque, Dict, List, Optional, Sequence, Tuple

from . import _frames as f
from . import _pack
from ._http import Error, error_of, socket_path
from ._logs import Printer
from ._store import Store
from .exceptions import RayError, from_wire

COME_BACK = 60.0  # an agent may take so long to be there again
FLUSH_AT = 32 << 10
PROOF_EVERY = 256 << 10
UNPROVEN_MAX = 8 << 20
IDS_AT_ONCE = 50_000
_LEAST, _MOST = 16 << 10, 256 << 10  # of what is read at a time: a worker that gets little touches little memory

READ, VALUE = 0, 1  # levels of what the agent was asked for

# Values that this process knows, as (kind, form, bytes).
Known = Tuple[int, int, bytes]
_READY: Known = (f.READY, 0, b"")
_SHARED: Known = (f.SHARED, 0, b"")
_END: Known = (f.END, 0, b"")


class Connection:
    """One connection, and what it has told of objects. lock guards all of it."""

    def __init__(self, sock: socket.socket, path: str, hello: List[Any], worker: Any = None, log: bool = True) -> None:
        self.lock = threading.Lock()
        self.come = threading.Condition(self.lock)
        self.sock, self.path, self.hello, self.worker = sock, path, hello, worker
        self.printer = Printer(log)
        self.store = Store()
        self.pid = os.getpid()
        self.closed = ""  # why nothing can be asked any more
        self.environment: Dict[str, Any] = {}  # runtime_env of the program, or of the worker
        self.captured: Optional[List[Any]] = None  # strategy of what is submitted, where a placement group captures it

        self.out = bytearray()
        self.rest: Any = b""  # of what was to be written
        self.ring: Deque[Tuple[int, bytes]] = deque()  # written, not proven; with the position of the end
        self.end = self.proven = self.asked_proof = 0

        self.buf = bytearray(_LEAST)
        self.window = memoryview(self.buf)
        self.r = self.w = 0
        self.filled = False  # the last read took all room that there was
        self.fds: Deque[int] = deque()
        self.reading = False
        self.sleepers = 0

        self.n = 0
        self.refs: Dict[bytes, int] = {}  # references in this process
        self.gone: Deque[bytes] = deque()  # of references that died
        self.killed: Deque[bytes] = deque(maxlen=1000)  # actors whose names are about to be free
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
        self.waiting = 0  # threads that wait for objects
        self.in_run = bool(hello[4]) and worker is None  # its cores are others' while it waits
        self.void = 0  # Execs that come before the answer to this call were handed back
        self.ahead, self.window_ahead = 0, 0
        self.due_now = False  # something that must not wait for the next flush
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
        with self.lock:
            self._greet(sock)
            self._handle()  # what came together with the welcome

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
                if isinstance(e, Error) and e.kind not in ("unavailable", "lost"):
                    self._fail(f"the node's agent was restarted ({cause}), and this program cannot go on: {e}")
                if time.monotonic() > end:
                    self._fail(f"the node's agent is gone ({cause}) and not back within {COME_BACK:.0f} s: {e}")
                time.sleep(0.05)
        rest = b"".join([data for _, data in self.ring])
        if self.worker is not None:
            self.worker.resume(rest + bytes(self.out))  # what was to be written next, too
        self.rest = f.lasting(rest)
        self.granted += 1  # whoever waits for room asks again
        self.asked_proof = self.proven
        levels: Dict[int, List[bytes]] = {}
        for id, (level, _) in self.asked.items():
            levels.setdefault(level, []).append(id)
        blocks = f.GET_BLOCKS if self.waiting and (self.in_run or self.worker is not None) else 0
        for level, ids in levels.items():
            self._get_frames(ids, level | blocks)
        self.flush()

    def _fail(self, why: str) -> None:
        self.closed = why
        self.come.notify_all()
        raise Error("unavailable", why)

    def close(self) -> None:
        """End the conversation."""
        with self.lock:
            if not self.closed:
                try:
                    self.flush()
                    self.poll()  # for what workers printed
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
        self.values.clear()
        self.sock.close()

    def check(self) -> None:
        """Raise if nothing can be asked."""
        if self.closed:
            raise Error("unavailable", self.closed)

    # Writing. lock is held.

    def flush(self, wait: bool = True) -> None:
        """Write what is buffered; without wait, as much as the socket takes."""
        self._pending()
        if self.out:
            data = bytes(self.out)
            self.out.clear()
            self.end += len(data)
            self.ring.append((self.end, data))
            self.rest = self.rest + data if self.rest else data
            if self.end - self.asked_proof > PROOF_EVERY:
                self.asked_proof = self.end
                self._call("sync")
                self.flush(wait)
                return
        while self.rest:
            try:
                n = self.sock.send(self.rest, 0 if wait else socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as e:
                if e.errno not in _BROKEN:  # raised by a handler of a signal
                    raise
                if wait and not self.reading:  # else the reader sees it too
                    self._reconnect(str(e))
                return
            self.rest = self.rest[n:]

    def nudge(self) -> None:
        """Let go of what died, if that can be done without waiting."""
        if self.lock.acquire(blocking=False):
            try:
                if not self.closed:
                    self.flush(False)
            finally:
                self.lock.release()

    def found(self) -> None:
        """Put references that were found into the buffer. The end of a task lets go of what
        its arguments referred to: what it keeps of that is said before it."""
        if self.holds:
            self._ids(f.HOLD, self.holds)
            self.holds = []

    def _pending(self) -> None:
        """Put what became of references into the buffer."""
        self.found()
        if self.gone:
            self._release()
        if self.left:
            self._leave()

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
            if self.filled and len(self.buf) < _MOST:
                self.buf = bytearray(4 * len(self.buf))
                self.window = memoryview(self.buf)
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
            raise ConnectionResetError(errno.ECONNRESET, "the agent closed the connection")
        self.w += n
        self.filled = self.w == len(self.buf)
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
        again: List[bytes] = []
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
                    elif flags & f.LATER:
                        again.append(id)
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
        if again:  # too much waited to be read here; by now it is
            self._get_frames(again, f.GET_VALUES)
            self.due_now = True

    def wait_for(self, done: Callable[[], bool], timeout: Optional[float], nested: bool = False) -> bool:
        """Handle frames until done() says so; False after timeout seconds. lock is held.

        With nested, a worker runs tasks that come meanwhile.
        """
        if done():
            return True
        try:
            return self._wait_for(done, timeout, nested)
        finally:
            if self.worker is not None and self.worker.signalled:
                self.worker.signalled = False
                self.poll()
                self.worker.check_cancelled()

    def _wait_for(self, done: Callable[[], bool], timeout: Optional[float], nested: bool) -> bool:
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
                    self._relock()
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
            except OSError as e:
                if e.errno not in _BROKEN:  # raised by a handler of a signal
                    raise
                broken = e.strerror or "the connection broke"
            finally:
                self._relock()
            if self.closed:
                self.sock.close()
                self.check()
            if broken:
                self._reconnect(broken)
            self._handle()
            if self.due_now:
                self.due_now = False
                self.flush()
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
                self._relock()

    def _relock(self) -> None:
        """Take the lock again, also when a signal's handler raises meanwhile."""
        try:
            self.lock.acquire()
        except BaseException:
            self.lock.acquire()
            raise

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
            self.due_now = True  # somebody waits for the room

    def _on_log(self, body: memoryview, flags: int) -> None:
        n = int.from_bytes(body[2:4], "little")
        self.printer.add(body[0], bytes(body[4 : 4 + n]), bytes(body[4 + n :]))

    def _on_error(self, body: memoryview, flags: int) -> None:
        e = error_of(_pack.unpack(body))
        self.closed = str(e)
        self.come.notify_all()
        raise e

    def ask(self, verb: str, *args: Any, timeout: float = 60.0) -> Any:
        """Ask the agent something."""
        with self.lock:
            self.check()
            self._pending()
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


# How the system says that a connection is no more.
_BROKEN = {errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN, errno.ESHUTDOWN, errno.EBADF, errno.ECONNABORTED}

_FDS = socket.CMSG_SPACE(4 * 16)
