"""A Python rank of `launcher bench collectives`: orders on standard input, answers back.

One JSON line each; collectives/bench says what they are.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from typing import Any, Dict

import numpy as np

from . import _group_memory as memory
from .collective import Group


def _check(group: Group, buf: Any) -> str:
    n = group.size
    i = np.arange(len(buf)) % 1000
    buf[...] = i + group.rank
    group.all_reduce(buf)
    bad = np.flatnonzero(buf != n * i + n * (n - 1) // 2)
    return f"element {bad[0]} is {buf[bad[0]]}" if len(bad) else ""


def main() -> None:
    group: Any = None
    buffers: Dict[Any, Any] = {}
    for line in sys.stdin:
        o = json.loads(line)
        a: Dict[str, Any] = {"ns": 0}
        try:
            if o["do"] == "join":
                group = Group(memory.Memory(os.open(o["path"], os.O_RDWR), o["rank"]))
            else:
                key = (o["buffers"], o["bytes"])
                if key not in buffers:
                    buffers = {k: v for k, v in buffers.items() if k[1] == o["bytes"]}
                    n = o["bytes"] // 4
                    buffers[key] = group.empty(n) if o["buffers"] == "shared" else np.zeros(n, np.float32)
                buf = buffers[key]
                if o["check"]:
                    a["wrong"] = _check(group, buf)
                buf[...] = 0
                gc.disable()
                group.barrier()
                start = time.perf_counter_ns()
                for _ in range(o["calls"]):
                    group.all_reduce(buf)
                a["ns"] = time.perf_counter_ns() - start
                gc.enable()
        except Exception as e:
            a["err"] = f"{type(e).__name__}: {e}"
        print(json.dumps(a), flush=True)


if __name__ == "__main__":
    main()
