"""Points about actors, on a cluster of two nodes with three cores each."""

import asyncio
import os
import signal
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "core"))
from points import eventually, launcher, main, point, raises  # noqa: E402

import launcher as ray  # noqa: E402
from launcher import exceptions  # noqa: E402

ray.init(namespace="points")


@ray.remote
class Log:
    """Keeps what it is told."""

    def __init__(self, first=None):
        self.lines = [] if first is None else [first]

    def add(self, v, wait=0):
        time.sleep(wait)
        self.lines.append(v)
        return len(self.lines)

    def all(self):
        return self.lines

    def pid(self):
        return os.getpid()

    def node(self):
        return ray.get_runtime_context().get_node_id()

    def die(self):
        os._exit(7)

    def leave(self):
        ray.actor.exit_actor()

    def count(self, n):
        yield from range(n)

    def fail(self):
        raise ZeroDivisionError("of the method")


@ray.remote
def slow(v, s):
    time.sleep(s)
    return v


@point("actors.order")
def order():
    a = Log.remote()
    late = slow.remote("late", 0.5)
    refs = [a.add.remote(late)] + [a.add.remote(i) for i in range(200)]
    ray.get(refs, timeout=30)
    got = ray.get(a.all.remote())
    assert got == ["late", *range(200)], got[:5]
    return "200 calls behind one whose argument came 0.5 s late: all in order"


@point("actors.callers")
def callers():
    a = Log.remote()

    @ray.remote
    def call(a, k):
        return ray.get([a.add.remote((k, i)) for i in range(50)])

    ray.get([call.options(scheduling_strategy="SPREAD").remote(a, k) for k in range(6)], timeout=60)
    lines = ray.get(a.all.remote())
    for k in range(6):
        mine = [i for c, i in lines if c == k]
        assert mine == list(range(50)), mine
    return "6 tasks on two nodes with a handle, 50 calls each: each caller's in order"


@point("actors.names")
def names():
    a = Log.options(name="log").remote("x")
    b = ray.get_actor("log")
    assert ray.get(b.all.remote()) == ["x"] and b == a
    taken = raises(ValueError, lambda: Log.options(name="log").remote())
    assert ray.get(Log.options(name="log", get_if_exists=True).remote().pid.remote()) == ray.get(a.pid.remote())
    other = Log.options(name="log", namespace="other").remote("y")
    assert ray.get(ray.get_actor("log", namespace="other").all.remote()) == ["y"]
    listed = ray.util.list_named_actors()
    assert "log" in listed, listed

    @ray.remote
    def found():
        return ray.get(ray.get_actor("log").all.remote())

    assert ray.get(found.options(scheduling_strategy="SPREAD").remote(), timeout=20) == ["x"]
    ray.kill(a)
    unknown = raises(ValueError, lambda: ray.get_actor("log"))
    for i in range(10):  # who was killed is not in the way of the next
        a = Log.options(name="log").remote(i)
        ray.kill(a)
    eventually("it ends", lambda: "log" not in ray.util.list_named_actors(), 10)
    del other
    return f"taken: {taken}; after its death: {unknown}"


@point("actors.detached")
def detached():
    code = """
import launcher as ray
ray.init(namespace="points")
@ray.remote
class Stays:
    def __init__(self): self.n = 0
    def add(self): self.n += 1; return self.n
a = Stays.options(name="stays", lifetime="detached").remote()
b = Stays.options(name="goes").remote()
print(ray.get([a.add.remote(), b.add.remote()]))
"""
    import subprocess

    out = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=40)
    assert out.stdout.strip() == "[1, 1]", out.stderr[-300:]
    assert ray.get(ray.get_actor("stays").add.remote(), timeout=20) == 2
    eventually("it ends", lambda: "goes" not in ray.util.list_named_actors(), 10)
    ray.kill(ray.get_actor("stays"))
    eventually("it ends", lambda: "stays" not in ray.util.list_named_actors(), 10)
    return "the detached one outlived its program and its count went on, the other ended with it"


@point("actors.scope")
def scope():
    a = Log.remote()
    pid = ray.get(a.pid.remote())

    @ray.remote
    def keep(box, s):
        time.sleep(s)
        return ray.get(box[0].add.remote("from the task"))

    r = keep.remote([a], 1.0)
    del a
    assert ray.get(r, timeout=20) == 1
    del r
    eventually("it ends", lambda: not os.path.exists(f"/proc/{pid}"), 15)
    return "it lived for the handle inside a task's argument, and ended with the last one"


