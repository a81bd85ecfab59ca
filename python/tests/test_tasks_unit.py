"""The SDK's tasks and objects against a small agent in this process."""

import contextlib
import gc
import io
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
import types
import unittest
import unittest.mock

import fake_agent
import numpy as np
import task_cases

import launcher
from launcher import _api, _client, _connection, _frames, _pack, exceptions


Local = task_cases.Local


class Case(task_cases.Connected, unittest.TestCase):
    """With an agent; the class's workers are started once."""

    bound = 240
    workers = 0

    @classmethod
    def setUpClass(cls):
        cls.dir = tempfile.TemporaryDirectory()
        cls.path = os.path.join(cls.dir.name, "s")
        cls.agent = fake_agent.Agent(cls.path, cls.workers)

    @classmethod
    def tearDownClass(cls):
        cls.agent.close()
        cls.dir.cleanup()

    def driver(self):
        return max((c for c in list(self.agent.conns.values()) if c.kind == 1), key=lambda c: c.client)


class ObjectTest(Case):
    def test_small(self):
        for v in [0, "a", b"ok", None, [1, 2], {"a": Local(1)}]:
            self.assertEqual(launcher.get(launcher.put(v)), v)
        self.assertEqual(self.driver().seen[_frames.GET], 0)  # without a message
        self.assertLess(self.driver().seen[_frames.PUT], 6)
        refs = [launcher.put(i) for i in range(100)]
        self.assertEqual(launcher.get(refs), list(range(100)))
        self.assertEqual(launcher.get([]), [])

    def test_large(self):
        a = np.arange(1 << 20)
        r = launcher.put(a)
        b = launcher.get(r)
        np.testing.assert_array_equal(a, b)
        self.assertFalse(b.flags.writeable)
        with self.assertRaises(ValueError):
            b[0] = 1
        c = launcher.get(r)
        words = _client.current().store.words
        self.assertEqual(sum(1 for w in words if w), 2)
        del b, c
        self.assertEqual(sum(1 for w in words if w), 0)
        big = {"a": "x" * 100000, "b": list(range(50000))}
        self.assertEqual(launcher.get(launcher.put(big)), big)
        self.assertEqual(launcher.get(launcher.put(b"z" * (3 << 20))), b"z" * (3 << 20))

    def test_create(self):
        client = _client.current()
        a = launcher.create((300, 400), "float32")
        self.assertEqual((a.shape, a.dtype, a.flags.writeable), ((300, 400), np.dtype("float32"), True))
        a[:] = 7
        segment = client.store.own[-1]
        used = sum(e - b for b, e in segment.free)
        r = launcher.put(a)
        self.assertEqual(sum(e - b for b, e in segment.free), used)  # nothing more was taken
        self.assertFalse(a.flags.writeable)
        b = launcher.get(r)
        self.assertEqual(b.ctypes.data, a.ctypes.data)
        self.assertEqual(float(b.sum()), 7 * 300 * 400)
        c = launcher.get(launcher.put(a))  # an ordinary put now
        self.assertNotEqual(c.ctypes.data, a.ctypes.data)
        del r, b, c
        self.assertEqual(sum(1 for w in client.store.words if w), 1)
        del a
        gc.collect()
        self.assertEqual(sum(1 for w in client.store.words if w), 0)
        parts = launcher.create(100000, "int64")
        parts[:] = np.arange(100000)
        self.assertEqual(launcher.get(launcher.put(parts[10:50000])).sum(), np.arange(10, 50000).sum())
        before = sum(e - b for s in client.store.own for b, e in s.free)
        del parts
        gc.collect()
        client.store.take(1 << 40)
        self.assertGreater(sum(e - b for s in client.store.own for b, e in s.free), before)
        self.assertEqual(launcher.create(3).shape, (3,))
        self.assertRaises(TypeError, launcher.create, 3, object)

    def test_memory_comes_back(self):
        for i in range(30):
            r = launcher.put(np.full(1 << 20, i))
            self.assertEqual(launcher.get(r)[-1], i)
            del r
        self.assertLess(len(_client.current().store.own), 3)

    def test_full(self):
        memory = np.zeros(1 << 30, np.uint8)
        with self.assertRaises(exceptions.ObjectStoreFullError) as c:
            launcher.put(task_cases.Huge(memory))
        self.assertIn("full", str(c.exception))

    def test_released(self):
        client = _client.current()
        refs = [launcher.put(i) for i in range(10)]
        more = launcher.put(refs)
        again = launcher.get(more)
        self.assertEqual(again, refs)
        del again, more
        client.ask("sync")
        gone = self.agent.counts["released"]
        del refs
        client.ask("sync")
        self.assertEqual(self.agent.counts["released"], gone + 10)
        self.assertEqual(client.refs, {})
        self.assertEqual(client.values, {})

    def test_large_ones_are_released_at_once(self):
        r = launcher.put(np.arange(100000))
        launcher.get(r)
        gone = self.agent.counts["released"]
        del r
        end = time.monotonic() + 60
        while self.agent.counts["released"] == gone and time.monotonic() < end:
            time.sleep(0.001)
        self.assertEqual(self.agent.counts["released"], gone + 1)

    def test_ref(self):
        r = launcher.put(1)
        self.assertEqual(len(r.hex()), 32)
        self.assertEqual(r, r)
        self.assertEqual({r: 1}[r], 1)
        self.assertNotEqual(r, launcher.put(1))
        self.assertRaises(TypeError, pickle.dumps, r)
        self.assertRaises(TypeError, launcher.put, r)

    def test_bad_calls(self):
        for call in (lambda: launcher.get(1), lambda: launcher.get([1]), lambda: launcher.wait([1]), lambda: launcher.wait([launcher.put(1)], num_returns=2)):
            self.assertRaises(ValueError, call)
        r = launcher.put(1)
        self.assertRaises(ValueError, launcher.wait, [r, r])
        self.assertRaises(TypeError, launcher.wait, r)
        self.assertRaises(ValueError, lambda: launcher.put(1, copies=0))
        self.assertRaises(RuntimeError, launcher.init, self.path)
        launcher.init(self.path, ignore_reinit_error=True)
        self.assertRaises(TypeError, lambda: launcher.init(self.path, nothing=1))

    def test_timeout(self):
        @launcher.remote
        def never():
            pass

        r = never.remote()  # there are no workers
        start = time.monotonic()
        with self.assertRaises(exceptions.GetTimeoutError) as c:
            launcher.get(r, timeout=0.05)
        self.assertIsInstance(c.exception, TimeoutError)
        self.assertLess(time.monotonic() - start, 60)
        self.assertEqual(launcher.wait([r], timeout=0.01), ([], [r]))
        self.assertEqual(launcher.wait([r], timeout=0), ([], [r]))
        self.assertEqual(self.driver().seen[_frames.GET], 1)
        launcher.cancel(r)
        with self.assertRaises(exceptions.TaskCancelledError):
            launcher.get(r)

    def test_handler_of_a_signal_raises(self):
        def late(*args):
            raise TimeoutError("late")

        old = signal.signal(signal.SIGALRM, late)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with self.assertRaises(TimeoutError) as c:
                launcher.get(launcher.remote(len).remote(""))
            self.assertEqual(str(c.exception), "late")
        finally:
            signal.signal(signal.SIGALRM, old)
        self.assertIsNone(_client.current().ask("sync"))

    def test_old_refs(self):
        r = launcher.put(1)
        launcher.shutdown()
        with self.assertRaises(launcher.Error):
            launcher.get(r, timeout=1)
        launcher.init(self.path)
        with self.assertRaises((launcher.Error, ValueError)):
            launcher.get([r])
        del r
        self.assertEqual(launcher.get(launcher.put(2)), 2)

    def test_wait_on_many(self):
        refs = [launcher.put(i) for i in range(1000)]
        rest, seen = refs, []
        while rest:
            ready, rest = launcher.wait(rest)
            seen += ready
        self.assertEqual(seen, refs)
        self.assertEqual(self.driver().seen[_frames.GET], 0)
        ready, rest = launcher.wait(refs, num_returns=10)
        self.assertEqual((ready, rest), (refs[:10], refs[10:]))

    def test_forged_ref(self):
        forged = _client.current().item(os.urandom(16))
        self.agent.objects[forged.binary()] = (_frames.FAILED, 1, [], *(lambda d: (len(d), d))(_pack.pack(["lost", "not known", "", None, "", "n", 0, []])))
        with self.assertRaises(exceptions.ObjectLostError):
            launcher.get(forged)

    def test_fork(self):
        r = launcher.put(np.arange(100000))
        view = launcher.get(r)
        pins = [w for w in _client.current().store.words if w]
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                assert not launcher.is_initialized()
                try:
                    launcher.get(r)
                    said = "nothing"
                except launcher.Error as e:
                    said = str(e)
                del view
                gc.collect()
                mine = launcher.get(launcher.put(5))  # by a connection of its own
                os.write(write, f"{said}|{mine}".encode())
                launcher.shutdown()
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        os.close(write)
        said = os.read(read, 10000).decode()
        os.close(read)
        self.assertIn("forked", said)
        self.assertTrue(said.endswith("|5"), said)
        self.assertEqual([w for w in _client.current().store.words if w], pins)
        self.assertEqual(view[7], 7)
        self.assertEqual(launcher.get(r)[8], 8)

    def test_threads(self):
        """One reads for all."""
        stop = time.monotonic() + 1
        errors = []

        def work(k):
            try:
                i = 0
                while time.monotonic() < stop:
                    i += 1
                    a = np.full(20000, k * 1000 + i)
                    r = launcher.put(a)
                    s = launcher.put([k, i])
                    assert launcher.get(s) == [k, i]
                    assert _client.current().ask("sync") is None
                    assert (launcher.get(r) == a).all()
            except BaseException as e:
                errors.append(e)

        threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        self.assertEqual(errors, [])

    def test_agent_away(self):
        """Connections that break are made again, and nothing is lost."""
        refs = [launcher.put([i]) for i in range(100)]
        big = launcher.put(np.arange(100000))
        client = _client.current()
        client.ask("sync")
        before = self.agent.counts["puts"]
        for k in range(5):
            self.agent.cut()
            more = [launcher.put((k, i)) for i in range(500)]
            self.assertIsNone(client.ask("sync"))
            self.assertEqual(launcher.get(more), [(k, i) for i in range(500)])
        self.assertEqual(launcher.get(refs), [[i] for i in range(100)])
        self.assertEqual(launcher.get(big)[99999], 99999)
        missing = [r for r in refs if r.binary() not in self.agent.objects]
        self.assertEqual(missing, [])
        self.assertGreaterEqual(self.agent.counts["puts"], before + 2500)

    def test_room_is_not_asked_for_again(self):
        """An agent that was restarted is not asked for the room that came before."""
        client = _client.current()
        with client.lock:
            while client.store.take(1 << 20):
                pass
        before = launcher.put(np.arange(1 << 20))
        self.assertEqual(self.driver().seen[_frames.SPACE], 1)
        self.agent.cut()
        client.ask("sync")
        self.assertEqual(self.driver().seen[_frames.SPACE], 0)
        self.assertEqual(launcher.get(before)[-1], (1 << 20) - 1)

    def test_ends_that_were_not_written(self):
        """A worker whose agent was restarted is not to run again what it has ended, although
        it has not written that yet."""
        c = _client.current()
        told = []
        worker = types.SimpleNamespace(resume=lambda frames: told.extend(_frames.results(frames)))

        def greet(sock):  # as a driver: this agent has no control page for it
            type(c)._greet(c, sock)
            c.worker = worker

        c._greet = greet
        self.addCleanup(setattr, c, "worker", None)
        self.addCleanup(delattr, c, "_greet")
        launcher.get(launcher.put(1))
        with c.lock:
            c.out += _frames.frame(_frames.RESULT, bytes(16) + _frames.U32.pack(1) + bytes(40))
            self.agent.cut()
            end = time.monotonic() + 60
            while not told and time.monotonic() < end:
                c.poll()
        self.assertEqual(told, [(bytes(16), 1)])

    def test_ring_is_bounded(self):
        client = _client.current()
        for _ in range(200):
            launcher.put("x" * 60000)
        self.assertLess(sum(len(d) for _, d in client.ring), _connection.UNPROVEN_MAX + (1 << 20))
        client.ask("sync")
        self.assertLess(sum(len(d) for _, d in client.ring), 1 << 20)

    def test_agent_that_says_nonsense(self):
        self.driver().sock.sendall(b"\xff" * 100)
        with self.assertRaises(launcher.Error):
            _client.current().ask("sync", timeout=60)
        with self.assertRaises(launcher.Error):
            launcher.put(1)

    def test_error_frame(self):
        self.driver().send(_frames.ERROR, _pack.pack([7, "not allowed", ["ask"]]))
        with self.assertRaises(launcher.Error) as c:
            _client.current().ask("sync", timeout=60)
        self.assertEqual((c.exception.kind, c.exception.hints), ("permission", ["ask"]))

    def test_what_there_is(self):
        self.agent.calls.update(nodes=[{"NodeID": "a", "Alive": True}], cluster_resources={"CPU": 2}, available_resources={"CPU": 1.5}, timeline=[{"name": "f"}])
        self.assertEqual(launcher.nodes(), [{"NodeID": "a", "Alive": True}])
        self.assertEqual(launcher.cluster_resources(), {"CPU": 2.0})
        self.assertEqual(launcher.available_resources(), {"CPU": 1.5})
        at = os.path.join(self.dir.name, "t.json")
        self.assertIsNone(launcher.timeline(at))
        self.assertEqual(launcher.timeline(), [{"name": "f"}])
        c = launcher.get_runtime_context()
        self.assertEqual((c.get_node_id(), c.get_job_id(), c.get_task_id(), c.get_assigned_resources()), ("node-7", "job-1", None, {}))
        launcher.put(1, copies=2)
        self.assertEqual(self.agent.requests[-1][0], "copies")

    def test_logs(self):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            self.agent.log("f pid=3, node=a", "hello\n")
            _client.current().ask("sync")
        self.assertEqual(out.getvalue(), "(f pid=3, node=a) hello\n")

    def test_exit_in_del(self):
        code = "import launcher, sys\nclass A:\n  def __del__(self): sys.exit(3)\n  \nr = launcher.put(1)\na = A(); a.r = r\nprint(launcher.get(r))\ndel a, r\nlauncher.put(2)\nprint('end')"
        p = subprocess.run([sys.executable, "-c", code], env={**os.environ, "LAUNCHER_SOCKET": self.path, "PYTHONPATH": fake_agent.HERE}, capture_output=True, text=True, timeout=60)
        self.assertEqual((p.returncode, p.stdout), (0, "1\nend\n"), p.stderr)


