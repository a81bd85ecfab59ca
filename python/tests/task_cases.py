"""What tasks do, whatever agent there is: test_tasks_unit.py runs it against the small one,
test_tasks.py on a real cluster."""

import asyncio
import os
import pickle
import signal
import sys
import tempfile
import threading
import time

import numpy as np

import launcher
from launcher import exceptions


def meet(folder, me, n):
    """Stay until n are here."""
    open(os.path.join(folder, str(me)), "w").close()
    end = time.monotonic() + 60
    while len(os.listdir(folder)) < n:
        if time.monotonic() > end:
            raise TimeoutError(f"{os.listdir(folder)} of {n} came")
        time.sleep(0.01)


class Local:
    """A class of the test's own."""

    def __init__(self, x):
        self.x = x

    def __eq__(self, other):
        return isinstance(other, Local) and other.x == self.x


class Huge:
    """Says that it is as large as the memory that it is given."""

    def __init__(self, memory):
        self.memory = memory

    def __reduce_ex__(self, protocol):
        return (Huge, (pickle.PickleBuffer(self.memory),))


class Connected:
    """Mixed into a TestCase with an agent at path: each test has a connection of its own, and
    bound seconds."""

    def setUp(self):
        self.late = threading.Timer(self.bound, os.kill, (os.getpid(), signal.SIGABRT))
        self.late.daemon = True
        self.late.start()
        launcher.init(self.path)

    def tearDown(self):
        launcher.shutdown()
        self.late.cancel()


