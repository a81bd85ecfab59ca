"""A rank for the tests of collectives/: reads orders from standard input, one JSON line each.

It does what suite_test.go does in Go, and gives the same text, so that Go and Python
ranks can be compared in one group.
"""

import json
import os
import sys
import time
import warnings
import zlib

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from launcher import _group_memory as memory  # noqa: E402
from launcher import collective  # noqa: E402

warnings.simplefilter("error")
U = np.uint64
TYPES = {t: np.dtype(np.uint16 if t == "bfloat16" else t) for t in memory.TYPES if t}
PRIVATE, ARENA, MIXED = range(3)


def numbers(seed, rank, n, product, start=0):
    with np.errstate(all="ignore"):
        i = np.arange(start, start + n, dtype=U)
        x = U(seed * 0x9E3779B97F4A7C15 & 2**64 - 1) + U(rank * 0xBF58476D1CE4E5B9 & 2**64 - 1) + i * U(0x94D049BB133111EB)
        x ^= x >> U(29)
        x *= U(0xBF58476D1CE4E5B9)
        x ^= x >> U(32)
    if product:
        out = 1.0 - 2.0 * (x >> U(8) & U(1)).astype(np.float64)
        if rank < 4:
            out[x % U(3) == 0] = 2.0
        return out
    return (x % U(7)).astype(np.float64) - 3.0


def encode(f, typ):
    if typ != "bfloat16":
        return f.astype(TYPES[typ])
    bits = f.astype(np.float32).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def expect(seed, world, n, op, typ):
    acc = numbers(seed, 0, n, op == "product")
    for r in range(1, world):
        v = numbers(seed, r, n, op == "product")
        acc = {"sum": np.add, "mean": np.add, "product": np.multiply, "min": np.minimum, "max": np.maximum}[op](acc, v)
    if op == "mean":
        acc = acc / world if typ == "float64" else (acc.astype(np.float32) / np.float32(world)).astype(np.float64)
    return encode(acc, typ)


def buffer(g, n, where, typ):
    if where == ARENA or where == MIXED and g.rank % 2 == 1:
        return g.empty(n, typ)
    return np.zeros(n, TYPES[typ])


def compare(got, want, what):
    bad = np.flatnonzero(got != want)
    if len(bad):
        raise AssertionError(f"{what}: element {bad[0]} is {got[bad[0]]}, want {want[bad[0]]}")


def each(g, seed, out, sizes, typ):
    hint = "bfloat16" if typ == "bfloat16" else None
    for k, n in enumerate(sizes):
        where = (k + seed) % 3
        for op in memory.OPS[1:]:
            if op == "mean" and typ.startswith("int"):
                try:
                    g.all_reduce(np.zeros(n, TYPES[typ]), op, dtype=hint)
                except collective.Error:
                    continue
                raise AssertionError(f"{op} {typ} is not refused")
            seed += 1
            name = f"{op} {typ} of {n}, buffers {where}"
            b = buffer(g, n, where, typ)
            mine = encode(numbers(seed, g.rank, n, op == "product"), typ)
            want = expect(seed, g.size, n, op, typ)
            b[...] = mine
            g.all_reduce(b, op, dtype=hint)
            compare(b, want, "all-reduce " + name)
            out.append(f"{name} {zlib.crc32(b.tobytes()):x}")

            b[...] = mine
            part = g.part(n)
            to = buffer(g, part.stop - part.start, (where + k) % 3, typ)
            g.reduce_scatter(b, op, out=to, dtype=hint)
            compare(to, want[part], "reduce-scatter " + name)

            root = seed % g.size
            b[...] = mine
            g.reduce(b, op, root, dtype=hint)
            compare(b, want if g.rank == root else mine, f"reduce {name} to {root}")
        b = buffer(g, n, where, typ)
        root = (n + k) % g.size
        b[...] = encode(numbers(seed, g.rank, n, False), typ)
        g.broadcast(b, root, dtype=hint)
        compare(b, encode(numbers(seed, root, n, False), typ), f"broadcast of {n} {typ} from {root}")
        part = g.part(n)
        b[...] = 0
        mine = b[part] if k % 2 else buffer(g, part.stop - part.start, (where + 1) % 3, typ)
        mine[...] = encode(numbers(seed, 99, part.stop - part.start, False, part.start), typ)
        g.all_gather(mine, out=b, dtype=hint)
        compare(b, encode(numbers(seed, 99, n, False), typ), f"all-gather of {n} {typ}")
        g.barrier()


def rough(g, seed, out, n):
    def at(rank):
        # The same numbers as in Go, whose sin() may differ in the last bit: so from integers.
        i = np.arange(n)
        x = numbers(seed, rank, n, False) * 1.1 + 0.01 * rank
        return (x * 10.0 ** ((rank + i) % 7)).astype(np.float32)

    b = at(g.rank)
    g.all_reduce(b)
    out.append(f"rough {n} {zlib.crc32(b.tobytes()):x}")


def suite_all(g, seed, args):
    out = []
    sizes = [0, 1, g.size, 65, 5003]
    if args and args[0] > 0:
        sizes.append(args[0])
    for typ, s in (("float32", sizes), ("float64", sizes), ("float16", sizes[1:5]), ("bfloat16", sizes[1:5]), ("int32", sizes[1:5]), ("int64", sizes[1:5])):
        each(g, seed, out, s, typ)
    rough(g, seed, out, 37)
    rough(g, seed, out, 9001)
    return "".join(line + "\n" for line in out)


def suite_wait(g, seed, args):
    if g.rank == args[1]:
        end = time.monotonic() + args[0] / 1000
        while time.monotonic() < end:
            pass
    g.all_reduce(np.zeros(10, np.float32))


def suite_call(g, seed, args):
    b = np.zeros(args[0], np.float32)
    if g.rank == args[1]:
        if args[2] == 1:
            g.all_reduce(b[:-1])
        elif args[2] == 2:
            g.barrier()
        elif args[2] == 4:
            os._exit(0)
        elif args[2] == 5:
            g.close()
        elif args[2] == 6:
            g.all_reduce(np.zeros(args[0], np.int32))
        return
    g.all_reduce(b)


def suite_repeat(g, seed, args):
    b = np.zeros(args[0], np.float32)
    for _ in range(args[1]):
        g.all_reduce(b)


SUITES = {"all": suite_all, "wait": suite_wait, "call": suite_call, "repeat": suite_repeat}
KINDS = {collective.PeerLost: "lost", collective.Mismatch: "mismatch", collective.Timeout: "timeout"}


def main():
    group = None
    for line in sys.stdin:
        o = json.loads(line)
        a = {"Rank": -2}
        try:
            if o["Do"] == "join":
                if group:
                    group.close()
                group = collective.Group(memory.Memory(os.open(o["Path"], os.O_RDWR), o["Rank"]))
            elif o["Do"] == "suite":
                a["Text"] = SUITES[o["Suite"]](group, o["Seed"], o["Args"] or []) or ""
            elif o["Do"] == "leave":
                group.close()
        except Exception as e:
            a["Err"] = f"{type(e).__name__}: {e}"
            a["Kind"] = KINDS.get(type(e), "")
            a["Rank"] = getattr(e, "rank", -2)
            if not a["Kind"] and not isinstance(e, (AssertionError, collective.Error)):
                import traceback

                a["Err"] += "\n" + traceback.format_exc()
        print(json.dumps(a), flush=True)


main()
