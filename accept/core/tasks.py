"""Points about tasks, on a cluster of two nodes with three cores and two "slot" each."""

import asyncio
import collections
import contextlib
import glob
import os
import re
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
from points import eventually, launcher, main, point, processes, raises, resident_kb

import launcher as ray
from launcher.scheduling import In, NodeAffinitySchedulingStrategy, NodeLabelSchedulingStrategy

CLUSTER = ray.init().address_info["cluster"].encode()
NODES = sorted(n["NodeID"] for n in ray.nodes())
HERE = ray.get_runtime_context().get_node_id()
THERE = [n for n in NODES if n != HERE][0]


@ray.remote
def where():
    return ray.get_runtime_context().get_node_id()


@ray.remote
def sleep(s, v=None):
    time.sleep(s)
    return v


@ray.remote(num_cpus=3)
def until(path):
    """Holds all cores of a node while there is the file."""
    open(f"{path}.{ray.get_runtime_context().get_node_id()}", "w").close()
    while os.path.exists(path):
        time.sleep(0.01)


@contextlib.contextmanager
def full():
    """All cores of the cluster are held meanwhile."""
    path = tempfile.mktemp(dir=os.environ["TMPDIR"])
    open(path, "w").close()
    held = [until.options(scheduling_strategy=on(n)).remote(path) for n in NODES]
    try:
        eventually("all cores are held", lambda: all(os.path.exists(f"{path}.{n}") for n in NODES))
        yield
    finally:
        os.unlink(path)
        ray.get(held, timeout=30)


def on(node, soft=False):
    return NodeAffinitySchedulingStrategy(node, soft)


@point("tasks.cpus")
def cpus():
    @ray.remote(num_cpus=3)
    def wide():
        return time.time(), (time.sleep(0.3), time.time())[1], where_am_i()

    spans = ray.get([wide.remote() for _ in range(4)], timeout=20)
    for a in spans:
        assert sum(b[2] == a[2] and a[0] < b[1] and b[0] < a[1] for b in spans) == 1, spans
    small = ray.get([where.options(num_cpus=0.5).remote() for _ in range(6)], timeout=20)
    return f"tasks of all 3 cores of a node never overlap there; {len(small)} of half a core ran"


def where_am_i():
    return ray.get_runtime_context().get_node_id()


@point("tasks.resources")
def resources():
    @ray.remote(num_cpus=0, resources={"slot": 2})
    def both():
        a = time.time()
        time.sleep(0.2)
        return a, time.time(), where_am_i()

    spans = ray.get([both.remote() for _ in range(4)], timeout=20)
    for a in spans:
        assert sum(b[2] == a[2] and a[0] < b[1] and b[0] < a[1] for b in spans) == 1, spans
    return "2 of 2 slots: one at a time on each node"


