"""Points about deaths, on a cluster of two nodes with two cores each: nodes die here."""

import os
import signal
import subprocess
import threading
import time

import numpy as np
from points import eventually, launcher, main, objects, point, processes, raises

import launcher as ray
from launcher.scheduling import NodeAffinitySchedulingStrategy

ray.init()
HERE = ray.get_runtime_context().get_node_id()


def up():
    return [n["id"] for n in launcher("nodes")["nodes"] if n["state"] == "up"]


def there():
    """The other node, when it is up."""
    return eventually("two nodes are up", lambda: len(up()) == 2 and [n for n in up() if n != HERE])[0]


def on(node, soft=True):
    return NodeAffinitySchedulingStrategy(node, soft)


def parent(pid):
    return int(open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[1])


def left_on(refs, node):
    """The values are on that node and not on this one, or the point would show nothing."""
    have = {n: {o["id"] for o in v["objects"] if o["state"] == "resident"} for n, v in objects().items()}
    ids = {r.hex() for r in refs}
    assert ids <= have[node] and not ids & have[HERE], f"{len(ids & have[node])} of {len(ids)} on {node}, {len(ids & have[HERE])} on {HERE}"


def agent_of(node):
    (pid,) = [n["pid"] for n in launcher("nodes")["nodes"] if n["id"] == node]
    return pid


def kill_node(node):
    """Everything of a node at once: its guard and its supervisor are killed together."""
    agent = agent_of(node)
    supervisor = parent(agent)
    for pid in (parent(supervisor), supervisor, agent):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # killed with the one before it


@ray.remote
def slow(i):
    time.sleep(0.05)
    return i * i


@point("faults.workers", 90)
def workers():
    refs = [slow.remote(i) for i in range(200)]
    killed = 0
    while not ray.wait(refs, num_returns=len(refs), timeout=0.2)[0][199:]:
        if killed < 10:
            pids = [t["worker"] for t in launcher("tasks")["sdk"] if t.get("worker")]
            if pids:
                try:
                    os.kill(pids[0], signal.SIGKILL)
                    killed += 1
                except ProcessLookupError:
                    pass
    assert ray.get(refs, timeout=60) == [i * i for i in range(200)] and killed >= 5, killed
    return f"200 tasks right with {killed} workers killed"


@point("faults.agent", 90)
def agent():
    kept = [ray.put(np.full(1 << 20, i, dtype=np.uint8)) for i in range(5)]
    refs = [slow.remote(i) for i in range(200)]
    killed = 0
    for _ in range(3):
        ray.wait(refs, num_returns=len(refs), timeout=0.7)
        for node in (HERE, there()):
            os.kill(agent_of(node), signal.SIGKILL)
            killed += 1
    assert ray.get(refs, timeout=60) == [i * i for i in range(200)]
    assert [int(a[-1]) for a in ray.get(kept, timeout=30)] == list(range(5))
    return f"200 tasks right, 5 objects whole, with {killed} kills of agents"


@point("faults.supervisor", 90)
def supervisor():
    other = there()
    refs = [slow.options(scheduling_strategy="SPREAD").remote(i) for i in range(200)]
    time.sleep(0.5)
    os.kill(parent(agent_of(other)), signal.SIGKILL)
    assert ray.get(refs, timeout=80) == [i * i for i in range(200)]
    return f"200 tasks right with the supervisor of {other} killed"


@ray.remote
def step(a=None):
    return np.zeros(1 << 20, dtype=np.uint8) if a is None else a + 1


@point("faults.lineage-chain", 90)
def chain():
    other = there()
    r = step.options(scheduling_strategy=on(other)).remote()
    for _ in range(4):
        r = step.options(scheduling_strategy=on(other)).remote(r)
    ray.wait([r], fetch_local=False, timeout=20)
    left_on([r], other)
    kill_node(other)
    start = time.monotonic()
    a = ray.get(r, timeout=60)
    assert a[0] == a[-1] == 4
    return f"the fifth of a chain, none of whose values is left, made again in {time.monotonic() - start:.1f} s"


@point("faults.fan-in", 120)
def fan_in():
    other = there()

    @ray.remote
    def part(i):
        return np.full(200_000, i, dtype=np.uint8)

    @ray.remote
    def all_of(*parts):
        return [int(p[-1]) for p in parts]

    parts = [part.options(scheduling_strategy=on(other), num_cpus=0.1).remote(i) for i in range(100)]
    ray.wait(parts, num_returns=100, fetch_local=False, timeout=30)
    left_on(parts, other)
    kill_node(other)
    assert ray.get(all_of.remote(*parts), timeout=90) == list(range(100))
    return "100 arguments that died with their node, made again"


@point("faults.copies", 90)
def copies():
    @ray.remote(max_retries=0)
    def keep(n):
        r = ray.put(np.full(1 << 20, 7, dtype=np.uint8), copies=n)
        return [r]

    other = there()
    two, one = (ray.get(keep.options(scheduling_strategy=on(other)).remote(n), timeout=20)[0] for n in (2, 1))
    for node in (HERE, other):
        os.kill(agent_of(node), signal.SIGKILL)  # the next agents know who keeps what
    time.sleep(1)
    there()
    kill_node(other)
    lost = raises(ray.exceptions.ObjectLostError, lambda: ray.get(one, timeout=60), other)
    assert ray.get(two, timeout=60)[-1] == 7
    there()
    few = raises(RuntimeError, lambda: ray.put(0, copies=3), "3 copies")
    return f"with two copies it is there; with one: {lost}; with three on two nodes: {few}"


@point("faults.driver", 60)
def driver():
    """What a program submitted ends with it."""
    code = """
import os, sys, time
import launcher as ray
ray.init()
@ray.remote
def long_one():
    time.sleep(60)
r = [long_one.options(name="orphan", num_cpus=0.5).remote() for _ in range(4)]
ray.wait(r, timeout=1)
print("ready", flush=True)
time.sleep(60)
"""
    import sys

    p = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert p.stdout.readline() == b"ready\n"
    before = sum(c["count"] for c in launcher("tasks")["counts"] if c["name"] == "orphan")
    p.kill()
    p.wait()
    eventually("its tasks are cancelled", lambda: not any(c["name"] == "orphan" for c in launcher("tasks")["counts"] if c["state"] not in ("done", "failed", "cancelled")))
    return f"{before} tasks of a killed program are gone"


@point("faults.head", 90)
def head():
    refs = [slow.remote(i) for i in range(100)]
    (h,) = processes("head")
    os.kill(h, signal.SIGKILL)
    assert ray.get(refs, timeout=60) == [i * i for i in range(100)]
    eventually("a new head answers", lambda: len(up()) == 2)
    return "100 tasks right with the head killed"


if __name__ == "__main__":
    main()