class StateTest(unittest.TestCase):
    def test_a_task_that_is_away_is_one_task(self):
        from launcher.util import state

        owner = {"id": "ab", "name": "f", "state": "running", "attempt": 1, "parent": "12", "submitted": 10**6, "away": True}
        runs = {"id": "ab", "name": "f", "state": "blocked", "attempt": 1, "worker": 42, "submitted": 2 * 10**6}
        (t,) = state._one_of_each([(owner, "a"), (runs, "b")])
        self.assertEqual((t.node_id, t.worker_pid, t.parent_task_id, t.creation_time_ms), ("b", 42, "12", 1))
        self.assertEqual([t.state for t in state._one_of_each([(owner, "a")])], ["RUNNING"])


class NoClusterTest(unittest.TestCase):
    def test_nothing_there(self):
        with tempfile.TemporaryDirectory() as d:
            code = "import launcher\ntry: launcher.put(1)\nexcept launcher.Error as e: print(e.kind)"
            env = {k: v for k, v in os.environ.items() if not k.startswith("LAUNCHER")}
            env.update(PATH=d, LAUNCHER_HOME=d, PYTHONPATH=fake_agent.HERE, LAUNCHER=os.path.join(d, "none"))
            sdk = os.path.join(d, "lib", "launcher")
            import shutil

            shutil.copytree(os.path.join(fake_agent.HERE, "launcher"), sdk)
            env["PYTHONPATH"] = os.path.dirname(sdk)
            p = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
            self.assertEqual((p.returncode, p.stdout), (0, "not-found\n"), p.stderr)

    def test_cluster_without_a_node_here(self):
        from launcher import _cluster
        with tempfile.TemporaryDirectory() as home:
            at = os.path.join(home, "clusters", "boxes")
            os.makedirs(at)
            with unittest.mock.patch.dict(os.environ, {"LAUNCHER_HOME": home}):
                self.assertEqual(_cluster.away(), [])
                for name in ("cluster.json", "head.at"):
                    self.assertEqual(_cluster.away(), [])
                    open(os.path.join(at, name), "w").close()
                self.assertEqual(_cluster.away(), ["boxes"])
                env = {k: v for k, v in os.environ.items() if k != "LAUNCHER_SOCKET"}
                code = "import launcher\ntry: launcher.init(address='auto')\nexcept launcher.Error as e: print(e.hints[0])"
                out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=60)
                self.assertIn("launcher run -c boxes -- python", out.stdout, out.stderr)

    def test_import_is_light(self):
        code = "import sys, launcher\nprint(sorted(m for m in ('numpy', 'cloudpickle', 'asyncio', 'ctypes', 'subprocess', 'launcher._api', 'launcher._client') if m in sys.modules))"
        p = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": fake_agent.HERE}, capture_output=True, text=True, timeout=60)
        self.assertEqual(p.stdout, "[]\n", p.stderr)