@point("tasks.gpus")
def gpus():
    """Fractions of two pretended GPUs share one; CUDA_VISIBLE_DEVICES names it before imports."""
    code = """
import os
import launcher as ray
ray.init("local", num_cpus=2, num_gpus=1)
@ray.remote(num_gpus=0.5)
def half():
    import time; time.sleep(0.3)
    return os.environ.get("CUDA_VISIBLE_DEVICES"), len(ray.get_gpu_ids())
@ray.remote
def none():
    return os.environ.get("CUDA_VISIBLE_DEVICES")
print(ray.get([half.remote() for _ in range(2)], timeout=20), repr(ray.get(none.remote(), timeout=20)), ray.cluster_resources().get("GPU"))
"""
    env = {k: v for k, v in os.environ.items() if k != "LAUNCHER_SOCKET"}
    out = subprocess.run([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert re.search(r"^\[\('[^']+', 1\), \('[^']+', 1\)\] '' 1.0$", out.stdout.strip()), out.stdout + out.stderr[-200:]
    return out.stdout.strip()


@point("tasks.returns")
def returns():
    @ray.remote(num_returns=3)
    def three():
        return 1, [2], None

    a, b, c = three.remote()
    assert ray.get([a, b, c], timeout=20) == [1, [2], None]
    nothing = three.options(num_returns=0).remote()
    wrong = raises(Exception, lambda: ray.get(three.options(num_returns=2).remote()[0], timeout=20))
    assert nothing is None
    return f"3 returns, 0 returns; 3 values for 2: {wrong}"


@point("tasks.generators")
def generators():
    path = os.environ["TMPDIR"] + "/made"

    @ray.remote(_generator_backpressure_num_objects=3)
    def items(n):
        for i in range(n):
            with open(path, "a") as f:
                f.write("x")
            yield np.full(100_000, i)

    g = items.remote(50)
    first = ray.get(next(g), timeout=20)[0]
    time.sleep(0.5)
    ahead = os.path.getsize(path)
    rest = [int(ray.get(r, timeout=20)[0]) for r in g]
    assert first == 0 and rest == list(range(1, 50)) and ahead <= 6, (ahead, rest[:5])

    @ray.remote
    def broken():
        yield 1
        raise ValueError("half way")

    g = broken.remote()
    assert ray.get(next(g), timeout=20) == 1
    end = raises(ValueError, lambda: [ray.get(r, timeout=20) for r in g], "half way")
    return f"50 items; with one taken, {ahead} made; one that fails half way: {end}"


@point("tasks.retries")
def retries():
    @ray.remote(max_retries=2)
    def dies(path):
        with open(path, "a") as f:
            f.write("x")
        if len(open(path).read()) < 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return "third time"

    @ray.remote(max_retries=1, retry_exceptions=[KeyError])
    def fails(path):
        with open(path, "a") as f:
            f.write("x")
        raise KeyError("again")

    t = os.environ["TMPDIR"] + "/"
    assert ray.get(dies.remote(t + "dies"), timeout=30) == "third time"
    raises(KeyError, lambda: ray.get(fails.remote(t + "fails"), timeout=30))
    never = raises(ray.exceptions.WorkerCrashedError, lambda: ray.get(dies.options(max_retries=0).remote(t + "never"), timeout=30))
    assert [len(open(t + n).read()) for n in ("dies", "fails", "never")] == [3, 2, 1]
    return f"killed twice: 3 runs; retry_exceptions: 2 runs; max_retries=0: {never}"


@point("tasks.spread")
def spread():
    seen = collections.Counter(ray.get([where.options(scheduling_strategy="SPREAD", num_cpus=0.1).remote() for _ in range(20)], timeout=30))
    assert len(seen) == 2 and min(seen.values()) >= 5, seen
    return str(dict(seen))


@point("tasks.affinity")
def affinity():
    got = {n: set(ray.get([where.options(scheduling_strategy=on(n)).remote() for _ in range(5)], timeout=30)) for n in NODES}
    assert got == {n: {n} for n in NODES}, got
    gone = raises(ray.exceptions.RayError, lambda: ray.get(where.options(scheduling_strategy=on("local-99")).remote(), timeout=20))
    soft = ray.get(where.options(scheduling_strategy=on("local-99", True)).remote(), timeout=20)
    return f"each on its node; no such node: {gone}; soft: {soft}"


@point("tasks.labels")
def labels():
    strategy = NodeLabelSchedulingStrategy(hard={"zone": In("a")})
    got = set(ray.get([where.options(scheduling_strategy=strategy).remote() for _ in range(6)], timeout=20))
    none = raises(ray.exceptions.RayError, lambda: ray.get(where.options(scheduling_strategy=NodeLabelSchedulingStrategy(hard={"zone": In("b")})).remote(), timeout=20))
    assert got and got <= set(NODES)
    return f"zone a: {sorted(got)}; zone b: {none}"


@point("tasks.runtime-env")
def runtime_env():
    d = os.environ["TMPDIR"] + "/code"
    os.makedirs(d, exist_ok=True)
    with open(d + "/mine_here.py", "w") as f:
        f.write("VALUE = 42\n")

    @ray.remote(runtime_env={"env_vars": {"FLAVOUR": "sour"}, "working_dir": d})
    def look():
        import mine_here

        return os.environ["FLAVOUR"], mine_here.VALUE, os.getcwd()

    @ray.remote
    def plain():
        return os.environ.get("FLAVOUR"), os.getcwd()

    got, other = ray.get(look.remote(), timeout=30), ray.get(plain.remote(), timeout=30)
    assert got[:2] == ("sour", 42) and other[0] is None and other[1] != got[2], (got, other)
    pip = raises(Exception, lambda: ray.get(plain.options(runtime_env={"pip": ["x"]}).remote(), timeout=20), "pip")
    return f"{got}; without: {other}; pip: {pip}"


@point("tasks.priority")
def priority():
    log = os.environ["TMPDIR"] + "/order"

    @ray.remote(num_cpus=3)
    def note(what):
        with open(log, "a") as f:
            f.write(what)

    with full():
        low = [note.options(priority=0).remote("l") for _ in range(6)]
        high = [note.options(priority=5).remote("h") for _ in range(6)]
        eventually("all wait", lambda: sum(c["count"] for c in launcher("tasks")["counts"] if "note" in c["name"]) == 12)
    ray.get(low + high, timeout=30)
    order = open(log).read()
    assert order.rindex("h") < 9 and order.count("h") == 6, order
    return f"six of priority 5 submitted after six of 0: {order}"


def workers_now():
    """Pids of this cluster's workers, which are named so; templates are not."""
    out = []
    for d in glob.glob("/proc/[0-9]*"):
        try:
            env = open(d + "/environ", "rb").read().split(b"\0")
            if b"LAUNCHER_CLUSTER=" + CLUSTER in env and open(d + "/comm").read().startswith("worker-"):
                out.append(int(d[6:]))
        except OSError:
            pass
    return out


@point("tasks.recursion", 120)
def recursion():
    """500 deep: a task that waits lends its core."""

    @ray.remote
    def down(n):
        return (0, os.getpid()) if n == 0 else (1 + ray.get(down.remote(n - 1))[0], os.getpid())

    ref, most = down.remote(500), 0
    while not ray.wait([ref], timeout=0.1)[0]:
        most = max(most, len(workers_now()))
    depth = ray.get(ref, timeout=60)[0]
    bound = int(ray.cluster_resources()["CPU"]) + 64 * len(NODES)
    assert depth == 500 and 0 < most <= bound, f"{depth} deep, {most} workers, {bound} are allowed"
    return f"500 deep with at most {most} workers on two nodes (cores + 64 on each is {bound})"


@point("tasks.refs")
def refs():
    @ray.remote
    def add(a, b):
        return a + b

    @ray.remote
    def inner(boxed):
        return type(boxed[0]).__name__, ray.get(boxed[0])

    r = ray.put(1)
    for _ in range(10):
        r = add.remote(r, 1)
    boxed = ray.get(inner.remote([ray.put("deep")]), timeout=20)
    assert ray.get(r, timeout=20) == 11 and boxed == ("ObjectRef", "deep"), boxed

    @ray.remote
    def make():
        return [ray.put(i) for i in range(5)]

    made = ray.get(make.remote(), timeout=20)
    assert ray.get(made, timeout=20) == [0, 1, 2, 3, 4]
    return "a chain of ten, a reference inside an argument, five inside a result"


@point("tasks.locality")
def locality():
    @ray.remote
    def make():
        return np.ones(16 << 20, dtype=np.uint8)

    @ray.remote
    def use(a):
        return where_am_i()

    rounds = []

    def goes_there():
        big = make.options(scheduling_strategy=on(THERE)).remote()
        ray.wait([big], fetch_local=False, timeout=20)
        rounds.append(collections.Counter(ray.get([use.remote(big) for _ in range(3)], timeout=30)))
        return rounds[-1][THERE] >= 2

    # They wait 200 ms for room there, which on a busy machine may come later than that. Nothing
    # but the object takes them there: this node has room.
    eventually("tasks run where their argument is", goes_there)
    return f"three tasks with 16 MiB that {THERE} has ran on {dict(rounds[-1])}, in round {len(rounds)}"


@point("tasks.cancel")
def cancel():
    mark = os.environ["TMPDIR"] + "/cancelled"

    @ray.remote(max_retries=0)
    def child():
        try:
            while True:
                time.sleep(0.01)
        except BaseException:
            open(mark + ".child", "w").close()
            raise

    @ray.remote(max_retries=0)
    def parent():
        return ray.get(child.remote())

    @ray.remote(max_retries=0)
    def deaf():
        while True:
            try:
                time.sleep(0.05)
            except BaseException:
                pass

    p = parent.remote()
    eventually("the child runs", lambda: any(t["state"] == "running" and "child" in t["name"] for t in launcher("tasks")["sdk"]))
    ray.cancel(p)
    told = raises(ray.exceptions.TaskCancelledError, lambda: ray.get(p, timeout=20))
    eventually("the child is cancelled too", lambda: os.path.exists(mark + ".child"))
    d = deaf.remote()
    eventually("it runs", lambda: any(t["state"] == "running" and "deaf" in t["name"] for t in launcher("tasks")["sdk"]))
    ray.cancel(d, force=True)
    forced = raises(ray.exceptions.RayError, lambda: ray.get(d, timeout=20))
    with full():
        w = sleep.remote(0)
        ray.cancel(w)
        waiting = raises(ray.exceptions.TaskCancelledError, lambda: ray.get(w, timeout=0.9))
    return f"running, with its child: {told}; one that ignores it, by force: {forced}; waiting: {waiting}"


@point("tasks.timeouts")
def timeouts():
    r = sleep.remote(2)
    start = time.monotonic()
    text = raises(ray.exceptions.GetTimeoutError, lambda: ray.get(r, timeout=0.2))
    took = time.monotonic() - start
    ready, rest = ray.wait([r], timeout=0.1)
    assert took < 0.5 and ready == [] and rest == [r], took
    ready, rest = ray.wait([sleep.remote(0.1), r], num_returns=1, timeout=5)
    assert len(ready) == 1 and rest == [r]
    ray.get(r, timeout=20)
    return f"get after {took:.2f} s: {text}"


class Mine(Exception):
    def __init__(self, code, what):
        super().__init__(code, what)
        self.code = code


@point("tasks.exceptions")
def exceptions():
    @ray.remote
    def fails():
        deep_inside()

    def deep_inside():
        raise Mine(7, "it broke")

    @ray.remote
    def uses(v):
        return v

    globals()["deep_inside"] = deep_inside
    try:
        ray.get(uses.remote(fails.remote()), timeout=20)
        raise AssertionError("no error")
    except Mine as e:
        assert isinstance(e, ray.exceptions.RayTaskError) and e.code == 7, repr(e)
        text = str(e)
    assert "deep_inside" in text and "it broke" in text and "pid" in text, text
    return f"also a {Mine.__name__} with its attributes, through a task that had it as argument; the traceback names deep_inside"


@point("tasks.await")
def awaited():
    async def all_of_them():
        return await asyncio.gather(*[sleep.remote(0.05, i) for i in range(5)])

    got = asyncio.run(all_of_them())
    f = sleep.remote(0, "future").future()
    assert got == list(range(5)) and f.result(timeout=20) == "future"
    return "five awaited; future().result()"


@point("tasks.context")
def context():
    @ray.remote(name="called-so")
    def me():
        c = ray.get_runtime_context()
        return c.get_task_name(), c.get_node_id(), len(c.get_task_id()), os.environ["OMP_NUM_THREADS"]

    name, node, n, omp = ray.get(me.remote(), timeout=20)
    assert name == "called-so" and node in NODES and n == 32 and omp == "1", (name, node, n, omp)
    total, free = ray.cluster_resources(), ray.available_resources()
    assert total["CPU"] == 6 and free["CPU"] <= 6, (total, free)
    return f"task {name} on {node}; the cluster has {total['CPU']:g} cores; OMP_NUM_THREADS={omp}"


@point("workers.rate", 90)
def rate():
    """Workers that have numpy: a worker per task."""

    @ray.remote(max_calls=1, num_cpus=0.5)
    def one():
        import numpy

        return os.getpid(), float(numpy.random.rand())

    ray.get([one.remote() for _ in range(8)], timeout=30)
    n = 200
    start = time.perf_counter()
    got = ray.get([one.remote() for _ in range(n)], timeout=60)
    took = time.perf_counter() - start
    pids, numbers = {p for p, _ in got}, {v for _, v in got}
    assert len(pids) == n, f"{len(pids)} processes for {n} tasks"
    assert len(numbers) == n, "numpy's generator is the same in several workers"
    assert n / took >= 100, f"{n / took:.0f} workers/s"
    return f"{n / took:.0f} workers/s on {os.cpu_count()} cores with other work (goal 200); {n} different numbers of numpy.random"


@point("workers.output")
def output():
    code = """
import time
import launcher as ray
ray.init()
@ray.remote
def talk(i):
    print("the same line")
    print("only", "abcdef"[i])
    time.sleep(0.3)
ray.get([talk.remote(i) for i in range(6)], timeout=20)
time.sleep(1.5)
"""
    out = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout
    named = re.findall(r"^\(.*pid=\d+.*\) only [a-f]$", out, re.M)
    shown = len(re.findall("the same line(?!.*repeated)", out))
    assert len(named) == 6 and shown < 6 and "repeated" in out, out
    return f"six lines with the worker's name and pid; the equal ones of six workers shown {shown} times: {re.search('.*repeated.*', out).group(0)[-60:]}"


@point("scheduling.queued", 150)
def queued():
    """Many queued tasks: memory of agent and head bounded, nothing lost."""
    n = int(os.environ.get("QUEUED", "200000"))

    def memory():
        return sum(resident_kb(p) for k in ("agent", "head") for p in processes(k))

    @ray.remote
    def nothing():
        return 1

    with full():
        before, start = memory(), time.perf_counter()
        refs = [nothing.remote() for _ in range(n)]
        submitted = time.perf_counter() - start
        counts = [c for c in launcher("tasks")["counts"] if "nothing" in c["name"]]
        waiting = sum(c["count"] for c in counts if c["state"] == "queued")
        grown = (memory() - before) * 1024 / n
    start = time.perf_counter()
    done = sum(sum(ray.get(refs[i : i + 10000], timeout=100)) for i in range(0, n, 10000))
    took = time.perf_counter() - start
    assert done == n and waiting == n and len(counts) == 1 and grown < 2000, (done, waiting, counts, grown)
    return f"{n} submitted in {submitted:.1f} s, one line of launcher tasks, {grown:.0f} bytes each in agents and head, all done {took:.1f} s after there was room"


@point("show.tasks")
def show_tasks():
    with full():
        a = sleep.options(name="queued-one").remote(0)
        b = sleep.options(name="waits-for-it").remote(0, a)
        by = {t["name"]: t for t in launcher("tasks")["sdk"]}
        assert by["queued-one"]["state"] == "queued" and by["queued-one"].get("why"), by.get("queued-one")
        assert by["waits-for-it"]["state"] == "waiting" and by["waits-for-it"]["waits_for"] == [a.hex()], by.get("waits-for-it")
        why = launcher("why", by["waits-for-it"]["id"])["lines"]
        assert why and launcher("why", by["queued-one"]["id"])["lines"]
    ray.get(b, timeout=20)
    return f"{by['queued-one']['why']}; why: {' / '.join(why)}"


@point("show.timeline")
def show_timeline():
    ray.get([sleep.options(name="on-the-line").remote(0.01) for _ in range(5)], timeout=20)
    mine = eventually("the events are there", lambda: [e for e in launcher("timeline")["traceEvents"] if e["name"] == "on-the-line"])
    own = [e for e in ray.timeline() if e.get("name") == "on-the-line"]
    assert len(mine) == 5 and all(e["ph"] == "X" and 1e4 <= e["dur"] < 1e6 for e in mine) and len(own) == 5, (mine[:1], len(own))
    return f"5 bars of {mine[0]['dur'] / 1000:.1f} ms in launcher timeline, {len(own)} in timeline()"


if __name__ == "__main__":
    main()
