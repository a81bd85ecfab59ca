"""The arithmetic of the collectives on numpy arrays; as collectives/reduce does it in Go."""

from __future__ import annotations

from typing import Any, Dict, List

import numpy as np

from . import _group_memory as memory

BFLOAT16 = memory.TYPES.index("bfloat16")
BLOCK = 256 << 10
SUM, MIN, MAX, PRODUCT, MEAN = range(1, 6)


class Arithmetic:
    """Combines arrays of one type by one operation, in the order of the inputs."""

    def __init__(self, typ: int, op: int, div: int) -> None:
        self.half = memory.TYPES[typ] in ("float16", "bfloat16")
        self.brain = typ == BFLOAT16
        self.op = op
        self.div = div
        floating = self.half or memory.TYPES[typ].startswith("float")
        folds: Dict[int, Any] = {
            SUM: np.add,
            MEAN: np.add,
            PRODUCT: np.multiply,
            MIN: _float_min if floating else _int_min,
            MAX: _float_max if floating else _int_max,
        }
        self.fold = folds[op]

    def __call__(self, outs: List[Any], ins: List[Any]) -> None:
        out = outs[0]
        if self.half:
            self._half(out, ins)
        elif len(ins) == 1:
            if out is not ins[0]:
                out[...] = ins[0]
        else:
            fold = self.fold
            fold(ins[0], ins[1], out)
            for x in ins[2:]:
                fold(out, x, out)
        if self.op == MEAN and not self.half:
            np.divide(out, self.div, out)
        for o in outs[1:]:
            o[...] = out

    def _half(self, out: Any, ins: List[Any]) -> None:
        widen = _widen_brain if self.brain else _widen
        acc = widen(ins[0])
        for x in ins[1:]:
            self.fold(acc, widen(x), acc)
        if self.op == MEAN:
            np.divide(acc, np.float32(self.div), acc)
        if self.brain:
            bits = acc.view(np.uint32)
            rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
            # Rounding could carry a NaN into infinity.
            nan = np.isnan(acc)
            if nan.any():
                rounded[nan] = bits[nan] >> np.uint32(16) | np.uint32(0x40)
            out[...] = rounded
        else:
            out[...] = acc

    def blocks(self, outs: List[Any], ins: List[Any]) -> None:
        """The same for long arrays, in pieces that stay in the cache.

        outs[0] may be ins[0], in place; none of the others.
        """
        if ins[0].nbytes <= BLOCK and not self.half:
            self(outs, ins)
        else:
            self.run(self.cut(outs, ins))

    def cut(self, outs: List[Any], ins: List[Any], apart: bool = False) -> List[Any]:
        """The pieces of work for run. With apart, outs[0] may be any of ins: then the
        work is done elsewhere and copied."""
        if not ins:
            return []
        n, step = len(ins[0]), BLOCK // ins[0].itemsize
        between = [np.empty(min(n, step), ins[0].dtype)] if apart else []
        return [
            ([t[: min(step, n - a)] for t in between] + [o[a : a + step] for o in outs], [x[a : a + step] for x in ins])
            for a in range(0, n, step)
        ]

    def run(self, work: List[Any]) -> None:
        if not self.half:
            for outs, ins in work:
                self(outs, ins)
            return
        with np.errstate(all="ignore"):  # too large for a half is infinity, as in Go
            for outs, ins in work:
                self(outs, ins)


def _widen(x: Any) -> Any:
    return x.astype(np.float32)


def _widen_brain(x: Any) -> Any:
    wide = x.astype(np.uint32)
    wide <<= np.uint32(16)
    return wide.view(np.float32)


def _int_min(acc: Any, x: Any, out: Any) -> None:
    np.minimum(acc, x, out=out)


def _int_max(acc: Any, x: Any, out: Any) -> None:
    np.maximum(acc, x, out=out)


# Not np.minimum: of two zeros, and of a NaN and a number, all kinds of ranks must pick
# the same one.
def _float_min(acc: Any, x: Any, out: Any) -> None:
    out[...] = np.where((acc < x) | (acc != acc), acc, x)


def _float_max(acc: Any, x: Any, out: Any) -> None:
    out[...] = np.where((acc > x) | (acc != acc), acc, x)