class TaskTest(task_cases.Tasks, Case):
    workers = 2

    def test_agent_away(self):
        @launcher.remote
        def f(i):
            return i

        for k in range(3):
            refs = [f.remote(i) for i in range(100)]
            self.agent.cut()
            self.assertEqual(launcher.get(refs), list(range(100)))
            one = f.remote(k)
            self.agent.cut()
            self.assertEqual(launcher.wait([one], timeout=60), ([one], []))

    def test_random(self):
        import random

        @launcher.remote
        def draw(i, d):
            task_cases.meet(d, i, 2)
            return os.getpid(), random.random(), float(np.random.rand()), os.getsid(0) == os.getpid(), os.getppid()

        with tempfile.TemporaryDirectory() as d:
            got = {p: rest for p, *rest in launcher.get([draw.remote(i, d) for i in range(2)])}
        self.assertEqual(len(got), 2)
        self.assertEqual(len({r[0] for r in got.values()}), len(got))
        self.assertEqual(len({r[1] for r in got.values()}), len(got))
        self.assertTrue(all(r[2] for r in got.values()))
        self.assertNotIn(self.agent.process.pid, {r[3] for r in got.values()})

    def test_context(self):
        @launcher.remote(num_cpus=0.5, resources={"x": 1}, name="mine")
        def about():
            c = launcher.get_runtime_context()
            return c.get_task_name(), c.get_task_id(), c.get_assigned_resources(), os.environ.get("LAUNCHER_WORKER", "")[:5]

        r = about.remote()
        self.assertEqual(launcher.get(r), ("mine", r.task_id(), {"CPU": 0.5, "x": 1.0}, "token"))

    def test_cancel(self):
        with tempfile.TemporaryDirectory() as d:

            @launcher.remote
            def slow(busy):
                open(os.path.join(d, "began"), "w").close()
                end = time.monotonic() + 50
                while busy and time.monotonic() < end:
                    pass
                time.sleep(50)

            for busy in (False, True):
                r = slow.remote(busy)
                while not os.path.exists(os.path.join(d, "began")):
                    time.sleep(0.01)
                os.unlink(os.path.join(d, "began"))
                launcher.cancel(r)
                with self.assertRaises(exceptions.TaskCancelledError):
                    launcher.get(r, timeout=60)

        @launcher.remote
        def waits():
            return launcher.get(launcher.remote(time.sleep).options(max_retries=0).remote(50))

        r = waits.remote()
        time.sleep(0.3)
        launcher.cancel(r)
        with self.assertRaises(exceptions.TaskCancelledError):
            launcher.get(r, timeout=60)
        for w in list(self.agent.conns.values()):
            if w.kind == 2 and w.running:
                os.kill(w.pid, signal.SIGKILL)


if __name__ == "__main__":
    unittest.main()
