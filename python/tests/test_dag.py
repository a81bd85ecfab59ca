"""Graphs of calls on a real cluster: launcher.dag."""

import asyncio
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import unittest
import unittest.mock

import numpy as np
import test_tasks

import launcher
from launcher import _graph, exceptions
from launcher.dag import InputNode, MultiOutputNode


def stages(*steps):
    @launcher.remote(num_cpus=0)
    class Stage:
        def __init__(self, step):
            self.step = step

        def add(self, x):
            return x + self.step

        def join(self, *parts, last=0):
            return sum(parts) + last

        @launcher.method(num_returns=2)
        def both(self, x):
            return x + self.step, x - self.step

        def fail(self, x):
            raise KeyError(x)

        def odd(self, x):
            return lambda: os.getpid() if x else iter(())

        def pid(self):
            return os.getpid()

        def end(self, x):
            os._exit(1)

        def held(self, x):
            with open(self.step) as f:
                return x + len(f.read())

    return [Stage.remote(s) for s in steps]


class Graphs(test_tasks.Cluster):
    """What is the same over channels and by ordinary calls."""

    def test_line(self):
        a, b = stages(1, 10)
        with InputNode() as x:
            line = b.add.bind(a.add.bind(x))
        compiled = line.experimental_compile()
        self.assertEqual([launcher.get(compiled.execute(i)) for i in range(5)], [11, 12, 13, 14, 15])
        refs = [compiled.execute(i) for i in range(5)]
        self.assertEqual(launcher.get(refs[::-1], timeout=60), [15, 14, 13, 12, 11])
        with self.assertRaisesRegex(ValueError, "once"):
            launcher.get(refs[0])
        big = np.ones(1 << 18)
        self.assertEqual(launcher.get(compiled.execute(big)).sum(), 12 * (1 << 18))
        self.assertEqual(launcher.get(a.add.remote(1)), 2)  # an actor has time for others meanwhile
        self.assertIn("Stage.add <- Stage.add", compiled.visualize())
        self.assertRaises(ValueError, compiled.execute)
        compiled.teardown()
        compiled.teardown()
        self.assertRaises(exceptions.RayChannelError, compiled.execute, 1)
        self.assertEqual(launcher.get(line.execute(1)), 12)

    def test_shapes(self):
        a, b, c = stages(1, 10, 100)
        with InputNode() as x:
            up, down = a.both.bind(x[0])
            again = a.add.bind(up)
            fan = MultiOutputNode([b.join.bind(up, down, again, 1000, last=x.more), c.add.bind(down), again, again])
        compiled = fan.experimental_compile()
        for i in range(20):
            self.assertEqual(launcher.get(compiled.execute(i, more=5)), [i + 1 + i - 1 + i + 2 + 1005, i + 99, i + 2, i + 2])
        self.assertEqual(launcher.get(fan.execute(1, more=5)), [2 + 0 + 3 + 1005, 100, 3, 3])
        with self.assertRaisesRegex(ValueError, "more"):
            compiled.execute(1)
        compiled.teardown()

    def test_errors(self):
        a, b = stages(1, 10)
        with InputNode() as x:
            both = MultiOutputNode([b.add.bind(a.fail.bind(x)), b.add.bind(x)])
        compiled = both.experimental_compile()
        for i in range(3):
            failed, good = compiled.execute(i)
            with self.assertRaises(KeyError) as raised:
                launcher.get(failed)
            self.assertEqual((raised.exception.cause.args, raised.exception.function_name), ((i,), "Stage.fail"))
            self.assertEqual(launcher.get(good), i + 10)
        compiled.teardown()

    def test_many_at_once(self):
        (a,) = stages(1)
        with InputNode() as x:
            compiled = a.add.bind(x).experimental_compile(_max_inflight_executions=3)
        refs = [compiled.execute(i) for i in range(3)]
        with self.assertRaises(exceptions.RayCgraphCapacityExceeded):
            compiled.execute(3)
        del refs[0]
        gc.collect()
        self.assertEqual(launcher.get(refs), [2, 3])
        self.assertEqual(launcher.get(compiled.execute(3)), 4)
        compiled.teardown()

    def test_async(self):
        @launcher.remote(num_cpus=0)
        class Waits:
            async def add(self, x):
                await asyncio.sleep(0)
                return x + 1

        a = Waits.remote()
        with InputNode() as x:
            compiled = a.add.bind(x).experimental_compile(enable_asyncio=True)

        async def run():
            futures = [await compiled.execute_async(i) for i in range(5)]
            return await asyncio.gather(*futures)

        self.assertEqual(asyncio.run(run()), [1, 2, 3, 4, 5])
        compiled.teardown()

    def test_death(self):
        a, b = stages(1, 10)
        with InputNode() as x:
            compiled = b.add.bind(a.end.bind(x)).experimental_compile()
        with self.assertRaises(exceptions.RayActorError):
            launcher.get(compiled.execute(1), timeout=60)
        compiled.teardown()
        self.assertEqual(launcher.get(b.add.remote(1)), 11)


    def test_restart(self):
        @launcher.remote(num_cpus=0, max_restarts=-1)
        class Falls:
            def add(self, x):
                if x < 0:
                    os._exit(1)
                return x + 1

        a = Falls.remote()
        (b,) = stages(10)
        with InputNode() as x:
            compiled = b.add.bind(a.add.bind(x)).experimental_compile()
        for i in range(2):
            good = compiled.execute(i)
            self.assertEqual(launcher.get(good), i + 11)
            lost, after = compiled.execute(-1), compiled.execute(5)
            with self.assertRaisesRegex(exceptions.ActorUnavailableError, "Falls"):
                launcher.get(lost, timeout=60)
            again = compiled.execute(7)
            self.assertEqual(launcher.get(again, timeout=60), 18)
            try:
                self.assertEqual(launcher.get(after, timeout=60), 16)  # by ordinary calls
            except exceptions.ActorUnavailableError:
                pass
        compiled.teardown()
        self.assertRaises(exceptions.RayChannelError, compiled.execute, 1)


