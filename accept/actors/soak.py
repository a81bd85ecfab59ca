"""Ordered calls of actors while their processes, agents and supervisors are killed: soak.py CALLS LEDGER [KINDS]

KINDS: actor, agent, supervise, with commas. The supervisor of the driver's own node is
spared: the driver would end with it.

Six actors on two nodes: three whose calls may be repeated, three exclusive ones whose calls
must not. Each call appends a line to a ledger outside the cluster: actor, life, number.
At the end: every repeatable call was answered; no exclusive call is in the ledger twice, and
one that was answered is there; within a life calls are in the order of their numbers.
"""

import os
import random
import signal
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "core"))
from points import launcher, processes  # noqa: E402

import launcher as ray  # noqa: E402
from launcher import exceptions  # noqa: E402

CALLS, LEDGER = int(sys.argv[1]), sys.argv[2]
KILLS = 18  # spread over the calls, however long those take
KINDS = sys.argv[3].split(",") if len(sys.argv) > 3 else ["actor", "agent"]
ray.init()


@ray.remote(max_restarts=-1, num_cpus=0)
class Writer:
    def __init__(self, name, ledger):
        self.name, self.ledger = name, ledger
        self.life = f"{os.getpid()}-{time.time_ns()}"

    def write(self, i):
        with open(self.ledger, "a") as f:
            f.write(f"{self.name} {self.life} {i}\n")
        return i

    def pid(self):
        return os.getpid()


def supervisors():
    """Those of the other nodes: this driver would end with its own."""
    here, out = ray.get_runtime_context().get_node_id(), []
    for n in launcher("nodes")["nodes"]:
        if n["id"] != here and n.get("pid"):
            with open(f"/proc/{n['pid']}/stat") as f:  # of its agent
                out.append(int(f.read().rpartition(")")[2].split()[1]))
    return [pid for pid in out if pid in processes("supervise")]


def main():
    r, start, kills = random.Random(3), time.monotonic(), {k: 0 for k in KINDS}
    writers = {}
    for k in range(3):
        writers[f"again{k}"] = Writer.options(max_task_retries=-1, scheduling_strategy="SPREAD").remote(f"again{k}", LEDGER)
        writers[f"once{k}"] = Writer.options(scheduling_strategy="SPREAD").remote(f"once{k}", LEDGER)
    pending, answered, unavailable, sent = {}, {n: set() for n in writers}, {n: set() for n in writers}, {n: 0 for n in writers}
    ended, next_kill = 0, CALLS // (KILLS + 1)
    per = CALLS // len(writers)
    while pending or min(sent.values()) < per:
        for name, w in writers.items():
            open_ = sum(n == name for n, _ in pending.values())
            for _ in range(min(100 - open_, per - sent[name])):
                pending[w.write.remote(sent[name])] = (name, sent[name])
                sent[name] += 1
        ready, _ = ray.wait(list(pending), num_returns=min(50, len(pending)), timeout=0.1)
        for ref in ready:
            name, i = pending.pop(ref)
            ended += 1
            try:
                assert ray.get(ref, timeout=60) == i
                answered[name].add(i)
            except exceptions.ActorUnavailableError:
                unavailable[name].add(i)
        now = time.monotonic()
        assert now - start < 240, f"{len(pending)} calls do not end: {sorted(pending.values())[:5]}"
        if ended >= next_kill and min(sent.values()) < per:
            kind = min(kills, key=kills.get)  # in turn; one of which there is none is tried again
            try:
                if kind == "actor":
                    pids = [ray.get(w.pid.remote(), timeout=30) for w in [r.choice(list(writers.values()))]]
                else:
                    pids = supervisors() if kind == "supervise" else processes(kind)
                if pids:
                    os.kill(r.choice(pids), signal.SIGKILL)
                    kills[kind] += 1
                    next_kill += CALLS // (KILLS + 1)
            except (ProcessLookupError, FileNotFoundError, exceptions.RayActorError):
                pass
            except exceptions.GetTimeoutError:
                raise AssertionError(f"an actor does not come back; kills {kills}")
    lines = {n: [] for n in writers}
    for line in open(LEDGER):
        name, life, i = line.split()
        lines[name].append((life, int(i)))
    doubled = 0
    for name, all_ in lines.items():
        numbers = [i for _, i in all_]
        lives = {}
        for life, i in all_:
            assert lives.get(life, -1) < i, f"{name}: call {i} after {lives[life]} in one life"
            lives[life] = i
        assert answered[name] <= set(numbers), f"{name}: answered and not in the ledger: {sorted(answered[name] - set(numbers))[:5]}"
        if name.startswith("again"):
            assert answered[name] == set(range(per)), f"{name}: {per - len(answered[name])} calls without an answer"
            doubled += len(numbers) - len(set(numbers))
        else:
            assert len(numbers) == len(set(numbers)), f"{name}: {len(numbers) - len(set(numbers))} exclusive calls were run twice"
            assert len(answered[name]) + len(unavailable[name]) == per
    assert all(kills.values()), kills
    lives = sum(len({life for life, _ in all_}) for all_ in lines.values())
    lost = sum(map(len, unavailable.values()))
    print(f"{per * len(writers)} calls in {time.monotonic() - start:.0f} s, kills {kills}, {lives} lives of {len(writers)} actors, {doubled} calls repeated, {lost} exclusive calls unavailable")


main()
