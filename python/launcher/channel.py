"""Channels: values from one process to others of the same machine, through shared memory.

    channel = launcher.channel.create(readers=1)
    ...                                    # pass it to another process: it can be pickled
    writer = channel.writer()              # here
    reader = channel.reader(0)             # there
    writer.write(value)
    value = reader.read()

One process writes; each reader gets every value. docs/actors.md section 5 is normative.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import platform
import struct
import time
from typing import Any, Dict, List, Optional, Tuple

from . import _serial
from ._group_memory import _Timespec
from ._http import Error
from .exceptions import RayChannelError, RayChannelTimeoutError, from_wire

MAGIC = 0x314E4E4148434E4C
VERSION = 1
PARTY = 64  # bytes of a party's block, and of the head of a slot
VALUE, ERROR = 0, 1

_HEAD = struct.Struct("<Q4I2Q")  # magic, version, readers, slots, closed, bytes of a slot, token
_SLOT = struct.Struct("<Q4I")  # bytes, kind, form, descriptor + 1, its generation
_CLOSED = 20 // 4
_COUNT, _ASLEEP, _PID = 0, 1, 2  # words of a party's block; the start of the process follows
_SPIN_NS = 20_000  # a thread that spins holds the interpreter's lock
_VAIN_MAX = 63
_NAP_MIN, _NAP_MAX = 0.001, 0.1
_FUTEX, _WAIT, _WAKE = 202, 0, 1  # of x86-64
_PAGE = 4096


def usable() -> bool:
    """Whether this machine can have channels. Python has no fence, so other processors,
    which do not keep the order of stores, cannot."""
    return platform.system() == "Linux" and platform.machine() in ("x86_64", "AMD64")


def machine() -> str:
    """Processes for which this is the same can share channels."""
    with open("/proc/sys/kernel/random/boot_id") as f:
        return f"{f.read().strip()} {os.stat('/proc/self/ns/pid').st_ino} {os.geteuid()}"


def _began(pid: int) -> int:
    """When a process began; 0 if it is over."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            fields = f.read().rpartition(b")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])


class Channel:
    """A channel. It lasts while a process has it; pickled, it can be had while its maker lives."""

    def __init__(self, fd: int, maker: Tuple[int, int]) -> None:
        self.fd, self._maker = fd, maker
        self.map = mmap.mmap(fd, os.fstat(fd).st_size)
        self.bytes = memoryview(self.map)
        magic, version, self.readers, self.slots, _, self.size, self.token = _HEAD.unpack_from(self.bytes)
        self.data = _data(self.readers)
        if magic != MAGIC or self.data + self.slots * self.size > len(self.bytes):
            raise RayChannelError("this is no channel")
        if version != VERSION:
            raise RayChannelError(f"the channel has layout {version}, this SDK knows {VERSION}")
        self.words = self.bytes.cast("I")
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        self._syscall = ctypes.CDLL(None, use_errno=True).syscall
        self._syscall.argtypes = [ctypes.c_long, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32]
        self._syscall.restype = ctypes.c_long

    def writer(self) -> "Writer":
        """The writing end; of one process only."""
        return Writer(self)

    def reader(self, number: int = 0) -> "Reader":
        """A reading end, of one process only."""
        if not 0 <= number < self.readers:
            raise ValueError(f"there is no reader {number}: the channel has {self.readers}")
        return Reader(self, number)

    def close(self) -> None:
        """End it for all: who waits to write is told at once, readers after the last value."""
        w = self.words
        w[_CLOSED] = 1
        for party in range(self.readers + 1):
            # The word itself stays: who falls asleep just now wakes after a nap.
            self.wake(_party(party) + _COUNT)

    def wake(self, word: int) -> None:
        """Wake who sleeps on a word."""
        self._syscall(_FUTEX, self.base + word * 4, _WAKE, 0x7FFFFFFF, None, None, 0)

    def sleep(self, word: int, value: int, nap: "_Timespec") -> None:
        """Sleep while a word has a value, no longer than nap."""
        self._syscall(_FUTEX, self.base + word * 4, _WAIT, value, ctypes.addressof(nap), None, 0)

    def __reduce__(self) -> Any:
        return (_open, (*self._maker, self.token))

    def __del__(self) -> None:
        fd, self.fd = getattr(self, "fd", -1), -1
        if fd >= 0:
            os.close(fd)


def _data(readers: int) -> int:
    return (PARTY * (readers + 2) + _PAGE - 1) // _PAGE * _PAGE