@point("actors.outside")
def outside():
    a, text, large = Log.remote(), ray.put("text"), ray.put(list(range(100_000)))

    @ray.remote(scheduling_strategy="SPREAD")
    def uses(i):
        return ray.get(a.add.remote(i)), ray.get(text), len(ray.get(large))

    @ray.remote(max_restarts=1, max_task_retries=1)
    class Uses:
        def use(self):
            return ray.get(text), len(ray.get(large))

    @ray.remote
    def deeper(n):
        return ray.get(a.all.remote()) if n == 0 else ray.get(deeper.remote(n - 1))

    @ray.remote(max_calls=1)  # its process ends
    def maker():
        here = Log.remote("made")

        @ray.remote
        def later():
            return ray.get(here.all.remote())

        return [later.remote()]

    b, refs, inner = Uses.remote(), [uses.remote(i) for i in range(12)], ray.get(maker.remote())
    assert len(ray.get(deeper.remote(3), timeout=20)) <= 12
    del a, text, large, uses
    assert {x[1:] for x in ray.get(refs, timeout=30)} == {("text", 100_000)}
    assert ray.get(b.use.remote(), timeout=20) == ("text", 100_000)
    ray.kill(b, no_restart=False)
    assert ray.get(b.use.remote(), timeout=20) == ("text", 100_000)
    assert ray.get(inner, timeout=20) == [["made"]]
    return "functions and a class that use a handle and references of their program: on both nodes, recursive, restarted, after all others were gone"


@point("actors.restarts")
def restarts():
    a = Log.options(max_restarts=2, max_task_retries=1).remote("again")
    pids = []
    for _ in range(2):
        pids.append(ray.get(a.pid.remote(), timeout=20))
        os.kill(pids[-1], signal.SIGKILL)
        assert ray.get(a.all.remote(), timeout=20) == ["again"]
    os.kill(ray.get(a.pid.remote()), signal.SIGKILL)
    dead = raises(exceptions.ActorDiedError, lambda: ray.get(a.all.remote(), timeout=20))
    b = Log.options(max_restarts=1).remote()
    pid = ray.get(b.pid.remote(), timeout=20)
    busy = b.add.remote(1, 30)
    time.sleep(0.3)
    os.kill(pid, signal.SIGKILL)
    raises(exceptions.ActorUnavailableError, lambda: ray.get(busy, timeout=20))
    assert ray.get(b.add.remote(2), timeout=20) == 1
    return f"2 restarts, then {dead}; a call that ran and may not be repeated is ActorUnavailableError"


@point("actors.ends")
def ends():
    @ray.remote
    class Bad:
        def __init__(self):
            raise KeyError("of the constructor")

        def f(self):
            pass

    e = raises(exceptions.ActorDiedError, lambda: ray.get(Bad.remote().f.remote(), timeout=20))
    assert "of the constructor" in e, e
    a = Log.remote()
    raises(exceptions.ActorDiedError, lambda: ray.get(a.leave.remote(), timeout=20))
    b = Log.remote()
    raises(exceptions.RayActorError, lambda: ray.get(b.die.remote(), timeout=20))
    c = Log.remote()
    raises(ZeroDivisionError, lambda: ray.get(c.fail.remote(), timeout=20))
    assert ray.get(c.add.remote(1)) == 1
    d = Log.remote()
    r = d.add.remote(1, 60)
    ray.kill(d)
    k = raises(exceptions.ActorDiedError, lambda: ray.get(r, timeout=20))
    raises(AttributeError, lambda: c.nothing.remote())
    raises(TypeError, lambda: c.add(1))
    raises(TypeError, lambda: Log())
    raises(TypeError, ray.actor.exit_actor)
    raises(TypeError, lambda: ray.get(ray.remote(ray.actor.exit_actor).remote(), timeout=20))
    raises(ValueError, lambda: ray.get(c.add.options(concurrency_group="none").remote(1), timeout=20), "no concurrency group 'none'")
    return f"constructor, exit, crash, kill: {k}"


@point("actors.async")
def async_actor():
    @ray.remote
    class Gate:
        def __init__(self):
            self.gate = asyncio.Event()
            self.now = self.most = 0

        async def wait(self):
            self.now += 1
            self.most = max(self.most, self.now)
            await self.gate.wait()
            return self.most

        async def open(self):
            self.gate.set()

        async def numbers(self, n):
            for i in range(n):
                await asyncio.sleep(0)
                yield i

        async def for_ever(self):
            await asyncio.sleep(1000)

        async def other(self, ref):
            return await ref[0]

    a = Gate.remote()
    waiting = [a.wait.remote() for _ in range(100)]
    ray.get(a.open.remote(), timeout=20)
    most = max(ray.get(waiting, timeout=20))
    assert most == 100, most
    assert [ray.get(r) for r in a.numbers.remote(5)] == [0, 1, 2, 3, 4]
    assert ray.get(a.other.remote([slow.remote("v", 0.1)]), timeout=20) == "v"
    r = a.for_ever.remote()
    time.sleep(0.3)
    ray.cancel(r)
    raises(exceptions.TaskCancelledError, lambda: ray.get(r, timeout=20))
    b = Gate.options(max_concurrency=3).remote()
    waiting = [b.wait.remote() for _ in range(10)]
    done, _ = ray.wait([b.open.remote()], timeout=1)
    assert not done, "four calls at once where three are allowed"
    return "100 calls wait in one, generators, awaited references, cancel; max_concurrency holds"


