"""What lives on when the node that made it is gone, in three programs of one cluster of two
nodes: outlive.py make (on the node that is to die), kill, check.
"""

import json
import os
import signal
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "core"))
from points import launcher  # noqa: E402

import launcher as ray  # noqa: E402
import launcher.util as groups  # noqa: E402
from launcher.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On  # noqa: E402

NOTES = sys.argv[2]


def verdict(name, ok, evidence):
    print("PASS" if ok else "FAIL", f"outlive.{name}", " ".join(str(evidence).split())[:400], flush=True)


@ray.remote(num_cpus=0)
class Count:
    def __init__(self, at):
        self.n = at

    def add(self):
        self.n += 1
        return os.getpid(), self.n, ray.get_runtime_context().get_node_id()


@ray.remote(num_cpus=0)
class Maker:
    """Makes a group where it lives, which is not where the driver is."""

    def make(self):
        g = groups.placement_group([{"CPU": 1}], strategy="PACK")
        assert g.wait(30)
        return g


def node_ids():
    return sorted(n["NodeID"] for n in ray.nodes() if n["Alive"])


def make():
    here = ray.get_runtime_context().get_node_id()
    other = [n for n in node_ids() if n != here][0]
    on = On(other, soft=False)
    lives = Count.options(name="lives", lifetime="detached", scheduling_strategy=on).remote(100)
    mine = On(here, soft=True)
    again = Count.options(name="again", lifetime="detached", max_restarts=1, scheduling_strategy=mine).remote(200)
    never = Count.options(name="never", lifetime="detached", max_restarts=0, scheduling_strategy=mine).remote(300)
    where = {"lives": ray.get(lives.add.remote()), "again": ray.get(again.add.remote()), "never": ray.get(never.add.remote())}
    g = groups.placement_group([{"CPU": 1}, {"CPU": 1}], strategy="STRICT_SPREAD", name="detached", lifetime="detached")
    assert g.wait(30)
    # A group that a worker on the other node makes lives as long as the job, although nothing
    # else of the job is there.
    m = Maker.options(scheduling_strategy=on).remote()
    made = ray.get(m.make.remote())
    del m
    began = time.monotonic()
    while time.monotonic() - began < 13:  # connections of a job that nothing uses end after 10 s
        ray.wait([ray.put(1)], timeout=1)
        time.sleep(0.5)
    state = groups.placement_group_table(made)["state"]
    verdict("group-of-a-worker", state == "CREATED", f"made on the other node, 13 s later: {state}")
    with open(NOTES, "w") as f:
        json.dump({"where": where, "here": here}, f)


def kill():
    """All of ours on the node that made them: supervisor and agent, at once."""
    with open(NOTES) as f:
        here = json.load(f)["here"]
    for n in launcher("nodes")["nodes"]:
        if n["id"] == here:
            with open(f"/proc/{n['pid']}/stat") as f:
                supervisor = int(f.read().rpartition(")")[2].split()[1])
            os.kill(supervisor, signal.SIGKILL)
            print(f"node {here}: killed {supervisor}")
            return
    sys.exit(f"no node {here}")


def until(what, seconds):
    end, v = time.monotonic() + seconds, None
    while time.monotonic() < end:
        try:
            v = what()
            if v:
                return v
        except Exception as e:
            v = e
        time.sleep(0.2)  # between two looks
    return v


def check():
    with open(NOTES) as f:
        was = json.load(f)["where"]

    def add(name):
        return ray.get(ray.get_actor(name).add.remote(), timeout=10)

    v = until(lambda: add("lives"), 60)
    same = isinstance(v, tuple) and v[0] == was["lives"][0] and v[1] > was["lives"][1]
    verdict("actor", same, f"it ran on the other node: {was['lives']}, after the death of its owner's: {v}")
    v = until(lambda: add("again"), 60)
    new = isinstance(v, tuple) and v[0] != was["again"][0] and 200 < v[1] <= 210
    verdict("restarted", new, f"it ran on the node that died: {was['again']}, after: {v}")

    def gone():
        try:
            ray.get_actor("never")
        except ValueError:
            return True
        return False

    verdict("not-restarted", until(gone, 60) is True, "with max_restarts=0 it is over and its name is free")

    def state():
        return groups.placement_group_table(groups.get_placement_group("detached"))["state"]

    v = until(lambda: state() == "CREATED", 60)
    verdict("detached-group", v is True, f"one bundle a node, one node gone and back: {v} {state()}")


ray.init(namespace="outlive")
{"make": make, "kill": kill, "check": check}[sys.argv[1]]()
