"""A program for Ray: what of ray.util stands upon actors. Run by `launcher run --as-ray`."""

import asyncio
import operator
import os
import queue
import time

import numpy as np
import ray
import ray.util.collective as col
from ray.util import ActorPool, list_named_actors, state
from ray.util.collective.types import ReduceOp
from ray.util.dask import ray_dask_get, ray_dask_get_sync
from ray.util.helpers import as_completed, map_unordered
from ray.util.multiprocessing import Pool
from ray.util.multiprocessing import TimeoutError as PoolTimeout
from ray.util.queue import Empty, Full, Queue

ray.init(num_cpus=4)


def raises(kind, call):
    try:
        call()
    except kind as e:
        return e
    raise AssertionError(f"{kind.__name__} was not raised")


@ray.remote(num_cpus=0)
class Worker:
    def double(self, x):
        return 2 * x

    def held(self, x, gate):
        held(gate)
        return x


def held(gate):
    while not os.path.exists(gate):
        time.sleep(0.01)  # sleep: until it may go on


def opened(gate):
    open(gate, "w").close()


def actor_pool():
    p = ActorPool([Worker.remote(), Worker.remote()])
    double, slow = (lambda a, v: a.double.remote(v)), (lambda a, v: a.held.remote(*v))
    assert list(p.map(double, range(10))) == [2 * i for i in range(10)]
    assert sorted(p.map_unordered(double, range(10))) == [2 * i for i in range(10)]
    for v in (0, "gate-0"), (1, "/"), (2, "/"):
        p.submit(slow, v)
    assert not p.has_free() and p.pop_idle() is None
    raises(TimeoutError, lambda: p.get_next(timeout=0.001))
    assert [p.get_next_unordered() for _ in range(2)] == [1, 2]
    opened("gate-0")
    assert p.get_next_unordered() == 0
    assert not p.has_next() and p.has_free()
    raises(StopIteration, p.get_next)
    a = p.pop_idle()
    p.push(a)
    raises(ValueError, lambda: p.push(a))
    p.submit(double, 4)
    assert p.get_next() == 8
    p.submit(slow, (3, "gate-3"))
    raises(TimeoutError, lambda: p.get_next(timeout=0.001, ignore_if_timedout=True))
    opened("gate-3")
    assert not p.has_next()


def queues():
    assert issubclass(Empty, queue.Empty) and issubclass(Full, queue.Full)
    q = Queue(maxsize=2)
    q.put(1)
    q.put([2])
    assert q.full() and q.qsize() == len(q) == 2 and not q.empty()
    for full in (lambda: q.put_nowait(3), lambda: q.put(3, timeout=0.05), lambda: q.put_nowait_batch([1])):
        raises(Full, full)
    raises(ValueError, lambda: q.put(1, timeout=-1))
    assert q.get() == 1 and q.get_nowait() == [2]
    for empty in (q.get_nowait, lambda: q.get(timeout=0.05), lambda: q.get_nowait_batch(1)):
        raises(Empty, empty)
    q.put_nowait_batch([5, 6])
    assert q.get_nowait_batch(2) == [5, 6]

    @ray.remote(num_cpus=0)
    def producer(q):
        for i in range(10):
            q.put(i)

    made = producer.remote(q)
    assert [q.get(timeout=60) for _ in range(10)] == list(range(10))
    ray.get(made)

    async def both():
        await q.put_async("a")
        return await q.get_async()

    assert asyncio.run(both()) == "a"
    q.shutdown()


def square(x):
    return x * x


def not_three(x):
    if x == 3:
        raise ValueError("three")
    return x


def pool():
    def init(n):
        os.environ["POOL_INIT"] = str(n)

    with Pool(2, initializer=init, initargs=(7,)) as p:
        assert p.map(square, range(20)) == [i * i for i in range(20)]
        assert p.map(square, []) == []
        assert p.apply(lambda a, b=1: a + b, (1,), {"b": 5}) == 6
        assert p.starmap(operator.add, [(1, 2), (3, 4)]) == [3, 7]
        assert list(p.imap(square, iter(range(30)), chunksize=4)) == [i * i for i in range(30)]
        assert sorted(p.imap_unordered(square, range(30))) == [i * i for i in range(30)]
        assert set(p.map(lambda _: os.environ["POOL_INIT"], range(4))) == {"7"}
        got, failed = [], []
        r = p.map_async(square, range(5), callback=got.append)
        assert r.get(60) == [0, 1, 4, 9, 16] and got == [[0, 1, 4, 9, 16]] and r.successful()
        r = p.apply_async(not_three, (3,), error_callback=failed.append)
        assert str(raises(ValueError, r.get)) == "three" and not r.successful() and failed
        raises(ValueError, lambda: p.map(not_three, range(5)))
        it, out = p.imap(not_three, range(5)), []
        while len(out) < 5:
            try:
                out.append(next(it))
            except ValueError:
                out.append("three")
        assert out == [0, 1, 2, "three", 4], out
        raises(StopIteration, lambda: next(it))
        r = p.apply_async(held, ("gate-pool",))
        raises(PoolTimeout, lambda: r.get(0.01))
        raises(ValueError, r.successful)
        opened("gate-pool")
        r.wait()
        assert r.ready()
        it = p.imap(held, ["gate-imap"])
        raises(PoolTimeout, lambda: it.next(timeout=0.01))
        opened("gate-imap")
        assert it.next(timeout=60) is None
    p = Pool(2, maxtasksperchild=1)
    assert len(set(p.map(lambda _: os.getpid(), range(6), chunksize=1))) == 6
    raises(ValueError, p.join)
    p.close()
    raises(ValueError, lambda: p.apply(square, (1,)))
    p.join()
    p = Pool(1)  # a process that dies is replaced
    raises(ray.exceptions.RayActorError, lambda: p.apply(os._exit, (1,)))
    assert p.apply(square, (4,)) == 16
    p.terminate()
    p.join()


