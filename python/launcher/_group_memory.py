"""A group's shared memory: joining, layout, flags, waiting. docs/collectives.md is normative."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import platform
import re
import socket
import struct
import time
from typing import Any, List, Optional, Tuple

from ._http import Error, socket_path

MAGIC = 0x314C4F43434E4C01
VERSION = 1
SLOTS = 4
CONTROL = 256  # bytes of a participant's block
RECORD = 256
ARENA_ALIGN = 128

MSG_JOIN, MSG_JOINED, MSG_ERROR = 0x0401, 0x0402, 0x0300
JOIN_BOUND = 60.0

# How a rank waits for a word: see wait() below.
SPIN_NS = 50_000  # a Python thread that spins holds the interpreter's lock
YIELDS = 200
NAP_MIN, NAP_MAX = 0.001, 0.1
LEFT_GRACE = 1.0
AGENT_GRACE = 3.0

LOST, MISMATCH, TIMEOUT = 1, 2, 3

CODES = ["", "barrier", "all-reduce", "reduce-scatter", "all-gather", "broadcast", "reduce"]
BARRIER, ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER, BROADCAST, REDUCE = range(1, 7)
TYPES = ["", "float64", "float32", "float16", "bfloat16", "int32", "int64"]
OPS = ["", "sum", "min", "max", "product", "mean"]
MAX_COUNT = 1 << 38


class PeerLost(Error):
    """A rank of the group is gone; every rank gets this, from the pending operation on.

    rank:  which (-1: a link between nodes, not one rank); cause: why.
    The array of the pending operation is undefined, results of earlier ones are valid.
    """

    def __init__(self, rank: int, cause: str) -> None:
        super().__init__("lost", f"rank {rank} is lost: {cause}" if rank >= 0 else f"the group is broken: {cause}")
        self.rank, self.cause = rank, cause

    def __reduce__(self) -> Any:
        return (PeerLost, (self.rank, self.cause))


class Mismatch(Error):
    """The ranks called different operations at the same point; every rank gets this."""

    def __init__(self, rank: int, cause: str) -> None:
        super().__init__(
            "invalid",
            f"the ranks do not agree: {cause}",
            ["every rank must call the same operations in the same order, with the same type, count and root"],
        )
        self.rank, self.cause = rank, cause

    def __reduce__(self) -> Any:
        return (Mismatch, (self.rank, self.cause))


class Timeout(Error):
    """A rank did not call within the group's time limit; every rank gets this."""

    def __init__(self, rank: int, cause: str) -> None:
        super().__init__("timeout", cause, [f"see what that rank does (`launcher logs JOB --rank {rank}`), or give the group a longer timeout: collective.init(timeout=SECONDS)"])
        self.rank, self.cause = rank, cause

    def __reduce__(self) -> Any:
        return (Timeout, (self.rank, self.cause))


def signature(code: int, typ: int = 0, op: int = 0, root: int = 0, count: int = 0) -> int:
    return code << 60 | typ << 56 | op << 53 | root << 38 | count


def describe(sig: int) -> str:
    """A signature in words; it may come from a faulty process."""
    code, typ, op, root, count = sig >> 60, sig >> 56 & 15, sig >> 53 & 7, sig >> 38 & 0x7FFF, sig & (MAX_COUNT - 1)
    text = CODES[code] if 0 < code < len(CODES) else f"operation {code}"
    if code == BARRIER:
        return text
    if op:
        text += f" ({OPS[op] if op < len(OPS) else 'unknown operation'})"
    text += f" of {count} x {TYPES[typ] if 0 < typ < len(TYPES) else 'unknown type'}"
    if code in (BROADCAST, REDUCE):
        text += f" with root {root}"
    return text


def part(count: int, n: int, i: int) -> Tuple[int, int]:
    """The i-th of n near-equal parts of count: the first count % n are one longer."""
    q, r = divmod(count, n)
    a = i * q + min(i, r)
    return a, a + q + (i < r)


