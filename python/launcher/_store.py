"""The node's object memory as this process sees it: docs/tasks.md section 4."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
import threading
from collections import deque
from operator import length_hint
from typing import Any, Deque, Dict, List, Optional, Tuple

from ._http import Error

INDEX_MAGIC = 0x3149584C
_ENTRY = struct.Struct("<II16sIIQQI")
_HALVES = struct.Struct("<QQ")
_MASK = (1 << 64) - 1
SEALED = 2
ALIGN = 64
_F_ADD_SEALS, _F_SEAL_FUTURE_WRITE = 1033, 0x10
_POPULATE_WRITE = 23
_TWO_THREADS = 32 << 20  # a copy so large is shared by two
_STEP = 8 << 20

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class _Buffer(ctypes.Structure):
    _fields_ = [
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_void_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    ]


_get_buffer = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = [ctypes.py_object, ctypes.POINTER(_Buffer), ctypes.c_int]
_release_buffer = ctypes.pythonapi.PyBuffer_Release
_release_buffer.argtypes = [ctypes.POINTER(_Buffer)]
_release_buffer.restype = None


def address(buffer: Any) -> int:
    """Where the bytes of a buffer are; valid while the buffer lives and does not move."""
    b = _Buffer()
    _get_buffer(buffer, ctypes.byref(b), 0)
    at = int(b.buf or 0)
    _release_buffer(ctypes.byref(b))
    return at


_arrays: Dict[int, Any] = {}


def _array(size: int) -> Any:
    """A ctypes array type at least so long; there are few of them, for they are never freed."""
    n = max(size, 64)
    bits = max(n.bit_length() - 3, 0)
    n = (n + (1 << bits) - 1) >> bits << bits
    t = _arrays.get(n)
    if t is None:
        t = _arrays[n] = ctypes.c_ubyte * n
    return t


class Segment:
    """A segment mapped here; the free stretches of it if it is ours to fill."""

    def __init__(self, number: int, fd: int, size: int, own: bool) -> None:
        try:
            if size <= 0 or os.fstat(fd).st_size < size:
                raise Error("corrupt", f"segment {number} of {size} bytes is smaller than that")
            self.map = mmap.mmap(fd, size, prot=mmap.PROT_READ | mmap.PROT_WRITE if own else mmap.PROT_READ)
            if own:
                try:
                    fcntl.fcntl(fd, _F_ADD_SEALS, _F_SEAL_FUTURE_WRITE)
                except OSError:  # an old kernel; or sealed already
                    pass
        finally:
            os.close(fd)
        self.number, self.size = number, size
        self.base = address(self.map)
        self.view = memoryview(self.map)
        self.free: List[List[int]] = [[0, size]] if own else []  # [begin, end], in order
        self.own = own
        self.touched = 0  # what is below was touched here

    def take(self, size: int) -> int:
        """The offset of size free bytes, or -1."""
        for i, (begin, end) in enumerate(self.free):
            if end - begin >= size:
                if end - begin == size:
                    del self.free[i]
                else:
                    self.free[i][0] = begin + size
                return begin
        return -1

    def give(self, begin: int, size: int) -> None:
        """Take a stretch back; it is joined with its neighbours."""
        end = begin + _up(size)
        lo, hi = 0, len(self.free)
        while lo < hi:
            mid = (lo + hi) // 2
            if self.free[mid][0] < begin:
                lo = mid + 1
            else:
                hi = mid
        if lo < len(self.free) and self.free[lo][0] < end or lo and self.free[lo - 1][1] > begin or end > self.size:
            raise Error("corrupt", f"the agent freed bytes {begin} to {end} of segment {self.number}, which are not in use")
        if lo < len(self.free) and self.free[lo][0] == end:
            end = self.free.pop(lo)[1]
        if lo and self.free[lo - 1][1] == begin:
            self.free[lo - 1][1] = end
        else:
            self.free.insert(lo, [begin, end])

    @property
    def empty(self) -> bool:
        """Whether nothing is allocated in it."""
        return self.free == [[0, self.size]]


def _up(n: int) -> int:
    return (n + ALIGN - 1) & ~(ALIGN - 1)


class Pin:
    """Keeps an object where it is while a view of it lives."""

    __slots__ = ("store", "word", "segment")

    def __init__(self, store: "Store", word: int, segment: Segment) -> None:
        self.store, self.word, self.segment = store, word, segment

    def __del__(self) -> None:
        self.store.words[self.word] = 0
        self.store.free_words.append(self.word)


class Store:
    """Index, pins and segments. What changes them holds the client's lock."""

    def __init__(self) -> None:
        self.segments: Dict[int, Segment] = {}
        self.own: List[Segment] = []
        self.unused: Deque[Tuple[Segment, int, int]] = deque()  # taken, and never made an object
        self.words: Any = memoryview(bytearray(0)).cast("Q")
        self.free_words: Deque[int] = deque()  # that were used
        self.fresh = iter(range(0))  # and were not yet
        self.capacity = 0
        self.pins_of = (0, 0)

    def attach(self, index: int, pins: int) -> None:
        """Map the index and this process's pins; takes the descriptors over."""
        try:
            self.index = mmap.mmap(index, os.fstat(index).st_size, prot=mmap.PROT_READ)
            magic, version, capacity, _ = struct.unpack_from("<IIII", self.index)
            if magic != INDEX_MAGIC or version != 1 or capacity & (capacity - 1) or 4096 + 64 * capacity > len(self.index):
                raise Error("corrupt", "the agent's index of objects is none")
            self.capacity = capacity
            self.versions = memoryview(self.index).cast("I")
            st = os.fstat(pins)
            if (st.st_dev, st.st_ino) != self.pins_of:  # else: the same as before the agent's restart
                pages = mmap.mmap(pins, st.st_size)
                words = memoryview(pages).cast("Q")
                for i, w in enumerate(self.words):
                    if w and i < len(words):
                        words[i] = w
                self.fresh = iter(range(len(self.words) - length_hint(self.fresh), len(words)))
                self.words = words
                self.pins_of = (st.st_dev, st.st_ino)
        finally:
            os.close(index)
            os.close(pins)

    def forked(self) -> None:
        """In a child of this process: its views must not touch the parent's pins."""
        self.words = memoryview(bytearray(8 * len(self.words))).cast("Q")
        self.pins_of = (0, 0)

    def find(self, id: bytes) -> Optional[Tuple[int, Tuple[Any, ...]]]:
        """The slot of an object and its entry, if the index has it in memory."""
        a, b = _HALVES.unpack(id)
        h = a ^ (b * 0x9E3779B97F4A7C15 & _MASK)
        h ^= h >> 32
        mask = self.capacity - 1
        slot = h & mask
        versions, index = self.versions, self.index
        for _ in range(self.capacity):
            at = 4096 + 64 * slot
            while True:
                e = _ENTRY.unpack_from(index, at)
                if not e[0] & 1 and versions[at >> 2] == e[0]:
                    break
            if e[1] == 0:
                return None
            if e[2] == id and e[1] != 1:
                return (slot, e) if e[1] == SEALED else None
            slot = slot + 1 & mask
        return None

    def pin(self, id: bytes) -> Optional[Tuple[int, int, int, int, int]]:
        """Pin an object: word, segment, offset, size, form. None if it is not here."""
        at = self.find(id)
        if at is None:
            return None
        slot, e = at
        word = self._word()
        self.words[word] = e[4] << 32 | slot + 1
        again = self.find(id)
        if again is None or again[0] != slot or again[1][4] != e[4]:
            self.words[word] = 0
            self.free_words.append(word)
            return None
        e = again[1]
        return word, e[3], e[5], e[6], e[7]

    def _word(self) -> int:
        """A word that is free; several threads ask."""
        try:
            return self.free_words.pop()
        except IndexError:
            pass
        for word in self.fresh:
            return word
        raise Error(
            "exhausted",
            f"this process has {len(self.words)} objects in use at the same time, that is the limit",
            ["drop arrays that are not needed any more, or copy what is needed of them"],
        )

    def free(self) -> int:
        """How many words are free."""
        return len(self.free_words) + length_hint(self.fresh)

    def unpin(self, word: int) -> None:
        """Take a pin back that no view was made with."""
        self.words[word] = 0
        self.free_words.append(word)

    def view(self, word: int, segment: Segment, offset: int, size: int) -> memoryview:
        """The bytes of a pinned object, read-only; the pin goes with the last view of them."""
        if offset + size > segment.size:
            self.unpin(word)
            raise Error("corrupt", f"an object ends at {offset + size} of a segment of {segment.size} bytes")
        root = _array(size).from_address(segment.base + offset)
        root._pin = Pin(self, word, segment)
        return memoryview(root).cast("B").toreadonly()[:size]

    def writable(self, at: int, size: int, holder: Any) -> memoryview:
        """Bytes of a segment of this process's, to be written; holder goes with the last view."""
        root = _array(size).from_address(at)
        root.made = holder
        if size >= _STEP // 8:
            _populate(at, size)
        return memoryview(root).cast("B")[:size]

    # What this process writes.

    def add(self, number: int, fd: int, size: int, own: bool) -> None:
        """Map a segment; takes the descriptor over."""
        if number in self.segments:
            os.close(fd)
            return
        s = Segment(number, fd, size, own)
        self.segments[number] = s
        if own:
            self.own.append(s)

    def take(self, size: int) -> Optional[Tuple[Segment, int]]:
        """Room for a value, if there is any."""
        size = _up(size)
        while self.unused:
            s, at, n = self.unused.popleft()
            s.give(at, n)
        for s in self.own:
            at = s.take(size)
            if at >= 0:
                return s, at
        return None

    def give(self, number: int, offset: int, size: int) -> None:
        """The agent has freed what was there."""
        s = self.segments.get(number)
        if s is not None and s.own:
            s.give(offset, size)

    def drop(self, number: int) -> bool:
        """Unmap a segment unless something is allocated in it."""
        s = self.segments.get(number)
        if s is None:
            return True
        if s.own:
            if not s.empty:
                return False
            self.own.remove(s)
        del self.segments[number]
        return True

    def write(self, segment: Segment, offset: int, head: bytes, buffers: List[Tuple[int, memoryview]]) -> None:
        """Copy an encoded value to its place."""
        view = segment.view
        end = max([offset + len(head)] + [offset + at + raw.nbytes for at, raw in buffers])
        fresh = end > segment.touched
        if fresh and offset <= segment.touched:
            segment.touched = end
        view[offset : offset + len(head)] = head
        for at, raw in buffers:
            n = raw.nbytes
            if n >= _TWO_THREADS:
                _copy(segment.base + offset + at, address(raw), n, fresh)
            elif n:
                if fresh and n >= _STEP // 8:
                    _populate(segment.base + offset + at, n)
                view[offset + at : offset + at + n] = raw


def _populate(at: int, n: int) -> None:
    """Have the pages entered in this process's tables at once, for a fraction of the cost
    of a fault for each. A kernel before 5.14 refuses, and then they fault."""
    begin = (at + 4095) & ~4095
    if at + n > begin:
        _libc.madvise(begin, (at + n - begin) & ~4095, _POPULATE_WRITE)


def _copy(to: int, source: int, n: int, fresh: bool) -> None:
    """memcpy by two threads, without the interpreter's lock."""

    def part(begin: int, end: int) -> None:
        # In one piece where it can be: one larger than the cache is written past it, which
        # takes half the time.
        step = _STEP if fresh else max(end - begin, 1)
        for at in range(begin, end, step):
            size = min(step, end - at)
            if fresh:
                _populate(to + at, size)
            ctypes.memmove(to + at, source + at, size)

    half = (n // 2 + 4095) & ~4095
    other: Optional[threading.Thread] = None
    if len(os.sched_getaffinity(0)) > 1:
        other = threading.Thread(target=part, args=(half, n))
        other.start()
    try:
        part(0, half)
        if other is None:
            part(half, n)
    finally:
        if other is not None:
            other.join()
