"""What a hop of a channel takes, from one process to another: rows of launcher._bench.

Ray has channels inside of compiled graphs only; for those there is compiled_graph_calls.
"""

from __future__ import annotations

import mmap
import os
import signal
import time
from typing import Any, Callable, Dict, Tuple

from . import _actors, _api, channel

LARGE = 1 << 20

Rate = Callable[[Callable[[], Any], float, Any], Tuple[float, float, int]]


class Back:
    """An actor that writes what it reads."""

    def run(self, there: channel.Channel, here: channel.Channel) -> None:
        r, w = there.reader(), here.writer()
        while True:
            value = r.read()
            if value is None:
                return
            w.write(value)


def hop(value: Any, rate: Rate, o: Any) -> Tuple[float, float, int]:
    """Microseconds from a program to an actor, or from there to the program."""
    there, here = channel.create(size=LARGE + 4096), channel.create(size=LARGE + 4096)
    back: Any = _api.remote(num_cpus=0)(Back).remote()
    done = back.run.remote(there, here)
    w, r = there.writer(), here.reader()

    def both() -> None:
        w.write(value)
        r.read(60)

    hops, sd, n = rate(both, 2, o)
    r.release()
    w.write(None)
    _api.get(done)
    _actors.kill(back)
    return 1e6 / hops, 1e6 / hops * sd / hops, n


def small(rate: Rate, o: Any) -> Tuple[float, float, int]:
    """Of a small value."""
    return hop(b"ok", rate, o)


def array(rate: Rate, o: Any) -> Tuple[float, float, int]:
    """Of an array of 1 MiB."""
    import numpy

    return hop(numpy.ones(LARGE // 8), rate, o)


def word() -> float:
    """A word of shared memory from process to process, while both look: microseconds."""
    shared = mmap.mmap(-1, 4096)
    w = memoryview(shared).cast("Q")
    n, over = 20, (1 << 64) - 1
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)  # should its parent die
        seen = 0
        while seen != over:
            if w[0] != seen:
                seen = w[8] = w[0]
        os._exit(0)
    best, i, end = 1e9, 0, time.perf_counter() + 1  # no longer where the cores are taken
    while time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(n):
            i += 1
            w[0] = i
            while w[8] != i:
                pass
        best = min(best, time.perf_counter() - start)
    w[0] = over
    os.waitpid(pid, 0)
    return best / (2 * n) * 1e6


def copy() -> float:
    """A copy of the large value to two places in turn, as a channel makes it: microseconds."""
    import numpy

    source, to = numpy.ones(LARGE, dtype=numpy.uint8), numpy.ones((2, LARGE), dtype=numpy.uint8)
    best = 1e9
    for _ in range(20):
        start = time.perf_counter()
        for i in range(20):
            numpy.copyto(to[i & 1], source)
        best = min(best, (time.perf_counter() - start) / 20)
    return best * 1e6


ROWS: Dict[str, Tuple[Callable[[Rate, Any], Tuple[float, float, int]], Callable[[], float], str]] = {}
if channel.usable():
    ROWS["channel_hop"] = small, word, "a word in shared memory, both processes looking"
    ROWS["channel_hop_numpy_1_mib"] = array, copy, "a copy of it"
