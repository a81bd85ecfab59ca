"""What ranks do in each operation, step by step.

The same steps as in Go (collectives/ops.go and remote.go), which say why each order of
them is safe; docs/collectives.md has them for other languages.
"""

from __future__ import annotations

import bisect
from typing import Any, Dict, List, Optional, Tuple

import numpy as np

from . import _group_memory as memory
from ._group_arithmetic import MEAN, SUM, Arithmetic
from ._group_memory import part, share

LAG = memory.SLOTS - 2  # rounds that ranks run ahead of the agents


class Steps:
    """The part of a Group that works in the shared memory."""

    def __init__(self, mem: Any, rank: int, size: int) -> None:
        self._mem = mem
        self.rank = rank
        self.size = size
        self._ariths: Dict[Tuple[int, int], Arithmetic] = {}
        self._slots: Dict[Any, Any] = {}
        self._rounds_of: Dict[Any, List[Any]] = {}
        self._places: Dict[Any, Any] = {}
        self._arena: List[Tuple[int, int]] = []
        self._known: Dict[int, Tuple[Any, int]] = {}
        if mem:
            self._raw = np.frombuffer(mem.map, np.uint8, mem.arena)

    def _arithmetic(self, typ: int, op: int) -> Arithmetic:
        if (typ, op) not in self._ariths:
            self._ariths[typ, op] = Arithmetic(typ, op, self.size)
        return self._ariths[typ, op]

    # Views of the shared memory, as arrays of a type.

    def _area(self, at: int, n: int, dtype: Any) -> Any:
        return self._raw[at : at + n].view(dtype)

    def _small(self, i: int, parity: int, dtype: Any) -> Any:
        m = self._mem
        return self._area(m.small_at + (2 * i + parity) * m.small, m.small, dtype)

    def _staged(self, k: int, i: int, dtype: Any) -> Any:
        m, k = self._mem, k % memory.SLOTS
        key = (k, i, dtype)
        if key not in self._slots:
            self._slots[key] = self._area(m.staging + (k * m.n + i) * m.round, m.round, dtype)
        return self._slots[key]

    def _result(self, k: int, dtype: Any) -> Any:
        m, k = self._mem, k % memory.SLOTS
        key = (k, -1, dtype)
        if key not in self._slots:
            self._slots[key] = self._area(m.results + k * m.round, m.round, dtype)
        return self._slots[key]

    def _shared(self, at: int, n: int, dtype: Any) -> Any:
        """n elements of the arena, of any rank."""
        return np.frombuffer(self._mem.map, dtype, n, at)

    def _offset(self, flat: Any) -> int:
        """Where an array lies in the arenas; 0 when it does not."""
        if not self._arena:
            return 0
        known = self._known.get(id(flat))
        if known is not None and known[0]() is flat:
            return known[1]
        m = self._mem
        at = flat.__array_interface__["data"][0] - m.base
        return at if m.arena <= at and at + flat.nbytes <= m.arena + m.n * m.arena_size and flat.size else 0

    def _source(self, i: int, k: int, flat: Any, a: int, b: int, start: int) -> Any:
        """Elements [a, b) of rank i's input, in round k, which starts at element start."""
        m = self._mem
        if i == m.me:
            return flat[a:b]
        at = m.input(i)
        if at:
            return self._shared(at + a * flat.itemsize, b - a, flat.dtype)
        return self._staged(k, i, flat.dtype)[a - start : b - start]

    # Operations.

    def _small_meet(self, sig: int, flat: Any, count: int, dtype: Any) -> List[Any]:
        m = self._mem
        p = (m.seq + 1) & 1
        if count:
            self._small(m.me, p, dtype)[:count] = flat[:count]
        m.announce(sig)
        m.meet(sig)
        return [self._small(i, p, dtype)[: flat.size] for i in range(m.n)]

    def _arenas(self) -> bool:
        return all(self._mem.input(i) for i in range(self._mem.n))

    def _stage(self, k: int, flat: Any, start: int, end: int) -> None:
        """Copy those parts of [start, end) that other local ranks combine."""
        m = self._mem
        to = self._staged(k, m.me, flat.dtype)
        a, b = share(end - start, m.n, m.me, flat.itemsize)
        if a > 0:
            to[:a] = flat[start : start + a]
        if b < end - start:
            to[b : end - start] = flat[start + b : end]

    def _round_views(self, length: int, dtype: Any) -> List[Any]:
        """For a round of length elements, by slot: the views that a rank needs of it.

        Its share [a, b); below and above it, of what this rank stages; the share of what
        each rank staged; of the result, the share and what is below and above.
        """
        key = (length, dtype)
        if key not in self._rounds_of:
            if len(self._rounds_of) > 64:
                self._rounds_of.clear()
            m = self._mem
            a, b = share(length, m.n, m.me, dtype.itemsize)
            by_slot = []
            for k in range(memory.SLOTS):
                mine, result = self._staged(k, m.me, dtype), self._result(k, dtype)
                staged = [self._staged(k, i, dtype)[a:b] for i in range(m.n)]
                by_slot.append((a, b, mine[:a], mine[b:length], staged, result[a:b], result[:a], result[b:length]))
            self._rounds_of[key] = by_slot
        return self._rounds_of[key]

    def _combine(self, sig: int, typ: int, op: int, flat: Any, root: Optional[int]) -> None:
        m = self._mem
        count, dt, me = flat.size, flat.dtype, m.me
        limit = m.round // dt.itemsize
        rounds = -(-count // limit)
        gets = root is None or self.rank == root
        at = self._offset(flat)
        do = self._arithmetic(typ, op)
        first = m.seq + 1
        full = self._round_views(min(limit, count), dt)
        tail = full if count % limit == 0 else self._round_views(count % limit, dt)

        def stage(k: int) -> None:
            a, b, low, high = (tail if k == rounds - 1 else full)[(first + k) % memory.SLOTS][:4]
            start = k * limit
            if a:
                low[...] = flat[start : start + a]
            if len(high):
                high[...] = flat[start + b : start + b + len(high)]

        if not at:
            stage(0)
        m.announce(sig, at, at)
        m.meet(sig)
        inputs = [m.input(i) for i in range(m.n)]
        if 0 not in inputs:
            self._in_place(do, count, dt, inputs, root)
            return
        base = m.step
        for i in range(rounds + 1):
            if i + 1 < rounds:
                if not at:
                    stage(i + 1)
                m.post()
            if i < rounds:
                m.all(base + max(2 * i - 1, 0))
                a, b, _, _, staged, result, _, _ = (tail if i == rounds - 1 else full)[(first + i) % memory.SLOTS]
                if a < b:
                    start = i * limit
                    own = flat[start + a : start + b]
                    ins = [
                        own if j == me else self._shared(o + (start + a) * dt.itemsize, b - a, dt) if o else staged[j]
                        for j, o in enumerate(inputs)
                    ]
                    do.blocks([result, own] if gets else [result], ins)
                m.post()
            k = i - 1
            if k >= 0:
                m.all(base + min(2 * k + 2, 2 * rounds - 1))
                if gets:
                    a, b, _, _, _, _, low, high = (tail if k == rounds - 1 else full)[(first + k) % memory.SLOTS]
                    start = k * limit
                    if a:
                        flat[start : start + a] = low
                    if len(high):
                        flat[start + b : start + b + len(high)] = high

    def _in_place(self, do: Arithmetic, count: int, dtype: Any, inputs: List[int], root: Optional[int]) -> None:
        """Combine buffers that are all in the arena where they are."""
        m = self._mem
        key = (do, count, root, *inputs)
        work = self._places.get(key)
        if work is None:
            if len(self._places) > 64:
                self._places.clear()
            a, b = share(count, m.n, m.me, dtype.itemsize)
            ins = [self._shared(o + a * dtype.itemsize, b - a, dtype) for o in inputs] if a < b else []
            outs = ins if root is None else [ins[root - m.first]] if ins else []
            work = self._places[key] = do.cut(outs, ins, apart=root is not None)
        do.run(work)
        m.post()
        m.all(m.step)

    def _scatter(self, sig: int, typ: int, op: int, out: Any, flat: Any) -> None:
        m = self._mem
        count, size, n, dt = flat.size, flat.itemsize, m.n, flat.dtype
        chunk = m.round // n // 64 * 64 // size
        first = m.seq + 1
        rounds = -(-part(count, n, 0)[1] // chunk)
        at = self._offset(flat)
        do = self._arithmetic(typ, op)

        def bounds(rank: int, k: int) -> Tuple[int, int]:
            a, b = part(count, n, rank)
            return min(a + k * chunk, b), min(a + (k + 1) * chunk, b)

        def stage(k: int) -> None:
            if at:
                return
            to = self._staged(first + k, m.me, dt)
            for j in range(n):
                a, b = bounds(j, k)
                if j != m.me and a < b:
                    to[j * chunk : j * chunk + b - a] = flat[a:b]

        own = part(count, n, m.me)[0]

        def combine(k: int, a: int, b: int) -> None:
            if a < b:
                start = a - m.me * chunk  # what others staged for this rank begins at chunk me
                do.blocks([out[a - own : b - own]], [self._source(j, first + k, flat, a, b, start) for j in range(n)])

        stage(0)
        m.announce(sig, at)
        m.meet(sig)
        if self._arenas():
            combine(0, *part(count, n, m.me))
            m.post()
            m.all(m.step)
            return
        base = m.step
        for i in range(rounds):
            if i + 1 < rounds:
                stage(i + 1)
                m.post()
            m.all(base + max(2 * i - 1, 0))
            combine(i, *bounds(m.me, i))
            m.post()
        m.all(m.step)

    def _gather(self, sig: int, whole: Any, flat: Any) -> None:
        m = self._mem
        n, dt, size = m.n, flat.dtype, flat.itemsize
        a, b = part(whole.size, n, m.me)
        mine = whole[a:b]
        if mine.__array_interface__["data"][0] != flat.__array_interface__["data"][0]:
            mine[...] = flat
        at = self._offset(flat) or self._offset(mine)
        chunk = m.round // size
        first = m.seq + 1
        most = part(whole.size, n, 0)[1]
        rounds = -(-most // chunk)

        def stage(k: int) -> None:
            s = flat[k * chunk : (k + 1) * chunk]
            if not at and len(s):
                self._staged(first + k, m.me, dt)[: len(s)] = s

        stage(0)
        m.announce(sig, at)
        m.meet(sig)
        if self._arenas():
            rounds, chunk = 1, most
        base = m.step
        for i in range(rounds):
            if i + 1 < rounds:
                stage(i + 1)
                m.post()
            m.all(base + i)
            for j in range(1, n):
                r = (m.me + j) % n
                a, b = part(whole.size, n, r)
                c, d = min(i * chunk, b - a), min((i + 1) * chunk, b - a)
                if c < d:
                    o = m.input(r)
                    whole[a + c : a + d] = self._shared(o + c * size, d - c, dt) if o else self._staged(first + i, r, dt)[: d - c]
        m.post()
        m.all(m.step)

    def _spread(self, sig: int, flat: Any, root: int) -> None:
        m = self._mem
        dt, chunk, count = flat.dtype, m.round // flat.itemsize, flat.size
        rounds = -(-count // chunk)
        first = m.seq + 1
        at = self._offset(flat)

        def stage(k: int) -> None:
            s = flat[k * chunk : (k + 1) * chunk]
            self._staged(first + k, root, dt)[: len(s)] = s

        if m.me == root and not at:
            stage(0)
        m.announce(sig, at, at)
        m.meet(sig)
        source = m.input(root)
        if source:
            if m.me != root:
                flat[...] = self._shared(source, count, dt)
            m.post()
            if m.me == root:
                m.all(m.step)
            return
        base = m.step
        if m.me != root:
            for k in range(rounds):
                m.wait(m.step_at[root], base + k, root)
                s = flat[k * chunk : (k + 1) * chunk]
                s[...] = self._staged(first + k, root, dt)[: len(s)]
                m.post()
            return
        for k in range(1, rounds + 1):
            seen = base + (k - memory.SLOTS + 1 if k < rounds else rounds)
            if k >= memory.SLOTS or k == rounds:  # the others have copied what was in the slot
                for i in range(m.n):
                    if i != root:
                        m.wait(m.step_at[i], seen, i)
            if k < rounds:
                stage(k)
            m.post()

    # Groups on several nodes.

    def _rounds(self, code: int, count: int, root: int, size: int) -> List[Tuple[int, int, int]]:
        """How the vector is cut: (from, to, node it belongs to)."""
        m = self._mem
        limit = m.round // size

        def cut(a: int, b: int, node: int) -> List[Tuple[int, int, int]]:
            return [(x, min(x + limit, b), node) for x in range(a, b, limit)]

        if code in (memory.REDUCE_SCATTER, memory.ALL_GATHER):
            out = []
            for i in range(m.nodes):
                a = part(count, m.world, m.firsts[i])[0]
                b = part(count, m.world, m.firsts[i + 1] - 1)[1]
                out += cut(a, b, i)
            return out
        node = bisect.bisect_right(m.firsts, root) - 1 if code in (memory.BROADCAST, memory.REDUCE) else -1
        return cut(0, count, node)

    def _remote(self, code: int, sig: int, typ: int, op: int, root: int, count: int, out: Any, flat: Any) -> None:
        m = self._mem
        dt, size = out.dtype, out.itemsize
        if count * size <= m.small:
            self._remote_small(code, sig, typ, op, root, count, out, flat)
            return
        reduces = bool(op)
        do = self._arithmetic(typ, SUM if op == MEAN else op) if reduces else None
        rounds = self._rounds(code, count, root, size)
        at = self._offset(flat) if reduces else 0
        first = m.bin
        mine = part(count, self.size, self.rank)

        def stage(i: int) -> None:
            if reduces and not at:
                self._stage(first + i, flat, rounds[i][0], rounds[i][1])

        def give(i: int) -> None:
            start, end, _ = rounds[i]
            slot = self._result(first + i, dt)
            if do:
                a, b = share(end - start, m.n, m.me, size)
                if a < b:
                    do.blocks([slot[a:b]], [self._source(j, first + i, flat, start + a, start + b, start) for j in range(m.n)])
            elif code == memory.ALL_GATHER:
                a, b = max(start, mine[0]), min(end, mine[1])
                if a < b:
                    slot[a - start : b - start] = flat[a - mine[0] : b - mine[0]]
            elif self.rank == root:
                slot[: end - start] = flat[start:end]

        def take(i: int) -> None:
            start, end, _ = rounds[i]
            a, b, off = start, end, 0
            if code == memory.REDUCE_SCATTER:
                a, b, off = max(start, mine[0]), min(end, mine[1]), mine[0]
            elif code in (memory.REDUCE, memory.BROADCAST) and (self.rank == root) != (code == memory.REDUCE):
                return
            if a < b:
                out[a - off : b - off] = self._result(first + i, dt)[a - start : b - start]

        stage(0)
        m.announce(sig, at)
        m.meet(sig)
        base = m.step
        for i in range(len(rounds) + LAG):
            if i + 1 < len(rounds):
                stage(i + 1)
                m.post()
            if i < len(rounds):
                m.all(base + i)
                give(i)
                m.hand()
            if i >= LAG:
                m.agent(first + i - LAG + 1)
                take(i - LAG)

    def _remote_small(self, code: int, sig: int, typ: int, op: int, root: int, count: int, out: Any, flat: Any) -> None:
        m = self._mem
        dt, k = out.dtype, m.bin
        gives = 0 if code == memory.BARRIER or code == memory.BROADCAST and self.rank != root else flat.size
        slots = self._small_meet(sig, flat, gives, dt)
        result = self._result(k, dt)
        if m.me == 0 and count:
            if op:
                self._arithmetic(typ, SUM if op == MEAN else op)([result[:count]], slots)
            elif code == memory.ALL_GATHER:
                for i in range(m.n):
                    a, b = part(count, self.size, m.first + i)
                    result[a:b] = self._small(i, m.seq & 1, dt)[: b - a]
            elif 0 <= root - m.first < m.n:
                result[:count] = slots[root - m.first]
        m.hand()
        m.agent(k + 1)
        if code in (memory.ALL_REDUCE, memory.ALL_GATHER) or code == memory.BROADCAST and self.rank != root or code == memory.REDUCE and self.rank == root:
            out[...] = result[:count]
        elif code == memory.REDUCE_SCATTER:
            a, b = part(count, self.size, self.rank)
            out[...] = result[a:b]