class Tasks:
    """Mixed into a TestCase that is connected."""

    DEEP = 120

    def test_calls(self):
        @launcher.remote
        def add(x, y=1, *rest, **named):
            return x + y + sum(rest) + sum(named.values())

        one = launcher.put(1)
        self.assertEqual(launcher.get(add.remote(1)), 2)
        self.assertEqual(launcher.get(add.remote(1, 2, 3, z=4)), 10)
        self.assertEqual(launcher.get(add.remote(one, y=one, z=one)), 3)
        self.assertEqual(launcher.get(add.remote(add.remote(add.remote(1)))), 4)
        self.assertEqual(launcher.get([add.remote(i) for i in range(50)]), [i + 1 for i in range(50)])

    def test_values(self):
        @launcher.remote
        def same(x):
            return x

        for v in [None, Local(3), np.arange(10), np.arange(100000), "x" * 200000, [launcher.put(1)], b"y" * 100000]:
            got = launcher.get(same.remote(v))
            if isinstance(v, np.ndarray):
                np.testing.assert_array_equal(got, v)
            elif isinstance(v, list):
                self.assertEqual(launcher.get(got), [1])
            else:
                self.assertEqual(got, v)
        a = launcher.put(np.ones(1 << 20))
        self.assertEqual(launcher.get(same.remote(a)).sum(), 1 << 20)

    def test_created(self):
        @launcher.remote
        def make(n):
            a = launcher.create(n)
            a[:] = np.arange(n)
            return a

        for n in (10, 100000):
            self.assertEqual(launcher.get(make.remote(n)).sum(), n * (n - 1) / 2)

    def test_returns(self):
        @launcher.remote(num_returns=3)
        def three():
            return 1, "b", np.arange(100000)

        a, b, c = three.remote()
        self.assertEqual((launcher.get(a), launcher.get(b), launcher.get(c)[-1]), (1, "b", 99999))
        self.assertIsNone(three.options(num_returns=0).remote())
        with self.assertRaises(ValueError):
            launcher.get(three.options(num_returns=2).remote()[0])
        refs = launcher.get(launcher.remote(lambda: (i for i in range(3))).options(num_returns="dynamic").remote())
        self.assertEqual(launcher.get(list(refs)), [0, 1, 2])

    def test_functions_made_in_tasks(self):
        @launcher.remote
        def outer(n):
            k = n * 10

            @launcher.remote
            def inner(i):
                return i + k

            return launcher.get([inner.remote(i) for i in range(5)])

        self.assertEqual(launcher.get([outer.remote(n) for n in range(6)]), [[i + 10 * n for i in range(5)] for n in range(6)])

    def test_nested(self):
        @launcher.remote
        def fib(n):
            return n if n < 2 else sum(launcher.get([fib.remote(n - 1), fib.remote(n - 2)]))

        self.assertEqual(launcher.get(fib.remote(9)), 34)

    def test_deep(self):
        @launcher.remote
        def down(n):
            return 0 if n == 0 else 1 + launcher.get(down.remote(n - 1))

        self.assertEqual(launcher.get(down.remote(self.DEEP)), self.DEEP)

    def test_wait_in_a_task(self):
        @launcher.remote
        def leaf(i):
            return i

        @launcher.remote
        def root():
            rest, got = [leaf.remote(i) for i in range(20)], []
            while rest:
                ready, rest = launcher.wait(rest)
                got += launcher.get(ready)
            return sorted(got)

        self.assertEqual(launcher.get([root.remote() for _ in range(3)]), [list(range(20))] * 3)

    def test_errors(self):
        @launcher.remote
        def fails(x):
            raise ZeroDivisionError("here")

        r = fails.remote(1)
        with self.assertRaises(ZeroDivisionError) as c:
            launcher.get(r)
        self.assertIn("in fails", str(c.exception))
        self.assertNotIn("_worker.py", str(c.exception))
        self.assertIn("fails", c.exception.function_name)
        for two in fails.options(num_returns=2).remote(1):
            self.assertRaises(ZeroDivisionError, launcher.get, two)

    def test_retry(self):
        with tempfile.TemporaryDirectory() as d:
            at = os.path.join(d, "tries")

            @launcher.remote(retry_exceptions=[OSError], max_retries=5)
            def flaky(kind):
                with open(at, "a") as to:
                    to.write("x")
                if os.path.getsize(at) < 3:
                    raise kind("again")
                return launcher.get_runtime_context().get_attempt()

            self.assertEqual(launcher.get(flaky.remote(OSError)), 3)
            os.unlink(at)
            with self.assertRaises(ValueError):
                launcher.get(flaky.remote(ValueError))
            self.assertEqual(os.path.getsize(at), 1)

    def test_crash(self):
        @launcher.remote(max_retries=0)
        def dies():
            os._exit(3)

        with self.assertRaises(exceptions.WorkerCrashedError):
            launcher.get(dies.remote())

        @launcher.remote(max_retries=1)
        def leaves():
            if launcher.get_runtime_context().get_attempt() == 1:
                sys.exit(0)
            return 5

        self.assertEqual(launcher.get(leaves.remote()), 5)

    def test_missing_module(self):
        with tempfile.TemporaryDirectory() as d:
            with open(os.path.join(d, "only_here.py"), "w") as to:
                to.write("def f():\n    return 1\n")
            sys.path.insert(0, d)
            try:
                import only_here

                with self.assertRaises(ModuleNotFoundError) as c:
                    launcher.get(launcher.remote(only_here.f).remote())
            finally:
                sys.path.remove(d)
        self.assertIn("only_here", str(c.exception))

    def test_unpicklable(self):
        @launcher.remote
        def f(a, lock):
            pass

        with self.assertRaises(TypeError) as c:
            f.remote(1, threading.Lock())
        for text in ("the argument lock", "a lock", "test_unpicklable.<locals>.f"):
            self.assertIn(text, str(c.exception))
        lock = threading.Lock()
        with self.assertRaises(TypeError) as c:
            launcher.remote(lambda: lock).remote()
        self.assertIn("the function", str(c.exception))
        with self.assertRaises(TypeError):
            launcher.get(launcher.remote(lambda: threading.Lock()).remote())

    def test_generator(self):
        @launcher.remote
        def items(n):
            for i in range(n):
                yield i if i != 5 else np.arange(100000)
            if n == 3:
                raise ValueError("after three")

        self.assertEqual([launcher.get(r) for r in items.remote(5)], list(range(5)))
        self.assertEqual(list(items.remote(0)), [])
        g = items.remote(3)
        refs = list(g)
        self.assertEqual(len(refs), 4)
        self.assertEqual(launcher.get(refs[:3]), [0, 1, 2])
        self.assertRaises(ValueError, launcher.get, refs[3])
        self.assertTrue(g.is_finished())
        big = list(items.remote(8))
        self.assertEqual(launcher.get(big[5])[-1], 99999)
        g = items.remote(2)
        ended = g.completed()
        self.assertIsNone(launcher.get(ended, timeout=60))
        self.assertEqual(launcher.get(list(g)), [0, 1])
        half = items.remote(1000)
        next(half)
        del half
        self.assertEqual(launcher.get(next(items.remote(1))), 0)

    def test_wait_for_streams(self):
        @launcher.remote
        def items(folder, n):
            for i in range(n):
                end = time.monotonic() + 60
                while not os.path.exists(os.path.join(folder, str(i))) and time.monotonic() < end:
                    os.sched_yield()
                yield i

        with tempfile.TemporaryDirectory() as folder:

            def make(i):
                open(os.path.join(folder, str(i)), "w").close()

            g, there = items.remote(folder, 2), launcher.put(1)
            self.assertEqual(launcher.wait([g], timeout=0.1), ([], [g]))
            self.assertEqual(launcher.wait([g, there]), ([there], [g]))
            for i in range(2):
                make(i)
                self.assertEqual(launcher.wait([there, g], num_returns=2, timeout=60), ([there, g], []))
                self.assertEqual(launcher.get(next(g)), i)
            # The end is something that next does not wait for, before it is known and after.
            self.assertEqual(launcher.wait([g], timeout=60), ([g], []))
            self.assertRaises(StopIteration, next, g)
            self.assertEqual(launcher.wait([g, there]), ([g], [there]))
            self.assertEqual(launcher.wait([there, g], num_returns=2), ([there, g], []))
            self.assertRaises(ValueError, launcher.wait, [g, g])

    def test_asyncio(self):
        @launcher.remote
        def f(i):
            if i == 7:
                raise KeyError(i)
            return i

        @launcher.remote
        def g(n):
            yield from range(n)

        async def run():
            got = await asyncio.gather(*[f.remote(i) for i in range(7)])
            with self.assertRaises(KeyError):
                await f.remote(7)
            items = [await r async for r in g.remote(4)]
            big = await launcher.put(np.arange(100000))
            done, _ = await asyncio.wait([f.remote(1).as_future()])
            return got, items, big[-1], [d.result() for d in done]

        self.assertEqual(asyncio.run(run()), (list(range(7)), list(range(4)), 99999, [1]))

    def test_future(self):
        import concurrent.futures

        @launcher.remote
        def f(i):
            return [][i] if i == 3 else i

        fs = [f.remote(i).future() for i in range(4)]
        done, _ = concurrent.futures.wait(fs, timeout=60)
        self.assertEqual(len(done), 4)
        self.assertEqual([x.result() for x in fs[:3]], [0, 1, 2])
        self.assertIsInstance(fs[3].exception(), IndexError)

    def test_threads_in_driver_and_worker(self):
        @launcher.remote
        def f(i):
            return i

        @launcher.remote
        def many():
            from concurrent.futures import ThreadPoolExecutor

            with ThreadPoolExecutor(4) as pool:
                return list(pool.map(lambda i: launcher.get(f.remote(i)), range(20)))

        out = []

        def work(k):
            out.append(launcher.get([f.remote(k * 100 + i) for i in range(30)]) == [k * 100 + i for i in range(30)])

        threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        self.assertEqual(out, [True] * 6)
        self.assertEqual(launcher.get(many.remote()), list(range(20)))

    def test_named(self):
        """A call by name, as programs of other languages make it."""
        f = launcher.function("math:hypot", "python")
        self.assertEqual(launcher.get(f.remote(3, 4)), 5.0)
        self.assertEqual(launcher.get(f.remote(launcher.put(3), 4)), 5.0)
        total = launcher.function("builtins:sum", "python")
        self.assertEqual(launcher.get(total.remote([launcher.put(1), launcher.put(2)])), 3)
        self.assertEqual(launcher.get(total.remote(list(range(100000)))), sum(range(100000)))
        with self.assertRaises(TypeError):
            f.remote(Local(1))
        with self.assertRaises(ModuleNotFoundError):
            launcher.get(launcher.function("no_such_module:f", "python").remote())

    def test_output(self):
        @launcher.remote
        def says():
            os.environ["SAID"] = "yes"
            return sys.stdout.line_buffering

        self.assertTrue(launcher.get(says.remote()))

    def test_held_args(self):
        """What an argument refers to lives as long as the task needs it."""

        @launcher.remote
        def total(refs):
            return sum(launcher.get(refs))

        self.assertEqual(launcher.get(total.remote([launcher.put(i) for i in range(10)])), 45)

    def test_many_args(self):
        @launcher.remote
        def count(*args):
            return len(args), args[-1]

        one = launcher.put("x")
        self.assertEqual(launcher.get(count.remote(*[one] * 2000)), (2000, "x"))
