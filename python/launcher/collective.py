"""All-reduce and its kin between the ranks of a run, on numpy arrays.

    from launcher import collective

    group = collective.init()
    grad = group.empty(model.size, "float32")     # shared memory: nothing is copied
    ...
    group.all_reduce(grad, "mean")

Every rank must call the same operations in the same order, from one thread. Results have
the same bits on every rank, Go ranks of the same group included. Types: float64, float32,
float16, int32, int64, and bfloat16 as uint16 arrays with dtype="bfloat16". Half types
are summed in float32 and rounded once per node; integers wrap; a NaN in any input of min
or max gives NaN. Outside a run init() gives a group of one.

Errors, all of them launcher.Error: PeerLost, Mismatch, Timeout, which end the group for
every rank, and refusals of arguments (kind "invalid"), which change nothing.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Any, Dict, Optional, Tuple, Union

import numpy as np

from . import _group_memory as memory
from ._group_arithmetic import BFLOAT16, MEAN, SUM
from ._group_memory import Mismatch, PeerLost, Timeout, part, signature
from ._group_steps import Steps
from ._http import Error
from ._run import in_run, world_size

__all__ = ["Error", "Group", "Mismatch", "PeerLost", "Timeout", "init"]

_OPS = {name: i for i, name in enumerate(memory.OPS) if name}
_TYPES = {np.dtype(t): i for i, t in enumerate(memory.TYPES) if t and t != "bfloat16"}

_group: Optional["Group"] = None


def init(timeout: Optional[float] = None) -> "Group":
    """Join the group of this run's ranks; later calls give the same group until close().

    timeout, in seconds (default 30 min): a rank that keeps others waiting in an operation
    for so long ends the group; every rank gets Timeout, which names it. Give all ranks the
    same.

    Does not wait for other ranks. Outside a run, and in a run of one rank, the group is
    of one. Raises launcher.Error when the agent refuses or is gone.
    """
    global _group
    if timeout is not None and not timeout > 0:
        raise Error("invalid", f"timeout must be more than 0 seconds, not {timeout}")
    if _group is None or _group.closed:
        if in_run() and world_size() > 1:
            fd, rank = memory.join(os.environ["LAUNCHER_SOCKET"], os.environ["LAUNCHER_PROC"])
            _group = Group(memory.Memory(fd, rank))
        else:
            _group = Group(None)
    if timeout is not None and _group._mem is not None:
        _group._mem.set_timeout(timeout)
    return _group


def _after_fork() -> None:
    global _group
    if _group is not None:
        # The parent is the rank. Its flags must not be touched from here.
        _group._abandon()
        _group = None


os.register_at_fork(after_in_child=_after_fork)


class _Small:
    """Everything that a small all-reduce of one shape needs, made once."""

    def __init__(self, g: "Group", dtype: Any, typ: int, op: int, count: int) -> None:
        self.sig = signature(memory.ALL_REDUCE, typ, op, 0, count)
        self.mine = [g._small(g._mem.me, p, dtype)[:count] for p in (0, 1)]
        self.all = [[g._small(i, p, dtype)[:count] for i in range(g._mem.n)] for p in (0, 1)]
        self.do = g._arithmetic(typ, op)
        self.direct = np.add if op == SUM and not self.do.half and g._mem.n == 2 else None


class Group(Steps):
    """The ranks that combine arrays. Made by init().

    rank: this process's number; size: how many there are.
    """

    def __init__(self, mem: Optional[memory.Memory]) -> None:
        super().__init__(mem, mem.rank if mem else 0, mem.world if mem else 1)
        self.closed = False
        self._smalls: Dict[Any, Any] = {}
        if mem:
            me = mem.step_at
            self._peers = [(at, at + 1) for i, at in enumerate(me[: mem.n]) if i != mem.me]
            self._own = me[mem.me]

    # What a call is.

    def _check(self, array: Any, op: Optional[str], dtype: Any, root: int = 0) -> Tuple[Any, int, int]:
        """Refuse what cannot be done before anything is published."""
        if self.closed:
            raise Error("invalid", f"rank {self.rank} has left its group")
        if not isinstance(array, np.ndarray):
            raise Error("invalid", f"a numpy array is needed, not {type(array).__name__}", ["wrap numbers: numpy.array(x)"])
        if not array.flags.c_contiguous:
            raise Error("invalid", "the array is not contiguous", ["use numpy.ascontiguousarray"])
        if dtype is not None and dtype != "bfloat16" and np.dtype(dtype) != array.dtype:
            raise Error("invalid", f"the array is {array.dtype}, not {dtype}")
        if dtype == "bfloat16":
            if array.dtype != np.uint16:
                raise Error("invalid", f"bfloat16 numbers are held in uint16 arrays, this one is {array.dtype}")
            typ = BFLOAT16
        elif array.dtype in _TYPES and array.dtype.isnative:
            typ = _TYPES[array.dtype]
        else:
            raise Error("invalid", f"arrays of {array.dtype} cannot be combined", ["the types are float64, float32, float16, int32, int64, and bfloat16 as uint16 with dtype='bfloat16'"])
        number = 0
        if op is not None:
            number = _OPS.get(op, 0)
            if not number:
                raise Error("invalid", f"{op!r} is not an operation", ["the operations are sum, min, max, product and mean"])
            if number == MEAN and array.dtype.kind == "i":
                raise Error("invalid", f"the mean of {array.dtype} is not defined", ["reduce with sum and divide as you need it rounded"])
        if not 0 <= root < self.size:
            raise Error("invalid", f"root {root} is no rank of a group of {self.size}")
        if array.size >= memory.MAX_COUNT:
            raise Error("invalid", f"an array of {array.size} elements is too long")
        if self._mem:
            self._mem.check()
        return array.reshape(-1), typ, number

    # The operations.

    def all_reduce(self, array: Any, op: str = "sum", dtype: Any = None) -> Any:
        """Replace array on every rank by op over the arrays of all ranks; returns it."""
        small = self._smalls.get((array.dtype, array.size, op, dtype)) if isinstance(array, np.ndarray) else None
        if small is None or not array.flags.c_contiguous or self.closed:
            return self._all_reduce(array, op, dtype)
        flat = array if array.ndim == 1 else array.reshape(-1)
        m = self._mem
        w = m.words
        p = (m.seq + 1) & 1
        small.mine[p][:] = flat
        sig = small.sig
        own = self._own
        m.seq += 1
        w[own + 1 + p] = sig
        m.step = step = m.step + 1
        w[own] = step
        for i in m.sleep_at:
            if w[i]:
                m.wake(own)
                break
        for at, sig_at in self._peers:
            if w[at] < step:
                m.wait(at, step, (at - m.controls // 8) // (memory.CONTROL // 8))
            if w[sig_at + p] != sig:
                m.meet(sig)
        if small.direct is not None:
            a, b = small.all[p]
            small.direct(a, b, flat)
        else:
            small.do([flat], small.all[p])
        return array

    def _all_reduce(self, array: Any, op: str, dtype: Any) -> Any:
        flat, typ, number = self._check(array, op, dtype)
        if self.size == 1:
            return array
        m = self._mem
        sig = signature(memory.ALL_REDUCE, typ, number, 0, flat.size)
        if m.nodes > 1:
            self._remote(memory.ALL_REDUCE, sig, typ, number, 0, flat.size, flat, flat)
        elif flat.nbytes <= m.small:
            if len(self._smalls) > 256:
                self._smalls.clear()
            self._smalls[array.dtype, array.size, op, dtype] = _Small(self, flat.dtype, typ, number, flat.size)
            return self.all_reduce(array, op, dtype)
        else:
            self._combine(sig, typ, number, flat, None)
        return array

    def reduce(self, array: Any, op: str = "sum", root: int = 0, dtype: Any = None) -> Any:
        """Replace array on root by op over the arrays of all ranks; elsewhere it is only read."""
        flat, typ, number = self._check(array, op, dtype, root)
        if self.size == 1:
            return array
        m = self._mem
        sig = signature(memory.REDUCE, typ, number, root, flat.size)
        if m.nodes > 1:
            self._remote(memory.REDUCE, sig, typ, number, root, flat.size, flat, flat)
        elif flat.nbytes <= m.small:
            slots = self._small_meet(sig, flat, flat.size, flat.dtype)
            if self.rank == root:
                self._arithmetic(typ, number)([flat], slots)
        else:
            self._combine(sig, typ, number, flat, root)
        return array

    def reduce_scatter(self, array: Any, op: str = "sum", out: Any = None, dtype: Any = None) -> Any:
        """Combine the arrays of all ranks and give rank i the i-th of near-equal parts.

        The array counts as flat; part(array.size) says which stretch is this rank's. The
        result is out, or a new array.
        """
        flat, typ, number = self._check(array, op, dtype)
        a, b = part(flat.size, self.size, self.rank)
        to = self._output(out, flat, b - a)
        m = self._mem
        sig = signature(memory.REDUCE_SCATTER, typ, number, 0, flat.size)
        if self.size == 1:
            to[...] = flat
        elif m.nodes > 1:
            self._remote(memory.REDUCE_SCATTER, sig, typ, number, 0, flat.size, to, flat)
        elif flat.nbytes <= m.small:
            slots = self._small_meet(sig, flat, flat.size, flat.dtype)
            if a < b:
                self._arithmetic(typ, number)([to], [s[a:b] for s in slots])
        else:
            self._scatter(sig, typ, number, to, flat)
        return to if out is None else out

    def all_gather(self, array: Any, out: Any = None, dtype: Any = None) -> Any:
        """Put the arrays of all ranks one after the other, on every rank.

        Without out all arrays must have one shape; the result has the shape (size, *shape).
        With out, array is this rank's part(out.size) of it, and may be that stretch of it.
        """
        flat, typ, _ = self._check(array, None, dtype)
        if out is None:
            out = np.empty((self.size,) + array.shape, array.dtype)
            whole = out.reshape(-1)
        else:
            whole, other, _ = self._check(out, None, dtype)
            a, b = part(whole.size, self.size, self.rank)
            if other != typ or flat.size != b - a:
                raise Error("invalid", f"out is {whole.size} x {out.dtype}, of which rank {self.rank} has {b - a}; its array is {flat.size} x {array.dtype}")
        m = self._mem
        sig = signature(memory.ALL_GATHER, typ, 0, 0, whole.size)
        if self.size == 1:
            whole[...] = flat
        elif m.nodes > 1:
            self._remote(memory.ALL_GATHER, sig, typ, 0, 0, whole.size, whole, flat)
        elif whole.nbytes <= m.small:
            slots = self._small_meet(sig, flat, flat.size, flat.dtype)
            for i in range(self.size):
                a, b = part(whole.size, self.size, i)
                whole[a:b] = flat if i == self.rank else self._small(i, m.seq & 1, flat.dtype)[: b - a]
            del slots
        else:
            self._gather(sig, whole, flat)
        return out

    def broadcast(self, array: Any, root: int = 0, dtype: Any = None) -> Any:
        """Copy root's array to all ranks; returns it."""
        flat, typ, _ = self._check(array, None, dtype, root)
        if self.size == 1:
            return array
        m = self._mem
        sig = signature(memory.BROADCAST, typ, 0, root, flat.size)
        if m.nodes > 1:
            self._remote(memory.BROADCAST, sig, typ, 0, root, flat.size, flat, flat)
        elif flat.nbytes <= m.small:
            self._small_meet(sig, flat, flat.size if self.rank == root else 0, flat.dtype)
            if self.rank != root:
                flat[...] = self._small(root - m.first, m.seq & 1, flat.dtype)[: flat.size]
        else:
            self._spread(sig, flat, root - m.first)
        return array

    def barrier(self) -> None:
        """Return when all ranks have called it."""
        if self.closed:
            raise Error("invalid", f"rank {self.rank} has left its group")
        if self.size == 1:
            return
        m = self._mem
        m.check()
        sig = signature(memory.BARRIER)
        if m.nodes > 1:
            empty = np.empty(0, np.uint8)
            self._remote(memory.BARRIER, sig, 0, 0, 0, 0, empty, empty)
        else:
            m.announce(sig)
            m.meet(sig)

    def part(self, count: int, rank: Optional[int] = None) -> slice:
        """The stretch of count elements that is a rank's (this one's) when scattered."""
        return slice(*part(count, self.size, self.rank if rank is None else rank))

    def empty(self, shape: Union[int, Tuple[int, ...]], dtype: Any = "float32") -> Any:
        """An array in the group's shared memory, which the ranks of the node combine where it is.

        dtype may be "bfloat16" (a uint16 array). The memory is given back when the array
        and all views of it are gone. Raises launcher.Error (kind "exhausted") when there
        is no room.
        """
        dt = np.dtype(np.uint16 if dtype == "bfloat16" else dtype)
        if self._mem is None:
            return np.empty(shape, dt)
        count = int(np.prod(shape, dtype=np.int64))
        n = count * dt.itemsize
        at, end = self._take(n)
        held = (ctypes.c_char * (end - at)).from_buffer(self._mem.map, at)
        end_of_life: Any = weakref.finalize(held, self._give, at)  # its attribute is not in the stubs
        end_of_life.atexit = False
        self._mem.populate(at, end - at)
        whole: Any = held
        array = np.frombuffer(whole, dt, count).reshape(shape)
        self._known[id(array)] = (weakref.ref(array), at)
        return array

    def close(self) -> None:
        """Leave the group. Ranks that still wait for this one get PeerLost."""
        if not self.closed:
            self.closed = True
            if self._mem:
                self._mem.leave()

    def _abandon(self) -> None:
        self.closed = True
        if self._mem:
            self._mem.closed = True

    def __enter__(self) -> "Group":
        return self

    def __exit__(self, *exc: Any) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<launcher.collective.Group rank {self.rank} of {self.size}{', closed' if self.closed else ''}>"

    def _output(self, out: Any, like: Any, count: int) -> Any:
        if out is None:
            return np.empty(count, like.dtype)
        if not isinstance(out, np.ndarray) or out.dtype != like.dtype or out.size != count or not out.flags.c_contiguous:
            raise Error("invalid", f"out must be a contiguous array of {count} x {like.dtype}")
        return out.reshape(-1)

    # The arena.

    def _take(self, n: int) -> Tuple[int, int]:
        m = self._mem
        step = 4096 if n >= 256 << 10 else memory.ARENA_ALIGN
        size = -(-max(n, 1) // step) * step
        begin, limit = m.arena + m.me * m.arena_size, m.arena + (m.me + 1) * m.arena_size
        at = begin
        for a, b in [*sorted(self._arena), (limit, limit)]:
            at = -(-at // step) * step
            if at + size <= a:
                break
            at = b
        if at + size > limit:
            raise Error(
                "exhausted",
                f"an array of {n} bytes in the group's shared memory: the limit of a rank is {m.arena_size}",
                ["drop arrays that are not needed any more, or use ordinary ones"],
            )
        try:
            left = memory.reserve(m.fd, at, size)
        except OSError as e:
            raise Error("exhausted", f"an array of {n} bytes in the group's shared memory: {e}") from e
        if left:
            raise Error(
                "exhausted",
                f"an array of {n} bytes in the group's shared memory: {left} bytes of memory are left",
                ["drop arrays that are not needed any more, use fewer ranks per node, or give the job more memory"],
            )
        self._arena.append((at, at + size))
        return at, at + size

    def _give(self, at: int) -> None:
        for known in [k for k, v in self._known.items() if v[1] == at]:
            del self._known[known]
        for e in self._arena:
            if e[0] == at:
                self._arena.remove(e)
                if e[1] - e[0] >= 1 << 20:
                    try:
                        self._mem.map.madvise(9, e[0], e[1] - e[0])  # MADV_REMOVE
                    except (OSError, ValueError):
                        pass
                return
