"""Limits of jobs end to end: tasks, nested tasks, actors, groups and gangs, however the limit
was given. Its own program has a limit of 2 CPUs by init; others by `run` and a job file."""

import json
import os
import subprocess
import sys
import tempfile
import time

from points import launcher, main, point, raises

import launcher as ray
from launcher import exceptions
from launcher.util.placement_group import placement_group, remove_placement_group
from launcher.util.scheduling_strategies import PlacementGroupSchedulingStrategy

AT = "is at its limit of 2 cpu"


@ray.remote
def work(seconds):
    began = time.time()
    time.sleep(seconds)
    return began, time.time()


@ray.remote
class Busy:
    def work(self, seconds=0.0):
        began = time.time()
        time.sleep(seconds)
        return began, time.time()


def most(spans):
    """How many ran at a time."""
    now = top = 0
    for _, d in sorted([(b, 1) for b, _ in spans] + [(e, -1) for _, e in spans]):
        now += d
        top = max(top, now)
    return top


def why(id):
    return " ".join(launcher("why", id)["lines"])


@point("limits.tasks")
def tasks():
    spans = ray.get([work.remote(0.2) for _ in range(12)], timeout=50)
    assert most(spans) <= 2, most(spans)
    big = raises(exceptions.TaskUnschedulableError, lambda: ray.get(work.options(num_cpus=3).remote(0), timeout=20), "limited to 2 cpu")
    return f"{most(spans)} of 12 at a time; {big}"


@point("limits.nested", 100)
def nested():
    @ray.remote
    def outer(depth):
        return ray.get(work.remote(0.1) if depth == 0 else outer.remote(depth - 1))

    ray.get([outer.remote(0) for _ in range(6)], timeout=60)
    ray.get([outer.options(scheduling_strategy="SPREAD").remote(3) for _ in range(2)], timeout=60)
    return "tasks that wait for tasks, more of them than the limit, four deep: they lend what they have"


@point("limits.actors")
def actors():
    made = [Busy.options(num_cpus=1).remote() for _ in range(3)]
    free = [Busy.options(num_cpus=0).remote() for _ in range(3)]
    refs = [a.work.remote() for a in made]
    ray.get([a.work.remote() for a in free], timeout=20)
    up, waits = ray.wait(refs, num_returns=3, timeout=2)
    assert len(waits) >= 1, "three of 2 that may"
    told = [a["why"] for a in launcher("actors")["actors"] if AT in (a.get("why") or "")]
    assert told, launcher("actors")
    raises(exceptions.ActorUnschedulableError, lambda: ray.get(Busy.options(num_cpus=3).remote().work.remote(), timeout=20), "limited to 2 cpu")
    for r in up:
        ray.kill(made[refs.index(r)])
    ray.get(waits, timeout=20)
    return f"{len(up)} of 3 with a CPU, those without one beside them; {told[0]}"


@point("limits.groups")
def groups():
    pair = placement_group([{"CPU": 1}, {"CPU": 1}], strategy="SPREAD")
    assert pair.wait(20)
    ray.get(Busy.options(num_cpus=1, scheduling_strategy=PlacementGroupSchedulingStrategy(pair)).remote().work.remote(), timeout=20)
    later, outside = placement_group([{"CPU": 1}]), work.remote(0)
    assert not later.wait(1.5) and not ray.wait([outside], timeout=0.5)[0]
    told = why(later.id)
    assert AT in told and "held" not in told and AT in why(outside.task_id()), told
    big = placement_group([{"CPU": 1}] * 3)
    over = raises(exceptions.TaskPlacementGroupRemoved, lambda: ray.get(big.ready(), timeout=20), "limited to 2 cpu")
    remove_placement_group(pair)
    ray.get([later.ready(), outside], timeout=20)
    remove_placement_group(later)
    return f"one of 2 CPUs has a second wait: {told}; {over}"


@point("limits.run", 100)
def run():
    env = {**os.environ, "LAUNCHER_CLUSTER": ray.init(ignore_reinit_error=True).address_info["cluster"]}
    cli = lambda *args: subprocess.run(["launcher", *args], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)  # noqa: E731
    program = "import launcher as ray, time\n@ray.remote\ndef f():\n    b = time.time(); time.sleep(0.2); return b, time.time()\nprint(sorted(ray.get([f.remote() for _ in range(8)])))"
    out = cli("run", "--limit", "cpu=2", "--", sys.executable, "-c", program)
    spans = json.loads(out.stdout.replace("(", "[").replace(")", "]"))
    assert most(spans) <= 2, out.stdout
    with tempfile.NamedTemporaryFile() as log:
        step = f"a=$(date +%s.%N); sleep 0.2; echo $a $(date +%s.%N) >>{log.name}"
        array = cli("run", "--limit", "cpu=2", "--array", "0-9", "--", "sh", "-c", step)
        lines = [tuple(map(float, x.split())) for x in open(log.name)]
        with open(log.name, "w"), tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
            file.write(f'version = 1\nkind = "array"\ncommand = ["sh", "-c", "{step}"]\n[array]\nrange = "0-9"\n[limits]\ncpu = 2\n')
            file.flush()
            filed = cli("wait", cli("submit", file.name).stdout.split()[-1])
        again = [tuple(map(float, x.split())) for x in open(log.name)]
        assert filed.returncode == 0 and len(again) == 10 and most(again) <= 2, (filed.stdout, most(again))
        assert array.returncode == 0 and len(lines) == 10 and most(lines) <= 2, (array.stdout, most(lines))
    whole = cli("train", "-n", "3", "--cpus", "1", "--limit", "cpu=2", "--", "true")
    assert whole.returncode != 0 and "limited to 2 cpu" in whole.stdout, whole.stdout
    fits = cli("train", "-n", "2", "--cpus", "1", "--limit", "cpu=2", "--", "true")
    assert fits.returncode == 0, fits.stdout
    return f"program: {most(spans)}, array: {most(lines)} at a time; a gang of 3: {whole.stdout.strip().splitlines()[0][:120]}"


if __name__ == "__main__":
    ray.init(limits={"cpu": 2}, log_to_driver=False)
    main()
