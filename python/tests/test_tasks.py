"""Tasks and objects on a real cluster: the launcher command that LAUNCHER names, or .build/launcher."""

import contextlib
import io
import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import unittest

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, HERE)

import numpy as np  # noqa: E402
import task_cases  # noqa: E402

import launcher  # noqa: E402
from launcher import _client, _cluster, exceptions  # noqa: E402

try:
    BINARY = _cluster.binary()
except launcher.Error:
    BINARY = ""


@unittest.skipUnless(BINARY, "SKIP: there is no launcher command")
class Cluster(task_cases.Connected, unittest.TestCase):
    """With a cluster of its own for the class."""

    bound = 240
    flags = ["--cpus", "4"]

    @classmethod
    def setUpClass(cls):
        cls.dir = tempfile.TemporaryDirectory()
        cls.home = os.environ.get("LAUNCHER_HOME")
        os.environ["LAUNCHER_HOME"] = cls.dir.name
        cls.process = subprocess.Popen([BINARY, "local", *cls.flags], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        said = json.loads(cls.process.stdout.readline())
        cls.path = said["socket"]

    @classmethod
    def tearDownClass(cls):
        cls.process.stdin.close()
        code = cls.process.wait(60)
        cls.process.stdout.close()
        if cls.home is None:
            del os.environ["LAUNCHER_HOME"]
        else:
            os.environ["LAUNCHER_HOME"] = cls.home
        cls.dir.cleanup()
        assert code == 0, code

    def agent(self):
        """The pid of the agent that is there now."""
        parents = {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                with open(f"/proc/{pid}/stat") as at:
                    parent = int(at.read().rsplit(")", 1)[1].split()[1])
                with open(f"/proc/{pid}/cmdline") as at:
                    parents[int(pid)] = parent, at.read().split("\0")

        def ours(pid):
            while pid in parents and pid != self.process.pid:
                pid = parents[pid][0]
            return pid == self.process.pid

        return next(pid for pid, (_, argv) in parents.items() if argv[1:2] == ["agent"] and ours(pid))


class TaskTest(task_cases.Tasks, Cluster):
    DEEP = 500

    def test_cancel(self):
        with tempfile.TemporaryDirectory() as d:

            @launcher.remote
            def slow(how, name):
                open(os.path.join(d, name), "w").close()
                end = time.monotonic() + 100
                while how == "busy" and time.monotonic() < end:
                    pass
                if how == "nested":
                    launcher.get(slow.remote("sleep", name + "-child"))
                time.sleep(100)

            def began(name):
                while not os.path.exists(os.path.join(d, name)):
                    time.sleep(0.01)

            for how in ("busy", "sleep", "nested"):
                r = slow.remote(how, how)
                began(how)
                if how == "nested":
                    began("nested-child")
                launcher.cancel(r)
                with self.assertRaises(exceptions.TaskCancelledError):
                    launcher.get(r, timeout=60)
            r = slow.remote("sleep", "forced")
            began("forced")
            launcher.cancel(r, force=True)
            with self.assertRaises(exceptions.RayError):
                launcher.get(r, timeout=60)
            many = [slow.options(num_cpus=4).remote("sleep", "x") for _ in range(20)]
            for r in many:
                launcher.cancel(r)
            for r in many:
                with self.assertRaises(exceptions.TaskCancelledError):
                    launcher.get(r, timeout=60)

    def test_context(self):
        @launcher.remote(num_cpus=0.5, name="mine")
        def about():
            c = launcher.get_runtime_context()
            return c.get_task_name(), c.get_task_id(), c.get_assigned_resources(), c.get_node_id(), c.get_attempt()

        r = about.remote()
        here = launcher.get_runtime_context()
        self.assertEqual(launcher.get(r), ("mine", r.task_id(), {"CPU": 0.5}, here.get_node_id(), 1))

        @launcher.remote
        class Given:
            def resources(self):
                return launcher.get_runtime_context().get_assigned_resources()

        for options, given in (({}, {}), ({"num_cpus": 1, "memory": 1 << 20}, {"CPU": 1.0, "memory": float(1 << 20)})):
            self.assertEqual(launcher.get(Given.options(**options).remote().resources.remote(), timeout=60), given)

    def test_what_there_is(self):
        nodes = launcher.nodes()
        self.assertEqual(len(nodes), 1)
        self.assertTrue(nodes[0]["Alive"])
        self.assertEqual(nodes[0]["NodeID"], launcher.get_runtime_context().get_node_id())
        self.assertEqual(launcher.cluster_resources()["CPU"], 4.0)
        self.assertLessEqual(launcher.available_resources()["CPU"], 4.0)
        launcher.get(launcher.remote(time.sleep).options(name="traced").remote(0.01))
        self.assertIn("traced", {e.get("name") for e in launcher.timeline()})

    def test_impossible(self):
        @launcher.remote(num_cpus=1000)
        def f():
            pass

        with self.assertRaises(exceptions.TaskUnschedulableError):
            launcher.get(f.remote(), timeout=60)

    def test_environment(self):
        with tempfile.TemporaryDirectory() as d:

            @launcher.remote(runtime_env={"env_vars": {"COLOUR": "blue"}, "working_dir": d})
            def about():
                return os.environ.get("COLOUR"), os.getcwd()

            self.assertEqual(launcher.get(about.remote()), ("blue", os.path.realpath(d)))
            self.assertEqual(launcher.get(about.options(runtime_env={}).remote()), (None, os.getcwd()))

            with open(os.path.join(d, "only_there.py"), "w") as to:
                to.write("X = 7\n")

            @launcher.remote(runtime_env={"working_dir": d})
            def modules():
                import only_there

                return only_there.X

            self.assertEqual(launcher.get(modules.remote()), 7)

    def test_environment_of_the_program(self):
        launcher.shutdown()
        launcher.init(self.path, runtime_env={"env_vars": {"COLOUR": "green", "SIZE": "1"}})

        @launcher.remote
        def about():
            return os.environ.get("COLOUR"), os.environ.get("SIZE")

        @launcher.remote
        def outer():
            return launcher.get(about.remote())

        self.assertEqual(launcher.get(about.remote()), ("green", "1"))
        self.assertEqual(launcher.get(outer.options(runtime_env={"env_vars": {"SIZE": "2"}}).remote()), ("green", "2"))

    def test_modules_of_the_program(self):
        with tempfile.TemporaryDirectory() as d:
            with open(os.path.join(d, "beside.py"), "w") as to:
                to.write("def f(x):\n    return x + 1\n")
            with open(os.path.join(d, "main.py"), "w") as to:
                to.write("import launcher, beside\nprint(launcher.get(launcher.remote(beside.f).remote(1)))")
            p = subprocess.run([sys.executable, os.path.join(d, "main.py")], env={**os.environ, "LAUNCHER_SOCKET": self.path, "PYTHONPATH": HERE}, capture_output=True, text=True, timeout=60)
            self.assertEqual((p.returncode, p.stdout), (0, "2\n"), p.stderr)

    def test_output(self):
        @launcher.remote
        def says():
            print("hello from", os.getpid())
            return os.getpid()

        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            pid = launcher.get(says.remote())
            end = time.monotonic() + 60
            while not out.getvalue() and time.monotonic() < end:
                launcher.wait([launcher.put(1)], timeout=0)
                _client.current().ask("sync")
                time.sleep(0.01)
        self.assertRegex(out.getvalue(), rf"^\(.*pid={pid}.*\) hello from {pid}\n$")

    def test_random(self):
        import random

        @launcher.remote
        def draw(i, d):
            task_cases.meet(d, i, 3)
            return os.getpid(), random.random(), float(np.random.rand()), os.getsid(0) == os.getpid()

        with tempfile.TemporaryDirectory() as d:
            got = {p: rest for p, *rest in launcher.get([draw.remote(i, d) for i in range(3)])}
        self.assertEqual(len(got), 3)
        self.assertEqual(len({r[0] for r in got.values()}), len(got))
        self.assertEqual(len({r[1] for r in got.values()}), len(got))
        self.assertTrue(all(r[2] for r in got.values()))

    def test_parallel(self):
        @launcher.remote
        def f(i, d):
            task_cases.meet(os.path.join(d, str(i // 4)), i, 4)

        with tempfile.TemporaryDirectory() as d:
            for group in range(2):
                os.mkdir(os.path.join(d, str(group)))
            launcher.get([f.remote(i, d) for i in range(8)], timeout=60)

    def test_workers_are_killed(self):
        @launcher.remote(max_retries=20)
        def f(i):
            if i % 7 == 0:
                time.sleep(0.05)
            return os.getpid(), i

        refs = [f.remote(i) for i in range(400)]
        killed = 0
        for r in refs[:200:40]:
            pid, _ = launcher.get(r)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                killed += 1
        self.assertEqual([i for _, i in launcher.get(refs)], list(range(400)))
        self.assertGreater(killed, 0)

    def test_agent_is_killed(self):
        @launcher.remote
        def f(i, a):
            time.sleep(0.002)
            return i + a[0]

        a = launcher.put(np.arange(100000))
        refs = [f.remote(i, a) for i in range(300)]
        for k in range(3):
            launcher.get(refs[k * 50])
            os.kill(self.agent(), signal.SIGKILL)
            refs += [f.remote(i, a) for i in range(300 + 50 * k, 350 + 50 * k)]
        self.assertEqual(launcher.get(refs), list(range(450)))
        self.assertEqual(launcher.get(a)[99999], 99999)

        @launcher.remote
        def down(n):
            return 0 if n == 0 else 1 + launcher.get(down.remote(n - 1))

        r = down.remote(10)
        os.kill(self.agent(), signal.SIGKILL)
        self.assertEqual(launcher.get(r), 10)

    def test_backpressure(self):
        with tempfile.TemporaryDirectory() as d:

            @launcher.remote(_generator_backpressure_num_objects=3)
            def items(n):
                for i in range(n):
                    with open(os.path.join(d, "new"), "w") as to:
                        to.write(str(i + 1))
                    os.rename(to.name, os.path.join(d, "made"))
                    yield i

            g = items.remote(50)
            self.assertEqual(launcher.get(next(g)), 0)
            time.sleep(0.3)
            with open(os.path.join(d, "made")) as at:
                self.assertLess(int(at.read()), 6)
            self.assertEqual([launcher.get(r) for r in g], list(range(1, 50)))

    def test_dropped_stream(self):
        """A stream that nobody reads any more ends its task, in its code or while it waits for its reader."""

        @launcher.remote(num_cpus=4, max_retries=0)
        def items(path):
            try:
                while True:
                    yield 1
                    time.sleep(0.005)
            except BaseException as e:
                with open(path, "w") as to:
                    to.write(type(e).__name__)
                raise

        @launcher.remote(num_cpus=4)
        def after():
            return "there is room"

        with tempfile.TemporaryDirectory() as d:
            for pressure in (None, 2):
                path = os.path.join(d, str(pressure))
                g = items.options(_generator_backpressure_num_objects=pressure).remote(path)
                self.assertEqual(launcher.get([next(g), next(g)]), [1, 1])
                g = None
                self.assertEqual(launcher.get(after.remote(), timeout=60), "there is room")
                with open(path) as at:
                    self.assertIn(at.read(), ("KeyboardInterrupt", "GeneratorExit"))  # in its code, or at a yield

    def test_references_from_outside(self):
        # A function has them while it has tasks, whatever becomes of the program's own.
        ref, large = launcher.put("small"), launcher.put(np.ones(50_000))

        @launcher.remote
        def f(n):
            return launcher.get(ref), launcher.get(large).sum(), launcher.get(f.remote(n - 1)) if n else None

        r = f.remote(2)
        del f, ref, large
        self.assertEqual(launcher.get(r, timeout=60), ("small", 50_000, ("small", 50_000, ("small", 50_000, None))))

    def test_max_calls(self):
        @launcher.remote(max_calls=2)
        def who():
            return os.getpid()

        pids = launcher.get([who.remote() for _ in range(9)], timeout=60)
        self.assertLessEqual(max(pids.count(p) for p in pids), 2)

    def test_many_drivers(self):
        code = textwrap.dedent("""
            import launcher
            @launcher.remote
            def f(i): return i * i
            print(sum(launcher.get([f.remote(i) for i in range(300)])))
        """)
        env = {**os.environ, "LAUNCHER_SOCKET": self.path, "PYTHONPATH": HERE}
        ps = [subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True) for _ in range(4)]
        for p in ps:
            self.assertEqual(p.communicate(timeout=60)[0], f"{sum(i * i for i in range(300))}\n")

    def test_driver_is_killed(self):
        """What it submitted ends."""
        with tempfile.TemporaryDirectory() as d:
            code = textwrap.dedent(f"""
                import launcher, os, time
                @launcher.remote
                def f():
                    open({os.path.join(d, 'pid')!r}, "w").write(str(os.getpid()))
                    time.sleep(100)
                r = f.remote()
                time.sleep(100)
            """)
            p = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "LAUNCHER_SOCKET": self.path, "PYTHONPATH": HERE})
            at = os.path.join(d, "pid")
            while not os.path.exists(at) or not os.path.getsize(at):
                time.sleep(0.01)
            p.kill()
            p.wait()
            with open(at) as f:
                pid = int(f.read())
            end = time.monotonic() + 60
            while os.path.exists(f"/proc/{pid}") and time.monotonic() < end:
                time.sleep(0.05)
            self.assertFalse(os.path.exists(f"/proc/{pid}"))

    def test_ctrl_c(self):
        code = textwrap.dedent("""
            import launcher, signal, time
            signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored below what a shell runs with &
            r = launcher.remote(time.sleep).remote(100)
            try:
                print("there", flush=True)
                launcher.get(r)
            except KeyboardInterrupt: print("interrupted", launcher.get(launcher.put(5)))
        """)
        p = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "LAUNCHER_SOCKET": self.path, "PYTHONPATH": HERE}, stdout=subprocess.PIPE, text=True)
        self.assertEqual(p.stdout.readline(), "there\n")
        time.sleep(0.2)
        p.send_signal(signal.SIGINT)
        self.assertEqual(p.communicate(timeout=60)[0], "interrupted 5\n")

    def test_objects(self):
        refs = [launcher.put(np.full(50000, i)) for i in range(200)]
        self.assertEqual([int(a[-1]) for a in launcher.get(refs)], list(range(200)))

        @launcher.remote
        def total(*arrays):
            return sum(int(a.sum()) for a in arrays)

        self.assertEqual(launcher.get(total.remote(*refs)), sum(50000 * i for i in range(200)))
        inner = launcher.put([launcher.put(np.ones(100000)) for _ in range(10)])
        self.assertEqual(launcher.get(launcher.remote(lambda rs: sum(launcher.get(r).sum() for r in rs)).remote(inner)), 1e6)
        with self.assertRaises(exceptions.ObjectLostError):
            launcher.get(_client.current().item(b"\x01\x00\x00\x00" + os.urandom(12)), timeout=60)

    def test_large_request(self):
        memory = mmap.mmap(-1, 1 << 40, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)  # MAP_NORESERVE
        with self.assertRaises(exceptions.ObjectStoreFullError) as c:
            launcher.put(task_cases.Huge(memory))
        self.assertTrue(c.exception.hints)


