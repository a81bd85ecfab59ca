"""The workloads of tasks and objects, with the names and definitions that Ray gives them.

    python -m launcher._bench [--rows NAME,...] [--short] [--queued N]
    python .../launcher/_bench.py --with ray ...

The same file runs against either: it is the whole difference which module is imported.
It prints a line of JSON per row. A rate is measured as there: calls for a second to warm
up, then four rounds of at least two seconds each; the figure is their mean, with their
standard deviation. Each row stands beside what the machine can do at best, measured in
the same process, and with the share of the CPU time that the host took meanwhile.

Where Ray has actors as clients, tasks without cores do the same here.
"""

import sys

if __name__ == "__main__" and not __package__:
    sys.path.pop(0)  # the files beside this one are no modules of their own: types, for one

import argparse
import functools
import gc
import importlib.util
import json
import os
import pickle
import socket
import statistics
import subprocess
import tempfile
import time
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

ray: Any = None  # the module under test


class Options(NamedTuple):
    """How long to measure, and how much."""

    warm: float
    rounds: int
    least: float  # seconds of a round
    queued: int
    many: int  # arguments, objects


class Row(NamedTuple):
    """A workload: run gives (value, standard deviation, what n was)."""

    unit: str
    less: bool  # less is better
    run: Callable[[Options], Tuple[float, float, int]]
    limit: Optional[Callable[[], float]] = None
    limit_is: str = ""


ROWS: Dict[str, Row] = {}


def row(unit: str, less: bool = False, limit: Optional[Callable[[], float]] = None, limit_is: str = "") -> Callable[[Callable[[Options], Tuple[float, float, int]]], None]:
    """Register a workload under its function's name, less the underscores before it."""

    def add(run: Callable[[Options], Tuple[float, float, int]]) -> None:
        ROWS[run.__name__.lstrip("_")] = Row(unit, less, run, limit, limit_is)

    return add


def rate(call: Callable[[], Any], multiplier: float, o: Options) -> Tuple[float, float, int]:
    """Calls per second, times what one call counts for."""
    count, end = 0, time.perf_counter() + o.warm
    while time.perf_counter() < end:
        call()
        count += 1
    step = count // 10 + 1
    rates = []
    for _ in range(o.rounds):
        calls, start = 0, time.perf_counter()
        while time.perf_counter() - start < o.least:
            for _ in range(step):
                call()
            calls += step
        rates.append(multiplier * calls / (time.perf_counter() - start))
    return statistics.mean(rates), statistics.stdev(rates) if len(rates) > 1 else 0.0, step