def graphs():
    dsk = {"a": 1, "b": 2, "c": (operator.add, "a", "b"), "d": (sum, ["a", "b", "c"]), "e": (operator.add, (operator.add, "a", "c"), 10), "f": "e", ("x", 0): (sum, [1, 2]), "g": (max, "a", ("x", 0))}
    for get in (ray_dask_get, ray_dask_get_sync):
        assert get(dsk, "c") == 3 and tuple(get(dsk, ["d", "e"])) == (6, 14)
        assert tuple(get(dsk, ["f", "g"])) == (14, 3)


def in_any_order():
    @ray.remote(num_cpus=0)
    def more(x):
        return x + 1

    assert sorted(as_completed([more.remote(i) for i in range(25)])) == list(range(1, 26))
    assert sorted(map_unordered(more, range(50), backpressure_size=20)) == list(range(1, 51))


def names():
    held = Worker.options(name="held").remote()
    assert ray.get(held.double.remote(2)) == 4 and list_named_actors() == ["held"]
    (a,) = state.list_actors(filters=[("name", "=", "held"), ("state", "=", "ALIVE")])
    assert a.class_name == "Worker" and a.pid and a.node_id and state.get_actor(a.actor_id).pid == a.pid
    assert state.summarize_actors()["cluster"]["summary"]["Worker"]["state_counts"]["ALIVE"] >= 1
    assert [t.type for t in state.list_tasks(filters=[("task_id", "=", a.actor_id)])] == ["ACTOR_CREATION_TASK"]


@ray.remote(num_cpus=0)
class Keeper:
    """Keeps references that nobody else has any more."""

    def __init__(self):
        self.kept = None

    async def put(self, kept):
        self.kept = kept

    async def get(self):
        while self.kept is None:
            await asyncio.sleep(0.01)  # sleep: until put
        return self.kept


def keepers():
    for size in (10, 200_000):
        for _ in range(10):
            k = Keeper.remote()
            there = k.get.remote()
            ray.get(k.put.remote([ray.put(b"abc" * size)]))
            assert ray.get(ray.get(there)[0])[:3] == b"abc"


@ray.remote(num_cpus=0)
class Member:
    def join(self, world, rank, group):
        col.init_collective_group(world, rank, "gloo", group)

    def about(self, group):
        return col.get_rank(group), col.get_collective_group_size(group), col.is_group_initialized(group)

    def call(self, name, size, value, group, *args, **options):
        a = np.full(size, float(value))
        if name == "allgather":
            parts = [np.zeros(size) for _ in range(3)]
            col.allgather(parts, a, group)
            return [p[0] for p in parts]
        if name == "reducescatter":
            col.reducescatter(a, [np.full(size, k + 1.0) for k in range(3)], group)
        else:
            getattr(col, name)(a, *args, group_name=group, **options)
        return a

    def barrier(self, group):
        col.barrier(group)

    def leave(self, group):
        col.destroy_collective_group(group)


def collectives():
    members = [Member.remote() for _ in range(3)]
    ray.get([m.join.remote(3, i, "g") for i, m in enumerate(members)])
    assert ray.get([m.about.remote("g") for m in members]) == [(i, 3, True) for i in range(3)]
    for size in (4, 10_001):

        def every(name, *args, **options):
            return ray.get([m.call.remote(name, size, i + 1, "g", *args, **options) for i, m in enumerate(members)])

        for op, want in ((ReduceOp.SUM, 6), (ReduceOp.PRODUCT, 6), (ReduceOp.MIN, 1), (ReduceOp.MAX, 3)):
            for a in every("allreduce", op=op):
                assert a.shape == (size,) and (a == want).all(), (op, a)
        assert every("allgather") == [[1, 2, 3]] * 3
        assert all((a == 2).all() for a in every("broadcast", src_rank=1))
        assert (every("reduce", dst_rank=2)[2] == 6).all()
        assert [a[0] for a in every("reducescatter")] == [3, 6, 9]
        sent = members[0].call.remote("send", size, 7, "g", 1)
        assert (ray.get(members[1].call.remote("recv", size, 0, "g", 0)) == 7).all()
        ray.get(sent)
    ray.get([m.barrier.remote("g") for m in members])
    ray.get([m.leave.remote("g") for m in members])
    assert ray.get(members[0].about.remote("g")) == (-1, -1, False)
    col.create_collective_group(members, 3, [2, 1, 0], "gloo", "declared")
    for a in ray.get([m.call.remote("allreduce", 10, i, "declared") for i, m in enumerate(members)]):
        assert (a == 3).all()
    assert ray.get([m.about.remote("declared") for m in members]) == [(2, 3, True), (1, 3, True), (0, 3, True)]


for part in (actor_pool, queues, pool, graphs, in_any_order, names, keepers, collectives):
    part()
print("all well")