class OverChannels(Graphs):
    def test_shared(self):
        fifo = os.path.join(self.dir.name, "held")
        os.mkfifo(fifo)
        a, b = stages(fifo, 10)
        with InputNode() as x:
            compiled = MultiOutputNode([a.held.bind(x), b.add.bind(x)]).experimental_compile()
        self.assertTrue(compiled._shared)
        first, second = compiled.execute(2)
        with self.assertRaises(exceptions.RayChannelTimeoutError):
            launcher.get(first, timeout=0.01)
        with open(fifo, "w") as f:
            f.write("go")
        self.assertEqual(launcher.get([first, second]), [4, 12])
        before = len(os.listdir("/proc/self/fd"))
        compiled.teardown()
        del compiled, first, second
        gc.collect()
        self.assertLess(len(os.listdir("/proc/self/fd")), before)

    def test_the_same_actors_again(self):
        a, b = stages(1, 10)
        for _ in range(5):
            with InputNode() as x:
                compiled = b.add.bind(a.add.bind(x)).experimental_compile(_max_inflight_executions=1)
            self.assertEqual([launcher.get(compiled.execute(i)) for i in range(3)], [11, 12, 13])
            compiled.teardown()

    def test_a_program_that_dies(self):
        @launcher.remote(num_cpus=0)
        class Holder:
            def same(self, x):
                return x

            def busy(self):
                return any(t.name == "compiled-graph" for t in threading.enumerate())

        a = Holder.options(name="holder", namespace="dies").remote()
        self.assertFalse(launcher.get(a.busy.remote()))
        program = """
            import launcher, os, signal, sys
            from launcher.dag import InputNode
            launcher.init(sys.argv[1])
            a = launcher.get_actor("holder", "dies")
            with InputNode() as x:
                compiled = a.same.bind(x).experimental_compile()
            assert launcher.get(compiled.execute(1)) == 1 and launcher.get(a.busy.remote())
            os.kill(os.getpid(), signal.SIGKILL)
        """
        p = subprocess.run([sys.executable, "-c", textwrap.dedent(program), self.path], timeout=60)
        self.assertEqual(p.returncode, -signal.SIGKILL)
        end = time.monotonic() + 60
        while launcher.get(a.busy.remote()):
            self.assertLess(time.monotonic(), end)

    def test_what_cannot_be_compiled(self):
        (a,) = stages(1)
        with InputNode() as x, InputNode() as y:
            for node, error in ((launcher.remote(abs).bind(x), NotImplementedError), (a.pid.bind(), ValueError), (x, ValueError), (a.join.bind(x, y), ValueError)):
                self.assertRaises(error, node.experimental_compile)


class ByCalls(Graphs):
    """As on a machine, or with actors, where no memory can be shared."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.patch = unittest.mock.patch.object(_graph.c, "usable", lambda: False)
        cls.patch.start()

    @classmethod
    def tearDownClass(cls):
        cls.patch.stop()
        super().tearDownClass()


class Lazy(test_tasks.Cluster):
    def test_tasks_and_actors(self):
        @launcher.remote
        def add(x, y):
            return x + y

        @launcher.remote(num_cpus=0)
        class Total:
            def __init__(self, start):
                self.total = start

            def add(self, x):
                self.total += x
                return self.total

        with InputNode() as x:
            twice = add.bind(x.a, x.b)
            graph = add.bind(twice, twice)
        self.assertEqual(launcher.get(graph.execute(a=1, b=2)), 6)
        total = Total.bind(add.bind(100, 1))
        total.add.bind(10)  # bound before, so called before
        self.assertEqual(launcher.get(total.add.bind(add.bind(1, 1)).execute()), 113)
        with InputNode() as x:
            self.assertEqual(launcher.get(add.bind(x[0], x[1]).execute([1, 2])), 3)
            self.assertEqual(launcher.get(MultiOutputNode([add.bind(x, 1), add.bind(x, 2)]).execute(1)), [2, 3])


del Graphs

if __name__ == "__main__":
    unittest.main()