@unittest.skipUnless(BINARY, "SKIP: there is no launcher command")
class ActorTest(Cluster):
    """Actors on a cluster."""

    def test_name_of_an_actor_that_cannot_be_made(self):
        made = launcher.remote(Held)
        for more in {}, {"get_if_exists": True}:
            with self.assertRaises(TypeError):
                made.options(name="held", **more).remote(threading.Lock())
            actor = made.options(name="held", **more).remote(1)
            self.assertEqual(launcher.get(actor.get.remote(), timeout=60), 1)
            launcher.kill(actor)
            end = time.monotonic() + 60
            while launcher.util.list_named_actors():
                self.assertLess(time.monotonic(), end)

    def test_impossible(self):
        actor = launcher.remote(Held).options(num_cpus=1000).remote(1)
        for _ in range(2):
            with self.assertRaises(exceptions.ActorUnschedulableError):
                launcher.get(actor.get.remote(), timeout=60)

    def test_kill_is_heard_by_the_next_agent(self):
        for _ in range(5):
            actor = launcher.remote(Held).remote(1)
            pid = launcher.get(actor.__ray_call__.remote(lambda self: os.getpid()), timeout=60)
            os.kill(self.agent(), signal.SIGKILL)
            launcher.kill(actor)  # and nothing else is asked of the agent
            end = time.monotonic() + 60
            while os.path.exists(f"/proc/{pid}"):
                self.assertLess(time.monotonic(), end)

    def test_calls_run_in_the_main_thread(self):
        actor = launcher.remote(Held).remote(1)
        main = actor.__ray_call__.remote(lambda self: threading.current_thread() is threading.main_thread())
        self.assertTrue(launcher.get(main, timeout=60))

    def test_cancel_of_calls(self):
        for threads in 1, 2:
            actor = launcher.remote(Held).options(max_concurrency=threads).remote(1)
            pid = launcher.get(actor.__ray_call__.remote(lambda self: os.getpid()), timeout=60)
            with tempfile.TemporaryDirectory() as at:
                fifos = [(os.path.join(at, f"begun-{i}"), os.path.join(at, f"go-{i}")) for i in range(threads)]
                for fifo in sum(fifos, ()):
                    os.mkfifo(fifo)
                run = [actor.pause.remote(*two) for two in fifos]
                later = [actor.add.remote(n) for n in (1, 10, 1)]
                for begun, _ in fifos:
                    with open(begun) as f:
                        f.read()
                for ref in [*run, later[1]]:
                    launcher.cancel(ref)
                for _ in range(2):  # the second is answered after the worker was told
                    launcher.cluster_resources()
                os.kill(pid, signal.SIGINT)  # it reads that calls are cancelled; those that run do so on
                for _, go in fifos:
                    with open(go, "w") as f:
                        f.write("went")
                self.assertEqual(launcher.get(run, timeout=60), ["went"] * threads)
            with self.assertRaises(exceptions.TaskCancelledError):
                launcher.get(later[1], timeout=60)
            self.assertEqual(sorted(launcher.get([later[0], later[2]], timeout=60)), [2, 3])

    def test_options_that_make_no_sense(self):
        made = launcher.remote(Held)
        for name, value in (
            ("max_concurrency", 1 << 40), ("max_restarts", 1 << 40), ("max_task_retries", 1 << 40), ("namespace", 3),
            ("concurrency_groups", {"g": -4}), ("concurrency_groups", {"g": "x"}), ("concurrency_groups", [{"name": "g", "max_concurrency": 1 << 40}]),
            ("concurrency_groups", "g"), ("concurrency_groups", ["g"]), ("memory", 1 << 60),
        ):  # fmt: skip
            with self.assertRaisesRegex(ValueError, "least|most|below|must be", msg=name):
                made.options(**{name: value})