@point("actors.threads")
def threads():
    @ray.remote(max_concurrency=4)
    class Meet:
        def __init__(self):
            self.barrier = threading.Barrier(4)

        def meet(self):
            return self.barrier.wait(10)

    @ray.remote(concurrency_groups={"io": 2, "compute": 1})
    class Groups:
        def __init__(self):
            self.go = threading.Event()

        @ray.method(concurrency_group="compute")
        def compute(self):
            return self.go.wait(20)

        @ray.method(concurrency_group="io")
        def io(self):
            self.go.set()
            return "io"

    m = Meet.remote()
    assert sorted(ray.get([m.meet.remote() for _ in range(4)], timeout=20)) == [0, 1, 2, 3]
    g = Groups.remote()
    blocked = [g.compute.remote() for _ in range(200)]
    assert ray.get(g.io.remote(), timeout=20) == "io"
    assert all(ray.get(blocked, timeout=30))
    return "four threads meet; a group whose 200 calls wait does not hold up another"


@point("actors.limits")
def limits():
    a = Log.options(max_pending_calls=3).remote()
    refs = [a.add.remote(i, 0.5) for i in range(3)]
    e = raises(exceptions.PendingCallsLimitExceeded, lambda: a.add.remote(4))
    ray.get(refs, timeout=20)
    assert ray.get(a.add.remote(5), timeout=20) == 4
    raises(ValueError, lambda: Log.options(max_restarts="many"))
    raises(ValueError, lambda: Log.options(num_returns=2))
    return e


@point("actors.unordered")
def unordered():
    a = Log.options(allow_out_of_order_execution=True).remote()
    late = slow.remote("late", 1.0)
    first = a.add.remote(late)
    others = [a.add.remote(i) for i in range(5)]
    ray.get(others, timeout=20)
    done, _ = ray.wait([first], timeout=0)
    assert not done
    ray.get(first, timeout=20)
    assert ray.get(a.all.remote())[-1] == "late"
    return "five calls overtook one whose argument was late"


@point("actors.streams")
def streams():
    a = Log.remote()
    assert [ray.get(r) for r in a.count.remote(100)] == list(range(100))
    for method in (a.count, a.count.options(_generator_backpressure_num_objects=4)):
        for r in method.remote(1 << 40):  # nobody reads on: the actor is free again
            if ray.get(r) == 5:
                break
        del r
        assert ray.get(a.add.remote(1), timeout=20) > 0
    return "100 items of a generator method; two endless ones that were left end"


@point("actors.cores")
def cores():
    many = [Log.options(num_cpus=0).remote() for _ in range(20)]
    assert len(set(ray.get([a.pid.remote() for a in many], timeout=60))) == 20
    one = [Log.options(num_cpus=3).remote() for _ in range(2)]
    nodes = ray.get([a.node.remote() for a in one], timeout=30)
    assert len(set(nodes)) == 2, nodes
    third = Log.options(num_cpus=3).remote()
    done, _ = ray.wait([third.pid.remote()], timeout=1)
    assert not done, "a third with 3 cores on 6"
    state = [x for x in launcher("actors")["actors"] if x["state"] == "pending"]
    assert state and "cpu=3" in state[0]["why"], state
    del one
    assert ray.get(third.pid.remote(), timeout=30)
    return f"20 without cores; two with three each on two nodes, the third waits: {state[0]['why']}"


@point("actors.show")
def show():
    a = Log.options(name="shown", max_restarts=1).remote()
    pid = ray.get(a.pid.remote(), timeout=20)
    os.kill(pid, signal.SIGKILL)
    new = eventually_pid(a, pid)
    r = [a.add.remote(i, 0.5) for i in range(5)]
    time.sleep(0.2)
    line = [x for x in launcher("actors")["actors"] if x["name"] == "shown"][0]
    assert line["state"] == "alive" and line["worker"] == new and line["lives"] == 2, line
    tasks = launcher("tasks")["counts"]
    assert not any(t["name"] == "Log" for t in tasks), tasks
    events = ray.get(r, timeout=20) and ray.timeline()
    assert sum(e["name"] == "Log.add" for e in events) >= 5
    return f"{ {k: line[k] for k in ('class', 'state', 'node', 'worker', 'lives')} }"


def eventually_pid(a, old):
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            pid = ray.get(a.pid.remote(), timeout=20)
            if pid != old:
                return pid
        except exceptions.ActorUnavailableError:
            pass
    raise AssertionError("no new life")


@point("actors.rate")
def rate():
    @ray.remote(num_cpus=0)
    class Numpy:
        def __init__(self):
            import numpy

            self.v = float(numpy.ones(3).sum())

        def get(self):
            return self.v

    ray.get(Numpy.remote().get.remote(), timeout=30)
    start = time.monotonic()
    many = [Numpy.remote() for _ in range(100)]
    assert ray.get([a.get.remote() for a in many], timeout=60) == [3.0] * 100
    took = time.monotonic() - start
    return f"100 actors with numpy imported and called in {took:.2f} s, {100 / took:.0f} a second"


main()
