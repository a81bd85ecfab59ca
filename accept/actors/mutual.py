"""Actors on two nodes, made there by tasks, that call each other without end: `mutual.py make` makes
them and ends; `mutual.py check` waits until they have ended with their program."""

import os
import subprocess
import sys
import time

import launcher as ray
from launcher.util.scheduling_strategies import NodeAffinitySchedulingStrategy


@ray.remote(num_cpus=0, max_concurrency=2)
class Holder:
    def hold(self, other):
        self.other = other[0]
        return os.getpid()

    def ask(self, again=False):
        there = ray.get(self.other.where.remote())
        while again:
            ray.get(self.other.where.remote())
            time.sleep(0.05)
        return there

    def where(self):
        return ray.get_runtime_context().get_node_id()


@ray.remote(num_cpus=0)
def make():
    return [Holder.options(scheduling_strategy=here()).remote()]


def here():
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def listed():
    out = subprocess.run([os.environ["LAUNCHER"], "actors"], capture_output=True, text=True, timeout=60).stdout
    return [line for line in out.splitlines() if "Holder" in line]


if sys.argv[1] == "make":
    ray.init()
    own = ray.get_runtime_context().get_node_id()
    nodes = [n["NodeID"] for n in ray.nodes() if n["Alive"] and n["NodeID"] != own]
    a, b = ([ray.get(make.options(scheduling_strategy=NodeAffinitySchedulingStrategy(n, soft=False)).remote())[0] for n in nodes])
    ray.get([a.hold.remote([b]), b.hold.remote([a])])
    assert ray.get(a.ask.remote()) != ray.get(b.ask.remote())
    a.ask.remote(again=True), b.ask.remote(again=True)
    time.sleep(1)
    assert len(listed()) == 2, listed()
else:
    start = time.monotonic()
    while listed() and time.monotonic() - start < 60:
        time.sleep(0.2)
    left = listed()
    print("FAIL" if left else "PASS", "outlive.mutual", f"two actors that call each other over nodes, {time.monotonic() - start:.1f} s after their program: {left or 'gone'}")