class Held:
    def __init__(self, value):
        self.value = value

    def get(self):
        return self.value

    def add(self, n):
        self.value += n
        return self.value

    def pause(self, begun, go):
        with open(begun, "w"):
            pass
        with open(go) as f:
            return f.read()


class AloneTest(unittest.TestCase):
    """init with nothing up."""

    def run_program(self, code, **env):
        with tempfile.TemporaryDirectory() as d:
            environ = {k: v for k, v in os.environ.items() if not k.startswith("LAUNCHER")}
            environ.update(LAUNCHER=BINARY, LAUNCHER_HOME=d, PYTHONPATH=HERE, **env)
            return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=environ, capture_output=True, text=True, timeout=120)

    def test_auto(self):
        p = self.run_program("""
            import launcher as ray
            @ray.remote
            def f(x): return x + 1
            print(ray.is_initialized(), ray.get(f.remote(1)), ray.is_initialized())
        """)
        self.assertEqual((p.returncode, p.stdout), (0, "False 2 True\n"), p.stderr)

    def test_init(self):
        p = self.run_program("""
            import launcher as ray
            with ray.init(num_cpus=3, resources={"x": 2}) as c:
                r = ray.cluster_resources()
                print(r["CPU"], r["x"], ray.get(ray.remote(lambda: 5).options(resources={"x": 1}).remote()))
            print(ray.is_initialized())
            ray.init(num_cpus=1)
            @ray.remote
            def down(n): return 0 if n == 0 else 1 + ray.get(down.remote(n - 1))
            print(ray.get(down.remote(20)))
        """)
        self.assertEqual((p.returncode, p.stdout), (0, "3.0 2.0 5\nFalse\n20\n"), p.stderr)


if __name__ == "__main__":
    unittest.main()
