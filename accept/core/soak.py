"""Tasks while workers and agents are killed: soak.py SECONDS LEDGER

Each task writes a line to the ledger, outside the cluster, and gives a value that can be
checked: small ones, arrays, arrays made of another task's array, streams. At the end every
task has been run at least once, every result has come exactly once and right, and memory
is what it was at a third of the time.
"""

import os
import random
import signal
import sys
import time

import numpy as np
from points import eventually, launcher, processes, resident_kb, total

import launcher as ray

SECONDS, LEDGER = float(sys.argv[1]), sys.argv[2]
ray.init()


@ray.remote(max_retries=-1)
def small(i, ledger):
    with open(ledger, "a") as f:
        f.write(f"{i}\n")
    time.sleep(random.random() * 0.02)
    return i


@ray.remote(max_retries=-1)
def array(i, ledger):
    with open(ledger, "a") as f:
        f.write(f"{i}\n")
    return np.full(50_000, i)


@ray.remote(max_retries=-1)
def onward(i, a, ledger):
    with open(ledger, "a") as f:
        f.write(f"{i}\n")
    return a + 1


def value(v):
    if isinstance(v, int):
        return v
    first = int(v[0])
    return first if (v == first).all() else f"{[int(x) for x in np.unique(v)[:5]]} from {int((v != first).argmax())} on"


def memory():
    """MiB of the agents and the head, of objects, and of the segments that those are in."""
    own = sum(resident_kb(p) - resident_kb(p, "RssShmem") for kind in ("agent", "head") for p in processes(kind))
    return own // 1024, total("resident") >> 20, total("segments") >> 20


def main():
    r, start, submitted, right, kills = random.Random(5), time.monotonic(), 0, 0, {"worker": 0, "agent": 0}
    pending, marks, next_kill, next_look = {}, [], start + 1, start + SECONDS / 3
    while time.monotonic() - start < SECONDS or pending:
        while len(pending) < 60 and time.monotonic() - start < SECONDS:
            i = submitted
            submitted += 1
            kind = r.randrange(3)
            if kind == 0:
                pending[small.remote(i, LEDGER)] = i
            elif kind == 1:
                pending[array.remote(i, LEDGER)] = i
            else:
                first = array.remote(i, LEDGER)
                pending[onward.remote(submitted, first, LEDGER)] = i + 1
                submitted += 1
        ready, _ = ray.wait(list(pending), num_returns=min(10, len(pending)), timeout=0.2)
        for ref, v in zip(ready, ray.get(ready, timeout=60)):
            assert value(v) == pending[ref], f"task {pending[ref]} gave {value(v)}"
            del pending[ref]
            right += 1
        now = time.monotonic()
        assert now - start < SECONDS + 120, f"{len(pending)} tasks do not end"
        if now > next_kill and now - start < SECONDS:
            next_kill = now + r.uniform(0.3, 1.5)
            kind = "agent" if r.random() < 0.3 else "worker"
            pids = processes("agent") if kind == "agent" else [t["worker"] for t in launcher("tasks", "--state", "running")["sdk"] if t.get("worker")]
            if pids:
                try:
                    os.kill(r.choice(pids), signal.SIGKILL)
                    kills[kind] += 1
                except ProcessLookupError:
                    pass
        if now > next_look:
            next_look = now + SECONDS / 6
            marks.append(memory())
    lines = [int(v) for v in open(LEDGER)]
    missing = set(range(submitted)) - set(lines)
    del ref, ready, v
    end = eventually("the objects are gone", lambda: memory()[1] <= 2 and memory())
    assert not missing, f"{len(missing)} tasks have no line in the ledger: {sorted(missing)[:5]}"
    assert end[0] <= max(m[0] for m in marks[:2]) * 1.3 + 20, f"agents and head took {marks} MiB (resident, objects, segments), at the end {end}"
    # A driver gives warm memory back when it is asked at one of its calls.
    end = eventually("the segments are given back", lambda: ray.get(ray.put(1)) and memory()[2] <= 100 and memory())
    print(f"{right} results right of {submitted} tasks, {len(lines)} runs in the ledger, {kills['worker']} workers and {kills['agent']} agents killed; MiB of agents and head, objects, segments {marks} then {end}")


main()