def _party(number: int) -> int:
    """The block of a party in words: 0 is the writer, reader i is i + 1."""
    return (number + 1) * PARTY // 4


def create(readers: int = 1, slots: int = 2, size: int = 1 << 20) -> Channel:
    """A new channel. slots: values on their way at most; size: of a value that has its
    place already (memory is taken as it is touched); larger ones get memory of their own."""
    if not usable():
        raise Error("unbuilt", f"channels in Python need Linux on x86-64, this is {platform.system()} on {platform.machine()}")
    if readers < 1 or slots < 1 or size < 1:
        raise ValueError("a channel has at least one reader, one slot and one byte")
    size = (PARTY + size + PARTY - 1) // PARTY * PARTY
    fd = _memory(_data(readers) + slots * size)
    try:
        os.pwrite(fd, _HEAD.pack(MAGIC, VERSION, readers, slots, 0, size, int.from_bytes(os.urandom(8), "little")), 0)
        return Channel(fd, (os.getpid(), fd))
    except BaseException:
        os.close(fd)
        raise


def _memory(size: int) -> int:
    """A memory file whose size stays."""
    fd = os.memfd_create("launcher-channel", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _open(pid: int, fd: int, token: int) -> Channel:
    try:
        channel = Channel(os.open(f"/proc/{pid}/fd/{fd}", os.O_RDWR | os.O_CLOEXEC), (pid, fd))
    except (OSError, ValueError, struct.error) as e:
        raise RayChannelError(f"the channel of process {pid} cannot be opened here: {e}") from e
    if channel.token != token:
        raise RayChannelError(f"the channel of process {pid} is gone")
    return channel


class _End:
    """What both ends are."""

    def __init__(self, channel: Channel, number: int) -> None:
        self.channel, self.number = channel, number
        self.at = _party(number)
        w = channel.words
        other = w[self.at + _PID]
        if other and other != os.getpid() and self._there(self.at):
            raise RayChannelError(f"process {other} has this end of the channel already")
        channel.bytes.cast("Q")[self.at // 2 + 2] = _began(os.getpid())
        w[self.at + _PID] = os.getpid()
        self.count = w[self.at + _COUNT]
        self._nap = _Timespec()
        self._rest = self._vain = 0

    def _there(self, at: int) -> bool:
        """Whether the process of a party lives, or is yet to come."""
        c = self.channel
        pid = c.words[at + _PID]
        return pid == 0 or pid == os.getpid() or _began(pid) == c.bytes.cast("Q")[at // 2 + 2]

    def _wait(self, at: int, value: int, timeout: Optional[float], what: str) -> None:
        """Return when the count of a party is another than value.

        Look again and again for a moment, the more rarely the more often that was in vain:
        the other side may need this very core. Then sleep in the kernel, shortly: a wake-up
        may be missed, since this processor may see the sleeper's flag later than it
        publishes a count.
        """
        c = self.channel
        w = c.words
        begin = time.perf_counter_ns()
        if self._rest:
            self._rest -= 1
        else:
            end = begin + _SPIN_NS
            while time.perf_counter_ns() < end:
                for _ in range(32):
                    if w[at] != value:
                        self._vain = 0
                        return
            self._rest = self._vain = min(2 * self._vain + 1, _VAIN_MAX)
        limit = None if timeout is None else begin + int(timeout * 1e9)
        nap = _NAP_MIN
        w[self.at + _ASLEEP] = 1
        try:
            while w[at] == value:
                if w[_CLOSED]:
                    raise RayChannelError("the channel is closed")
                now = time.perf_counter_ns()
                left = nap if limit is None else min(nap, (limit - now) / 1e9)
                if left <= 0:
                    raise RayChannelTimeoutError(f"{what} within {timeout} s")
                self._nap.sec, self._nap.nsec = divmod(int(left * 1e9), 1_000_000_000)
                c.sleep(at, value, self._nap)
                if nap == _NAP_MAX and w[at] == value and not self._there(at):
                    raise RayChannelError(f"the process {w[at + _PID]} at the other end of the channel is gone")
                nap = min(2 * nap, _NAP_MAX)
        finally:
            w[self.at + _ASLEEP] = 0

    def close(self) -> None:
        """End the channel for all."""
        self.channel.close()


class Writer(_End):
    """The end that writes."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel, 0)
        self._parties = [_party(i + 1) for i in range(channel.readers)]
        self._kept: Dict[int, List[Any]] = {}  # references inside values that may still be read
        self._large: Dict[int, Tuple[int, _Memory]] = {}
        self._generation = 0

    def write(self, value: Any, timeout: Optional[float] = None) -> None:
        """Write a value; wait while all slots have values that a reader has not let go of."""
        self.put(VALUE, _serial.encode(value), timeout)

    def put(self, kind: int, e: _serial.Encoded, timeout: Optional[float] = None) -> None:
        """Write an encoded value."""
        c = self.channel
        w = c.words
        if w[_CLOSED]:
            raise RayChannelError("the channel is closed")
        for at in self._parties:
            while self.count - w[at] & 0xFFFFFFFF >= c.slots:
                self._wait(at, w[at], timeout, "no slot of the channel became free")
        slot = self.count % c.slots
        head = c.data + slot * c.size
        if e.size <= c.size - PARTY:
            to, start, fd, generation = c.bytes, head + PARTY, 0, 0
        else:
            to, fd, generation = self._room(slot, e.size)
            start = 0
        to[start : start + len(e.head)] = e.head
        for offset, raw in e.buffers:
            to[start + offset : start + offset + raw.nbytes] = raw
        _SLOT.pack_into(c.bytes, head, e.size, kind, e.form, fd, generation)
        if e.refs or self._kept:
            self._kept[slot] = e.refs
        self.count = self.count + 1 & 0xFFFFFFFF
        w[self.at] = self.count
        for at in self._parties:
            if w[at + _ASLEEP]:
                c.wake(self.at)
                break

    def _room(self, slot: int, size: int) -> Tuple[memoryview, int, int]:
        """Memory of its own for a value that is too large for its slot."""
        known = self._large.get(slot)
        if known is None or len(known[1].map) < size:
            self._generation += 1
            known = self._large[slot] = self._generation, _Memory(size + (size >> 2))
        return memoryview(known[1].map), known[1].fd + 1, known[0]


class _Memory:
    """A memory file, or the mapping of another process's."""

    def __init__(self, size: int, path: str = "") -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC) if path else _memory(size)
        self.map = mmap.mmap(self.fd, 0, prot=mmap.PROT_READ if path else mmap.PROT_READ | mmap.PROT_WRITE)

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)


class Reader(_End):
    """An end that reads."""

    def __init__(self, channel: Channel, number: int) -> None:
        super().__init__(channel, number + 1)
        self._writer = _party(0)
        self._taken = self.count  # beyond count while a value is in use
        self._large: Dict[int, Tuple[int, _Memory]] = {}

    def read(self, timeout: Optional[float] = None) -> Any:
        """The next value. Arrays in it are views that are good until the next read or release."""
        kind, form, data = self.take(timeout)
        if kind == ERROR:
            raise from_wire(_serial.decode(form, bytes(data)))
        return self.decode(form, data)

    def take(self, timeout: Optional[float] = None) -> Tuple[int, int, memoryview]:
        """The next value's kind, form and bytes, which are good until the next read or release."""
        c = self.channel
        self.release()
        if c.words[self._writer] == self.count:
            self._wait(self._writer, self.count, timeout, "no value came through the channel")
        slot = self.count % c.slots
        head = c.data + slot * c.size
        size, kind, form, fd, generation = _SLOT.unpack_from(c.bytes, head)
        data = c.bytes[head + PARTY : head + PARTY + size] if not fd else self._far(slot, fd - 1, generation)[:size]
        self._taken = self.count + 1 & 0xFFFFFFFF
        return kind, form, data.toreadonly()

    def decode(self, form: int, data: memoryview) -> Any:
        """The value of what take gave; its slot is free at once if nothing of it stays there."""
        value = _serial.decode(form, data)
        if form != _serial.FORM_PYTHON or not int.from_bytes(data[4:8], "little"):
            self.release()
        return value

    def release(self) -> None:
        """Let go of the value that was read last."""
        c = self.channel
        if self._taken != self.count:
            self.count = self._taken
            c.words[self.at] = self.count
            if c.words[self._writer + _ASLEEP]:
                c.wake(self.at)

    def _far(self, slot: int, fd: int, generation: int) -> memoryview:
        known = self._large.get(slot)
        if known is None or known[0] != generation:
            try:
                known = generation, _Memory(0, f"/proc/{self.channel.words[self._writer + _PID]}/fd/{fd}")
            except OSError as e:
                raise RayChannelError(f"the writer of the channel is gone: {e}") from e
            self._large[slot] = known
        return memoryview(known[1].map)