def once(call: Callable[[], Any], n: int) -> Tuple[float, float, int]:
    """Seconds of one call, for what is too large to repeat."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start, 0.0, n


# What the machine can do at best.


def round_trips() -> float:
    """A task's way, as bare messages: from the driver to the agent, from there to the worker,
    and back."""
    driver, agent = socket.socketpair()
    above, worker = socket.socketpair()

    def serve(at: socket.socket, answer: Callable[[bytes], bytes], *others: socket.socket) -> int:
        pid = os.fork()
        if pid == 0:
            for s in others:
                s.close()
            while True:
                m = at.recv(64)
                if not m:
                    os._exit(0)
                at.send(answer(m))
        return pid

    def ask(m: bytes) -> bytes:
        above.send(m)
        return above.recv(64)

    pids = [serve(agent, ask, driver, worker), serve(worker, lambda m: m, driver, agent, above)]
    for s in (agent, above, worker):
        s.close()
    n = 0
    start = time.perf_counter()
    while time.perf_counter() - start < 0.5:
        for _ in range(100):
            driver.send(b"x")
            driver.recv(64)
        n += 100
    got = n / (time.perf_counter() - start)
    driver.close()
    for pid in pids:
        os.waitpid(pid, 0)
    return got


def pickled_calls() -> float:
    """A call in one process, with its function, arguments and result pickled."""
    work = pickle.dumps((small_value, ()), 5)
    n = 0
    start = time.perf_counter()
    while time.perf_counter() - start < 0.5:
        for _ in range(1000):
            f, args = pickle.loads(work)
            pickle.loads(pickle.dumps(f(*args), 5))
        n += 1000
    return n / (time.perf_counter() - start)


def pickled_values() -> float:
    """A small value pickled and unpickled."""
    n = 0
    start = time.perf_counter()
    while time.perf_counter() - start < 0.5:
        for _ in range(1000):
            pickle.loads(pickle.dumps(0, 5))
        n += 1000
    return n / (time.perf_counter() - start)


def memcpy() -> float:
    """A copy into memory that has been touched. As in the rows, 800 MiB count as 0.8 GB."""
    import numpy

    source = numpy.zeros(100 * 1024 * 1024, dtype=numpy.int64)
    target = numpy.ones_like(source)
    best = 0.0
    for _ in range(4):
        start = time.perf_counter()
        numpy.copyto(target, source)
        best = max(best, 0.8 / (time.perf_counter() - start))
    return best


def small_value() -> bytes:
    """The task of most rows."""
    return b"ok"


def remote(f: Callable[..., Any], **options: Any) -> Any:
    """f as a remote function of the module under test."""
    return ray.remote(**options)(f) if options else ray.remote(f)


# Objects.


@row("gets/s", limit=pickled_values, limit_is="pickle and unpickle 0")
def _single_client_get_calls(o: Options) -> Tuple[float, float, int]:
    ref = ray.put(0)
    return rate(lambda: ray.get(ref), 1, o)


@row("puts/s", limit=pickled_values, limit_is="pickle and unpickle 0")
def _single_client_put_calls(o: Options) -> Tuple[float, float, int]:
    return rate(lambda: ray.put(0), 1, o)


@row("puts/s")
def _multi_client_put_calls(o: Options) -> Tuple[float, float, int]:
    def put_100() -> None:
        for _ in range(100):
            ray.put(0)

    f = remote(put_100)
    return rate(lambda: ray.get([f.remote() for _ in range(10)]), 1000, o)


@row("GB/s", limit=memcpy, limit_is="a copy into touched memory")
def _single_client_put_gigabytes(o: Options) -> Tuple[float, float, int]:
    import numpy

    data = numpy.zeros(100 * 1024 * 1024, dtype=numpy.int64)
    return rate(lambda: ray.put(data), 0.8, o)


@row("GB/s", limit=memcpy, limit_is="a copy into touched memory, on one core")
def _multi_client_put_gigabytes(o: Options) -> Tuple[float, float, int]:
    def put_10() -> None:
        import numpy

        for _ in range(10):
            ray.put(numpy.zeros(10 * 1024 * 1024, dtype=numpy.int64))

    f = remote(put_10)
    return rate(lambda: ray.get([f.remote() for _ in range(10)]), 8, o)


@row("gets/s")
def _single_client_get_object_containing_10k_refs(o: Options) -> Tuple[float, float, int]:
    def refs() -> List[Any]:
        return [ray.put(1) for _ in range(10000)]

    ref = remote(refs).remote()
    return rate(lambda: ray.get(ref), 1, o)


# Tasks.


@row("tasks/s", limit=round_trips, limit_is="two round trips of a byte between three processes")
def _single_client_tasks_sync(o: Options) -> Tuple[float, float, int]:
    f = remote(small_value)
    return rate(lambda: ray.get(f.remote()), 1, o)


@row("tasks/s", limit=pickled_calls, limit_is="the same call pickled, in one process")
def _single_client_tasks_async(o: Options) -> Tuple[float, float, int]:
    f = remote(small_value)
    return rate(lambda: ray.get([f.remote() for _ in range(1000)]), 1000, o)


@row("batches/s")
def _single_client_tasks_and_get_batch(o: Options) -> Tuple[float, float, int]:
    f = remote(small_value)

    def batch() -> None:
        ray.get([f.remote() for _ in range(1000)])

    return rate(batch, 1, o)


@row("tasks/s", limit=pickled_calls, limit_is="the same call pickled, in one process")
def _multi_client_tasks_async(o: Options) -> Tuple[float, float, int]:
    each = 10000 if o.many >= 10000 else 1000
    f = remote(small_value)

    def client(g: Any) -> None:
        ray.get([g.remote() for _ in range(each)])

    c = remote(client, num_cpus=0)
    return rate(lambda: ray.get([c.remote(f) for _ in range(4)]), 4 * each, o)


@row("waits/s")
def _single_client_wait_1k_refs(o: Options) -> Tuple[float, float, int]:
    f = remote(small_value)

    def wait_all() -> None:
        left, first = [f.remote() for _ in range(1000)], True
        while left:
            _, left = ray.wait(left, num_returns=1, fetch_local=first)
            first = False

    return rate(wait_all, 1, o)


# What one node takes.


@row("s", less=True)
def _10000_args(o: Options) -> Tuple[float, float, int]:
    def sum_args(*args: List[int]) -> int:
        return sum(sum(a) for a in args)

    args = [ray.put([1] * 10000) for _ in range(o.many)]
    f = remote(sum_args)

    def call() -> None:
        if ray.get(f.remote(*args)) != 10000 * o.many:
            raise AssertionError("a wrong sum")

    return once(call, o.many)


@row("s", less=True)
def _3000_returns(o: Options) -> Tuple[float, float, int]:
    n = min(3000, o.many)

    def lists() -> Any:
        return tuple([1] * 10000 for _ in range(n))

    f = remote(lists, num_returns=n)

    def call() -> None:
        if sum(len(v) for v in ray.get(f.remote())) != 10000 * n:
            raise AssertionError("wrong lists")

    return once(call, n)


@row("s", less=True)
def _10000_get(o: Options) -> Tuple[float, float, int]:
    import numpy

    def call() -> None:
        refs = [ray.put(numpy.arange(10000)) for _ in range(o.many)]
        if sum(int(a[-1]) for a in ray.get(refs)) != 9999 * o.many:
            raise AssertionError("wrong arrays")

    return once(call, o.many)


@row("tasks/s")
def _queued(o: Options) -> Tuple[float, float, int]:
    """Tasks queued behind tasks that hold all cores, then run, per second of both."""
    gate = os.path.join(tempfile.mkdtemp(), "open")

    def hold() -> None:
        while not os.path.exists(gate):
            time.sleep(0.01)

    def nothing() -> None:
        return None

    cores = int(ray.cluster_resources().get("CPU", 1))
    held = [remote(hold).remote() for _ in range(cores)]
    f = remote(nothing)
    start = time.perf_counter()
    refs = [f.remote() for _ in range(o.queued)]
    with open(gate, "w"):
        pass
    for r in refs:
        ray.get(r)
    took = time.perf_counter() - start
    ray.get(held)
    os.unlink(gate)
    os.rmdir(os.path.dirname(gate))
    return o.queued / took, 0.0, o.queued


# Actors. N of them where there are several: as many as half the cores, at least two.


N = max(2, (os.cpu_count() or 1) // 2)
SYNC = 5000  # calls of one round of n:n


class Echo:
    """What is called."""

    def small_value(self) -> bytes:
        return b"ok"

    def small_value_arg(self, x: Any) -> bytes:
        return b"ok"

    def small_value_batch(self, actors: List[Any], n: int) -> None:
        ray_of().get([actors[i % len(actors)].small_value.remote() for i in range(n)])

    def small_value_batch_arg(self, actors: List[Any], n: int) -> None:
        here = ray_of()
        x = here.put(0)
        here.get([a.small_value_arg.remote(x) for a in actors for _ in range(n)])


class AsyncEcho:
    """The same, async."""

    async def small_value(self) -> bytes:
        return b"ok"

    async def small_value_with_arg(self, x: Any) -> bytes:
        return b"ok"


def ray_of() -> Any:
    """The module under test, in a worker."""
    return sys.modules.get("ray") or importlib.import_module("launcher")


def actors(n: int, made: Any = Echo, **options: Any) -> List[Any]:
    """n actors that are up."""
    c = ray.remote(num_cpus=0, **options)(made)
    out = [c.remote() for _ in range(n)]
    ray.get([a.small_value.remote() for a in out])
    return out


def drop(of: List[Any]) -> None:
    """End actors, so that the next row has the machine for itself."""
    for a in of:
        ray.kill(a)


def calls(of: List[Any], call: Callable[[List[Any]], Any], multiplier: float, o: Options) -> Tuple[float, float, int]:
    """Calls per second of some actors, which end after it."""
    try:
        return rate(lambda: call(of), multiplier, o)
    finally:
        drop(of)


@row("calls/s", limit=round_trips, limit_is="two round trips of a byte between three processes")
def _1_1_actor_calls_sync(o: Options) -> Tuple[float, float, int]:
    return calls(actors(1), lambda a: ray.get(a[0].small_value.remote()), 1, o)


@row("calls/s", limit=pickled_calls, limit_is="the same call pickled, in one process")
def _1_1_actor_calls_async(o: Options) -> Tuple[float, float, int]:
    return calls(actors(1), lambda a: ray.get([a[0].small_value.remote() for _ in range(1000)]), 1000, o)


@row("calls/s", limit=pickled_calls, limit_is="the same call pickled, in one process")
def _1_1_actor_calls_concurrent(o: Options) -> Tuple[float, float, int]:
    return calls(actors(1, max_concurrency=16), lambda a: ray.get([a[0].small_value.remote() for _ in range(1000)]), 1000, o)


@row("calls/s")
def _1_n_actor_calls_async(o: Options) -> Tuple[float, float, int]:
    return calls(actors(N + 1), lambda a: ray.get(a[0].small_value_batch.remote(a[1:], SYNC)), SYNC, o)


@row("calls/s")
def _n_n_actor_calls_async(o: Options) -> Tuple[float, float, int]:
    def work(a: List[Any]) -> None:
        here = ray_of()
        here.get([a[i % len(a)].small_value.remote() for i in range(SYNC)])

    f = remote(work, num_cpus=0)
    return calls(actors(N), lambda a: ray.get([f.remote(a) for _ in range(N)]), N * SYNC, o)


@row("calls/s")
def _n_n_actor_calls_with_arg_async(o: Options) -> Tuple[float, float, int]:
    return calls(actors(2 * N), lambda a: ray.get([a[i].small_value_batch_arg.remote([a[N + i]], 1000) for i in range(N)]), 1000 * N, o)


@row("calls/s", limit=round_trips, limit_is="two round trips of a byte between three processes")
def _1_1_async_actor_calls_sync(o: Options) -> Tuple[float, float, int]:
    return calls(actors(1, AsyncEcho), lambda a: ray.get(a[0].small_value.remote()), 1, o)


@row("calls/s", limit=pickled_calls, limit_is="the same call pickled, in one process")
def _1_1_async_actor_calls_async(o: Options) -> Tuple[float, float, int]:
    return calls(actors(1, AsyncEcho), lambda a: ray.get([a[0].small_value.remote() for _ in range(1000)]), 1000, o)


@row("calls/s", limit=pickled_calls, limit_is="the same call pickled, in one process")
def _1_1_async_actor_calls_with_args_async(o: Options) -> Tuple[float, float, int]:
    return calls(actors(1, AsyncEcho), lambda a: ray.get([a[0].small_value_with_arg.remote(i) for i in range(1000)]), 1000, o)


@row("executions/s", limit=round_trips, limit_is="two round trips of a byte between three processes")
def _compiled_graph_calls(o: Options) -> Tuple[float, float, int]:
    actor = ray.remote(Echo).remote()
    with importlib.import_module(ray.__name__ + ".dag").InputNode() as x:
        compiled = actor.small_value_arg.bind(x).experimental_compile()
    got = rate(lambda: ray.get(compiled.execute(b"ok")), 1, o)
    compiled.teardown()
    return got


@row("actors/s")
def _actor_start(o: Options) -> Tuple[float, float, int]:
    """Actors that are made and called once, 50 at a time."""
    c = ray.remote(num_cpus=0)(Echo)
    made = []
    for _ in range(o.rounds):
        start = time.perf_counter()
        of = [c.remote() for _ in range(50)]
        ray.get([a.small_value.remote() for a in of])
        made.append(50 / (time.perf_counter() - start))
        drop(of)
    return statistics.mean(made), statistics.stdev(made) if len(made) > 1 else 0.0, 50


@row("groups/s")
def _placement_group(o: Options) -> Tuple[float, float, int]:
    util = importlib.import_module(ray.__name__ + ".util")
    placement_group, remove_placement_group = util.placement_group, util.remove_placement_group

    def call() -> None:
        groups = [placement_group([{"CPU": 0.001}]) for _ in range(100)]
        for g in groups:
            if not g.wait(30):
                raise AssertionError("a group without room")
        for g in groups:
            remove_placement_group(g)

    return rate(call, 100, o)


@row("s", less=True)
def _init_to_first_result(o: Options) -> Tuple[float, float, int]:
    """init() with nothing up, to the first task's result, in a program of its own."""
    code = (
        f"import time, {ray.__name__} as ray\n"
        "def f(): return 1\n"
        "start = time.perf_counter()\n"
        "ray.init()\n"
        "assert ray.get(ray.remote(f).remote()) == 1\n"
        "print('took', time.perf_counter() - start)\n"
    )
    env = {k: v for k, v in os.environ.items() if k not in ("LAUNCHER_SOCKET", "LAUNCHER_CLUSTER", "RAY_ADDRESS")}
    took = []
    for _ in range(o.rounds):
        with tempfile.TemporaryDirectory() as home:
            env["LAUNCHER_HOME"] = home
            out = subprocess.run([sys.executable, "-c", code], env=env, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout.decode()
        took.append(float(out.split("took")[1]))
    return statistics.median(took), statistics.stdev(took) if len(took) > 1 else 0.0, o.rounds


def cpu_times() -> Tuple[int, int]:
    """Ticks that the host took from this machine, and all ticks."""
    try:
        with open("/proc/stat") as f:
            t = [int(v) for v in f.readline().split()[1:9]]
        return t[7], sum(t)
    except (OSError, IndexError, ValueError):
        return 0, 0


def chosen(names: str) -> Iterator[str]:
    """The rows to run, in their order here. A name may be a part of several."""
    parts = [p for p in names.split(",") if p]
    for p in parts:
        if not any(p in n for n in ROWS):
            sys.exit(f"error: there is no row {p!r}\nhint: there are: {', '.join(ROWS)}")
    for n in ROWS:
        if not parts or any(p in n for p in parts):
            yield n


def main() -> None:
    """Run the rows that were asked for."""
    global ray
    p = argparse.ArgumentParser(prog="launcher._bench")
    p.add_argument("--with", dest="module", choices=("launcher", "ray"), default="launcher")
    p.add_argument("--rows", default="", help="names, or parts of names, separated by commas")
    p.add_argument("--short", action="store_true", help="a look, not a measurement")
    p.add_argument("--queued", type=int, default=0, help="tasks of the row queued (1,000,000)")
    p.add_argument("--list", action="store_true")
    a = p.parse_args()
    if a.module == "launcher" and importlib.util.find_spec("launcher"):
        for name, (run, limit, limit_is) in importlib.import_module("launcher._bench_channels").ROWS.items():
            ROWS[name] = Row("us", True, functools.partial(run, rate), limit, limit_is)
    names = list(chosen(a.rows))
    if a.list:
        print("\n".join(names))
        return
    ray = importlib.import_module(a.module)
    o = Options(1.0, 4, 2.0, a.queued or 1000000, 10000)
    if a.short:
        o = Options(0.2, 2, 0.3, a.queued or 10000, 1000)
    if names != ["init_to_first_result"]:
        ray.init()
        ray.get([remote(small_value).remote() for _ in range(100)])
    for name in names:
        r = ROWS[name]
        gc.collect()
        s0, t0 = cpu_times()
        value, sd, n = r.run(o)
        s1, t1 = cpu_times()
        line = {"row": name, "value": value, "sd": sd, "unit": r.unit, "n": n, "less": r.less, "steal": (s1 - s0) / max(1, t1 - t0)}
        if r.limit is not None:
            line["limit"], line["limit_is"] = r.limit(), r.limit_is
        print(json.dumps(line), flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main()