def share(count: int, n: int, i: int, size: int) -> Tuple[int, int]:
    """part() on whole cache lines of elements of size bytes."""
    line = 64 // size
    a, b = part(-(-count // line), n, i)
    return min(a * line, count), min(b * line, count)


def join(where: str, proc: str) -> Tuple[int, int]:
    """Ask the agent for the group's memory: its descriptor, and this process's rank."""
    end = time.monotonic() + JOIN_BOUND
    body = json.dumps({"proc": proc}).encode()
    request = struct.pack("<IHH", len(body) + 4, MSG_JOIN, 0) + body
    while True:
        fds: List[int] = []
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
                s.settimeout(max(end - time.monotonic(), 0.1))
                s.connect(socket_path(where))
                s.sendall(request)
                data, fds, _, _ = socket.recv_fds(s, 65536, 8)
                while len(data) < 4 or len(data) < 4 + struct.unpack_from("<I", data)[0] <= 1 << 20:
                    more = s.recv(65536)
                    if not more:
                        raise ConnectionError("the agent closed the connection")
                    data += more
            length, kind = struct.unpack_from("<IH", data)
            answer = json.loads(data[8 : 4 + length])
            if kind == MSG_ERROR:
                raise Error(str(answer.get("kind") or "unknown"), str(answer.get("msg")), [str(h) for h in answer.get("hints") or []])
            if kind != MSG_JOINED or len(fds) != 1:
                raise Error("corrupt", f"the agent answered frame {kind:#06x} with {len(fds)} descriptors to joining the group")
            return fds.pop(), int(answer["rank"])
        except (OSError, ConnectionError) as e:
            # It may be on its way back after a restart.
            if time.monotonic() + 0.1 > end or isinstance(e, FileNotFoundError):
                raise Error(
                    "unavailable",
                    f"the agent of this run does not answer on {where}: {e or type(e).__name__}",
                    ["the run may have been ended, or its node's agent killed"],
                ) from e
            time.sleep(0.1)
        finally:
            for fd in fds:
                os.close(fd)


class _Timespec(ctypes.Structure):
    _fields_ = [("sec", ctypes.c_long), ("nsec", ctypes.c_long)]


_SYS_FUTEX = 202  # x86-64


class Memory:
    """The memory mapped here, with the words that ranks tell each other how far they are.

    Words are read and written through a memoryview of 64-bit items: one load or store
    each. What a rank writes before it stores its step is there for whoever sees the new
    step, because x86-64 keeps the order of stores and the order of loads; other
    processors do not, and Python has no fence, so it is refused there.
    """

    def __init__(self, fd: int, rank: int) -> None:
        if platform.machine() not in ("x86_64", "AMD64"):
            os.close(fd)
            raise Error(
                "unbuilt",
                f"collectives from Python need an x86-64 processor, this is {platform.machine()}",
                ["Go programs can use them here; torch.distributed finds its variables set"],
            )
        self.fd = fd
        size = os.fstat(fd).st_size
        try:
            self.map = mmap.mmap(fd, size)
            self.bytes = memoryview(self.map)
            self._parse(size, rank)
        except BaseException:
            os.close(fd)
            raise
        self.words = self.bytes.cast("Q")
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        n = self.n
        self.step_at = [(self.controls + i * CONTROL) // 8 for i in range(n + 1)]
        self.bin_at = [a + 16 for a in self.step_at]
        self.sleep_at = list(range(self.sleepers // 8, (self.sleepers + 4 * (n + 1) + 7) // 8))
        self.me = rank - self.first
        self.rank = rank
        self.closed = False
        self._u32 = self.bytes.cast("I")
        own = self._own32(56)
        old = self._u32[own + 1]
        if old and old != os.getpid() and os.path.exists(f"/proc/{old}"):
            os.close(fd)
            raise Error(
                "exists",
                f"rank {rank} has joined its group already, as process {old}",
                ["only one process of a rank can use collectives; its sub-processes cannot"],
            )
        self._u32[own + 1] = os.getpid()
        self._u32[own] = 0
        self.step = self.words[self.step_at[self.me]]
        self.bin = self.words[self.bin_at[self.me]]
        self.seq = self.words[self.bin_at[self.me] + 1]
        libc = ctypes.CDLL(None, use_errno=True)
        self._syscall = libc.syscall
        self._syscall.argtypes = [ctypes.c_long, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32]
        self._syscall.restype = ctypes.c_long
        self._nap = _Timespec()
        self.populate(0, min(self.arena, 64 << 20))

    def _parse(self, size: int, rank: int) -> None:
        def bad(what: str) -> Error:
            return Error("corrupt", f"the group's shared memory: {what}", ["the agent and this SDK may be of different versions of launcher"])

        if size < 4096:
            raise bad(f"it has {size} bytes")
        h = struct.unpack_from("<Q10I", self.bytes, 0)
        if h[0] != MAGIC:
            raise bad("it does not start with the magic number")
        if h[1] != VERSION:
            raise Error("version", f"the group's shared memory has layout {h[1]}, this SDK knows {VERSION}", ["use the SDK that the cluster's agents bring: it is first in PYTHONPATH"])
        self.n, self.world, self.first, self.nodes, self.node, spin, self.small, slots, self.round = h[2:11]
        self.spin = spin == 1
        q = struct.unpack_from("<11Q", self.bytes, 48)
        self.records, self.sleepers, self.controls, self.small_at, self.staging, self.results, self.arena, self.arena_size, total, firsts = q[1:]
        if total != size or slots != SLOTS or self.n == 0 or not self.first <= rank < self.first + self.n <= self.world:
            raise bad("its header is wrong")
        ends = [
            self.records + (self.n + 1) * RECORD,
            self.sleepers + (self.n + 1) * 4,
            self.controls + (self.n + 1) * CONTROL,
            self.small_at + self.n * 2 * self.small,
            self.staging + SLOTS * self.n * self.round,
            self.results + SLOTS * self.round,
            self.arena + self.n * self.arena_size,
            firsts + 4 * (self.nodes + 1),
        ]
        if max(ends) > size or self.round % 64 or self.small % 64:
            raise bad("an area is outside it")
        self.firsts = list(struct.unpack_from(f"<{self.nodes + 1}I", self.bytes, firsts))

    def _own32(self, off: int) -> int:
        return int(self.controls + self.me * CONTROL + off) // 4

    def populate(self, at: int, n: int) -> None:
        """Make pages present; a matter of speed only."""
        try:
            start = at // 4096 * 4096
            self.map.madvise(23, start, n + at - start)  # MADV_POPULATE_WRITE
        except (OSError, ValueError):
            pass

    # Flags.

    def wake(self, word: int) -> None:
        """Wake who may sleep on a word, if anybody sleeps."""
        w = self.words
        for i in self.sleep_at:
            if w[i]:
                self._syscall(_SYS_FUTEX, self.base + word * 8, 1, 0x7FFFFFFF, None, None, 0)
                return

    def post(self) -> None:
        """Publish what this rank wrote so far: one step."""
        self.step += 1
        at = self.step_at[self.me]
        self.words[at] = self.step
        self.wake(at)

    def hand(self) -> None:
        """Hand a round to the agent."""
        self.bin += 1
        at = self.bin_at[self.me]
        self.words[at] = self.bin
        self.wake(at)

    def wait(self, word: int, target: int, who: int) -> None:
        """Return when the word is at least target; raise when the group has ended.

        Look again and again while every rank has a core to itself, else let others run;
        then sleep in the kernel, shortly, because a wake-up may be missed: this
        processor may see the sleeper's flag later than it publishes a step.
        """
        w = self.words
        if w[word] >= target:
            return
        start = time.monotonic()
        if self.spin and who != self.n:  # the agent has no core of its own
            end = time.perf_counter_ns() + SPIN_NS
            while time.perf_counter_ns() < end:
                for _ in range(64):
                    if w[word] >= target:
                        return
                if self._u32[48]:
                    return self._lost(word, target)
        else:
            for _ in range(YIELDS):
                os.sched_yield()
                if w[word] >= target:
                    return
                if self._u32[48]:
                    return self._lost(word, target)
        limit = self.words[6] / 1e9 + (AGENT_GRACE if who == self.n else 0)
        asleep = self.sleepers // 4 + self.me
        nap = NAP_MIN
        self._u32[asleep] = 1
        try:
            while True:
                v = w[word]
                if v >= target:
                    return
                if self._u32[48]:
                    return self._lost(word, target)
                waited = time.monotonic() - start
                left = self._u32[(self.controls + who * CONTROL + 56) // 4]
                if left and waited > LEFT_GRACE and w[word] < target:
                    rank = self.first + who
                    self.end(LOST, rank, f"it left the group; rank {self.rank} still waited for it in {self.current()}")
                    return self._lost(word, target)
                if waited >= limit:
                    self._give_up(who, limit)
                    return self._lost(word, target)
                self.sleep(word, v, min(nap, limit - waited))
                nap = min(2 * nap, NAP_MAX)
        finally:
            self._u32[asleep] = 0

    def sleep(self, word: int, value: int, seconds: float) -> None:
        self._nap.sec, self._nap.nsec = int(seconds), int(seconds % 1 * 1e9)
        self._syscall(_SYS_FUTEX, self.base + word * 8, 0, value & 0xFFFFFFFF, ctypes.addressof(self._nap), None, 0)

    def _lost(self, word: int, target: int) -> None:
        # What had been done by then counts: a rank that took part to the end of this
        # operation may have exited since.
        if self.words[word] < target:
            self.check()

    def _give_up(self, who: int, limit: float) -> None:
        if who == self.n:
            self.end(TIMEOUT, -1, f"rank {self.rank} waited {limit:g} s in {self.current()} for the other nodes")
            return
        rank = self.first + who
        joined = self._u32[(self.controls + who * CONTROL + 60) // 4]
        what = "has not called it" if joined else "has not joined the group"
        self.end(TIMEOUT, rank, f"rank {rank} {what}: rank {self.rank} waited {limit:g} s in {self.current()}")

    def current(self) -> str:
        return f"operation {self.seq}, {describe(self.words[self.step_at[self.me] + 1 + (self.seq & 1)])}"

    def end(self, kind: int, rank: int, cause: str) -> None:
        """End the group, unless it has ended already, and wake everybody."""
        if not self._u32[48]:
            text = cause.encode()[: RECORD - 12]
            struct.pack_into("<IiI", self.bytes, self.records + self.me * RECORD, kind, rank, len(text))
            at = self.records + self.me * RECORD + 12
            self.bytes[at : at + len(text)] = text
            self._u32[48] = self.me + 1  # two ranks may do so at once: either record is whole
        for word in [24, *self.step_at, *self.bin_at]:
            self._syscall(_SYS_FUTEX, self.base + word * 8, 1, 0x7FFFFFFF, None, None, 0)

    def check(self) -> None:
        """Raise what the group ended with, if it has ended."""
        state = self._u32[48]
        if not state:
            return
        if state > self.n + 1:
            raise PeerLost(-1, "the group's shared memory is damaged")
        at = self.records + (state - 1) * RECORD
        kind, rank, length = struct.unpack_from("<IiI", self.bytes, at)
        cause = bytes(self.bytes[at + 12 : at + 12 + min(length, RECORD - 12)]).decode("utf-8", "replace")
        raise {MISMATCH: Mismatch, TIMEOUT: Timeout}.get(kind, PeerLost)(rank, cause)

    # Operations begin and end together.

    def announce(self, sig: int, in_at: int = 0, out_at: int = 0) -> None:
        """Publish the start of the next operation, and all that was written before."""
        self.seq += 1
        p = self.seq & 1
        at = self.step_at[self.me]
        w = self.words
        w[at + 1 + p], w[at + 3 + p], w[at + 5 + p] = sig, in_at, out_at
        self.post()

    def meet(self, sig: int) -> None:
        """Wait for all local ranks to be in this operation, and in the same."""
        p, w = self.seq & 1, self.words
        for i in range(self.n):
            if i == self.me:
                continue
            at = self.step_at[i]
            if w[at] < self.step:
                self.wait(at, self.step, i)
            if w[at + 1 + p] != sig:
                self.disagree(i, sig)

    def disagree(self, i: int, sig: int) -> None:
        theirs = describe(self.words[self.step_at[i] + 1 + (self.seq & 1)])
        rank = self.first + i
        self.end(MISMATCH, rank, f"in operation {self.seq} rank {self.rank} called {describe(sig)}, rank {rank} called {theirs}")
        self.check()

    def all(self, step: int) -> None:
        """Wait until every local rank has made as many steps."""
        w = self.words
        for i, at in enumerate(self.step_at[: self.n]):
            if w[at] < step:
                self.wait(at, step, i)

    def agent(self, rounds: int) -> None:
        """Wait until the agent has done as many rounds."""
        self.wait(self.step_at[self.n], rounds, self.n)

    def input(self, i: int) -> int:
        """Where rank i's input of this operation is in the memory; 0 = private."""
        return int(self.words[self.step_at[i] + 3 + (self.seq & 1)])

    def set_timeout(self, seconds: float) -> None:
        """Bound how long a rank may keep the others of this node, and of other nodes, waiting."""
        self.words[6] = min(max(int(seconds * 1e9), 1), 1 << 62)

    def leave(self) -> None:
        """Leave the group. The mapping goes when the last array in it does."""
        if self.closed:
            return
        self.closed = True
        self.words[self.bin_at[self.me] + 1] = self.seq
        own = self._own32(56)
        self._u32[own + 1] = 0
        self._u32[own] = 1
        self.wake(self.step_at[self.me])
        self.wake(self.bin_at[self.me])
        os.close(self.fd)


def room() -> int:
    """How many bytes of memory may still be taken; the kernel kills who takes more."""
    left = 1 << 62
    try:
        with open("/proc/meminfo") as f:
            m = re.search(r"^MemAvailable:\s+(\d+) kB", f.read(), re.M)
            if m:
                left = int(m.group(1)) << 10
        with open("/proc/self/cgroup") as f:
            groups = [line.rstrip("\n").split(":", 2) for line in f]
    except OSError:
        return left
    for _, names, path in groups:
        if names == "":
            left = min(left, _cgroup_room("/sys/fs/cgroup", path, "memory.max", "memory.current", "inactive_file"))
        elif "memory" in names.split(","):
            left = min(left, _cgroup_room("/sys/fs/cgroup/memory", path, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"))
    return left


def _cgroup_room(root: str, path: str, limit: str, usage: str, cache: str) -> int:
    left, at = 1 << 62, os.path.normpath(root + path)
    while at.startswith(root):
        values: List[Optional[int]] = []
        for name in (limit, usage):
            try:
                with open(os.path.join(at, name)) as f:
                    values.append(int(f.read()))
            except (OSError, ValueError):  # "max", or not there
                values.append(None)
        most, used = values
        if most is not None and used is not None:
            left = min(left, max(most - used + min(used, _droppable(at, cache)), 0))
        at = os.path.dirname(at)
    return left


def _droppable(at: str, key: str) -> int:
    """Bytes of file cache that the kernel drops before it kills: they count as free."""
    try:
        with open(os.path.join(at, "memory.stat")) as f:
            m = re.search(rf"^{key} (\d+)$", f.read(), re.M)
            return int(m.group(1)) if m else 0
    except OSError:
        return 0


# How a stretch of the arena is taken: in pieces, each only while the rest of it and MARGIN
# beside it still fit, and by one rank of the group at a time. The kernel answers taking
# more than there is by killing a process.
PIECE = 16 << 20
MARGIN = 32 << 20
TAKE_BOUND = 60.0


def reserve(fd: int, at: int, size: int) -> int:
    """Take memory of fd from at on. Returns 0, or how many bytes are left when it does not fit."""
    locked = _lock(fd)
    try:
        done = 0
        while done < size:
            left = room()
            if size - done + (MARGIN if size >= MARGIN else 0) > left:
                _punch(fd, at, done)
                return max(left, 1)
            n = min(PIECE, size - done)
            try:
                os.posix_fallocate(fd, at + done, n)
            except OSError:
                _punch(fd, at, done)
                raise
            done += n
        return 0
    finally:
        if locked:
            fcntl.lockf(fd, fcntl.LOCK_UN)


def _lock(fd: int) -> bool:
    """Let no other process of the group take memory meanwhile. One that was stopped while it
    did must not hold up the others for ever."""
    end = time.monotonic() + TAKE_BOUND
    while True:
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as e:
            if e.errno not in (errno.EAGAIN, errno.EACCES) or time.monotonic() > end:
                return False
            time.sleep(0.001)


def _punch(fd: int, at: int, size: int) -> None:
    if size:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong]
        libc.fallocate(fd, 3, at, size)  # KEEP_SIZE | PUNCH_HOLE
