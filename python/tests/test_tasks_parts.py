"""The parts of the SDK's tasks and objects, each without an agent."""

import contextlib
import gc
import io
import os
import pickle
import subprocess
import sys
import threading
import time
import types
import unittest
import warnings
from unittest import mock

import fake_agent
import numpy as np
import task_cases

import launcher
from launcher import _frames, _logs, _pack, _remote, _serial, _store, _worker, exceptions, scheduling


class BenchTest(unittest.TestCase):
    def test_as_a_file(self):
        """The benchmark runs beside Ray as a file; what lies beside it hides no module."""
        at = os.path.join(os.path.dirname(launcher.__file__), "_bench.py")
        env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        out = subprocess.run([sys.executable, at, "--list", "--rows", "queued"], env=env, stdout=subprocess.PIPE, timeout=60, check=True).stdout
        self.assertEqual(out.split(), [b"queued"])


class PackTest(unittest.TestCase):
    VALUES = [
        None, True, False, 0, 1, 127, 128, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**64 - 1, -1, -32, -33, -128, -129, -32768, -32769, -(2**31), -(2**31) - 1, -(2**63),
        0.0, 1.5, float("inf"), "", "a", "ü" * 20, "x" * 31, "x" * 32, "x" * 256, "x" * 70000, b"", b"a", b"x" * 255, b"x" * 256, b"x" * 70000,
        [], [1, [2, [3]]], list(range(15)), list(range(16)), list(range(70000)), {}, {"a": 1, "b": {"c": [None]}}, {str(i): i for i in range(16)}, {str(i): i for i in range(70000)}, {1: 2},
    ]  # fmt: skip

    def test_round_trip(self):
        for v in self.VALUES:
            self.assertEqual(_pack.unpack(_pack.pack(v)), v)

    def test_same_as_msgpack(self):
        try:
            import msgpack
        except ImportError:
            self.skipTest("SKIP: there is no msgpack")
        for v in self.VALUES:
            self.assertEqual(_pack.pack(v), msgpack.packb(v))
        for n in (0, 1, 2, 3, 4, 8, 16, 17, 255, 256, 70000):
            self.assertEqual(_pack.pack(_pack.Ext(5, b"x" * n)), msgpack.packb(msgpack.ExtType(5, b"x" * n)))
            e = _pack.unpack(msgpack.packb(msgpack.ExtType(5, b"x" * n)))
            self.assertEqual((e.code, e.data), (5, b"x" * n))
        self.assertEqual(_pack.unpack(msgpack.packb(1.5, use_single_float=True)), 1.5)

    def test_garbage(self):
        good = _pack.pack({"a": [1, 2.5, "x" * 40, b"y" * 300, None]})
        for n in range(len(good)):
            self.assertRaises(ValueError, _pack.unpack, good[:n])
        self.assertRaises(ValueError, _pack.unpack, good + b"\x00")
        self.assertRaises(ValueError, _pack.unpack, b"\xc1")
        self.assertRaises(ValueError, _pack.unpack, b"\xdd\xff\xff\xff\xff")
        self.assertRaises(ValueError, _pack.unpack, b"\x91" * 1000 + b"\xc0")
        self.assertRaises(OverflowError, _pack.pack, 2**64)
        self.assertRaises(TypeError, _pack.pack, object())


Local = task_cases.Local


class ValueTest(unittest.TestCase):
    def test_round_trip(self):
        for v in [None, 1, 1.5, "a", b"a", 2j, [1, "a", [b"x"]], {"a": (1, 2)}, (), Local(3), {1, 2}, [Local(4)], lambda: 5, 10**100, [[[[[1]]]]], {(1, 2): Local(1)}]:
            e = _serial.encode(v)
            data = e.joined()
            self.assertEqual(len(data), e.size)
            got = _serial.decode(e.form, data)
            if callable(v):
                self.assertEqual(got(), v())
            else:
                self.assertEqual(got, v)
                self.assertIs(type(got), type(v))

    def test_buffers(self):
        a, b = np.arange(1000), np.ones((30, 40), np.float32)
        for v in ({"a": a, "b": [b]}, Local({"a": a, "b": [b]})):
            e = _serial.encode(v)
            self.assertEqual(len(e.buffers), 2)
            for at, raw in e.buffers:
                self.assertEqual(at % 64, 0)
            got = _serial.decode(e.form, e.joined())
            got = got if isinstance(got, dict) else got.x
            np.testing.assert_array_equal(got["a"], a)
            np.testing.assert_array_equal(got["b"][0], b)
            self.assertFalse(got["a"].flags.writeable)
        strided = np.arange(100)[::2]
        np.testing.assert_array_equal(_serial.decode(0, _serial.encode(strided).joined()), strided)
        objects = np.array([Local(1), None], object)
        self.assertEqual(list(_serial.decode(0, _serial.encode(objects).joined())), [Local(1), None])
        self.assertEqual(_serial.decode(0, _serial.encode(np.zeros(0)).joined()).size, 0)

    def test_arrays_of_one_kind(self):
        """The second is not pickled again, and is what pickle makes of it all the same."""
        fixed = np.arange(4.0)
        fixed.flags.writeable = False
        arrays = [
            np.arange(6.0), np.arange(6).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3)), np.arange(6, dtype=">i4").reshape(1, 6, 1),
            np.array(1 + 2j), np.array([True]), fixed,
        ]  # fmt: skip
        for a in arrays:
            first = _serial.encode(a).joined()
            buffers = []
            data = pickle.dumps(a, 5, buffer_callback=buffers.append)
            want = pickle.loads(data, buffers=[bytearray(buffers[0].raw())])
            _serial.decode(0, first)
            with mock.patch.object(_serial, "pickle", types.SimpleNamespace(PickleBuffer=pickle.PickleBuffer)):
                e = _serial.encode(a.copy("A") if a.flags.writeable else a)
                self.assertEqual(e.head, _serial.encode(a).head)
                got = _serial.decode(0, bytearray(_serial.encode(a).joined()))
                fast = _serial.decode(0, first)
            self.assertIn(data, first)
            self.assertEqual((got.dtype, got.shape, got.strides, got.flags.writeable), (want.dtype, want.shape, want.strides, want.flags.writeable))
            np.testing.assert_array_equal(got, a)
            np.testing.assert_array_equal(fast, a)
            self.assertFalse(fast.flags.writeable)
        # One whose bytes are not in one piece, of a shape and type that is known.
        apart = np.arange(24).reshape(4, 6)[::2, ::2]
        np.testing.assert_array_equal(_serial.decode(0, _serial.encode(apart).joined()), apart)
        self.assertRaises(ValueError, _serial.decode, 0, _serial.encode(arrays[0]).joined()[:-8])
        named = np.zeros(6, np.dtype("f8", metadata={"unit": "m"}))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.assertEqual(pickle.loads(pickle.dumps(named)).dtype.metadata, _serial.decode(0, _serial.encode(named).joined()).dtype.metadata)

    def test_arrays_kept_are_bounded(self):
        for n in range(1, 2 * _serial._KEPT_MAX):
            _serial.decode(0, _serial.encode(np.zeros(n, np.int8)).joined())
            _serial.decode(0, _serial.encode((n, np.zeros(3))).joined())
        self.assertLessEqual(len(_serial._heads), _serial._KEPT_MAX)
        self.assertLessEqual(len(_serial._arrays), _serial._KEPT_MAX)

    def test_large_bytes(self):
        e = _serial.encode(b"x" * 100000)
        self.assertEqual((e.form, e.size, len(e.buffers)), (_serial.FORM_BYTES, 100000, 1))
        self.assertEqual(_serial.decode(e.form, e.joined()), b"x" * 100000)

    def test_damaged(self):
        whole = _serial.encode({"a": np.arange(10)}).joined()
        for n in range(8, len(whole)):
            with self.assertRaises(Exception):
                _serial.decode(0, whole[:n])

    def test_plain(self):
        for v in [None, 1, "a", [1, {"a": 2.5}], b"abc", {"k": b"v"}]:
            e = _serial.encode_plain(v)
            self.assertEqual(_serial.decode(e.form, e.joined()), v)
        self.assertEqual(_serial.decode(1, _serial.encode_plain([np.arange(3), np.float64(1.5)]).joined()), [[0, 1, 2], 1.5])
        self.assertRaises(TypeError, _serial.encode_plain, Local(1))

    def test_errors(self):
        def fails():
            raise KeyError("k")

        try:
            fails()
        except KeyError as e:
            data = _serial.task_failed(e, "f", "n", 3)
        error = exceptions.from_wire(_pack.unpack(data))
        self.assertIsInstance(error, KeyError)
        self.assertIsInstance(error, exceptions.RayTaskError)
        self.assertEqual((error.function_name, error.node, error.pid, error.args), ("f", "n", 3, ("k",)))
        self.assertIn("in fails", str(error))
        again = pickle.loads(pickle.dumps(error))
        self.assertIsInstance(again, KeyError)
        self.assertEqual(str(again), str(error))

    def test_error_that_cannot_be_pickled(self):
        class Odd(Exception):
            def __init__(self, a, b):
                super().__init__("odd")
                self.lock = threading.Lock()

        data = _serial.task_failed(Odd(1, 2), "f", "n", 3)
        error = exceptions.from_wire(_pack.unpack(data))
        self.assertIs(type(error), exceptions.RayTaskError)
        self.assertIn("Odd: odd", str(error))

    def test_error_with_attributes(self):
        class Coded(ValueError):
            def __init__(self, code):
                super().__init__(f"code {code}")
                self.code = code

            def __reduce__(self):
                return (Coded, (self.code,))

        error = exceptions.from_wire(_pack.unpack(_serial.task_failed(Coded(7), "f", "n", 3)))
        self.assertIsInstance(error, ValueError)
        self.assertEqual(error.code, 7)
        self.assertRaises(AttributeError, lambda: error.nothing)

    def test_codes(self):
        for code, kind in exceptions._CODES.items():
            e = exceptions.from_wire([code, "text", "", None, "f", "n", 1, ["try"]])
            self.assertIs(type(e), kind)
            self.assertTrue(str(e).startswith("actor f: " if code.startswith("actor_") and code != "actor_unavailable" else "task f: "), str(e))
            self.assertEqual(e.hints, ["try"])
        self.assertIsInstance(exceptions.from_wire(["new", "text"]), exceptions.RaySystemError)


class StoreTest(unittest.TestCase):
    def store(self, capacity=64, size=1 << 20):
        index = fake_agent.Index(capacity)
        pins = fake_agent.memfd(4096)
        s = _store.Store()
        s.attach(os.dup(index.fd), pins)
        s.add(1, fake_agent.memfd(size), size, True)
        return index, s

    def test_allocator(self):
        _, s = self.store()
        seg, at = s.take(100)
        self.assertEqual(at, 0)
        places = [at] + [s.take(100)[1] for _ in range(9)]
        self.assertEqual(places, list(range(0, 1280, 128)))
        self.assertFalse(seg.empty)
        for i in (3, 5, 4, 0, 1, 2, 9, 8, 7, 6):
            s.give(1, places[i], 100)
        self.assertTrue(seg.empty)
        self.assertEqual(seg.free, [[0, 1 << 20]])
        self.assertIsNone(s.take((1 << 20) + 1))
        self.assertEqual(s.take(1 << 20)[1], 0)
        self.assertIsNone(s.take(1))
        with self.assertRaises(launcher.Error):
            seg.give(0, (1 << 20) + 64)
        s.give(1, 0, 1 << 20)
        for begin, size in ((0, 64), (64, 64), ((1 << 20) - 64, 64)):
            with self.assertRaises(launcher.Error):
                seg.give(begin, size)

    def test_random(self):
        import random

        rng = random.Random(5)
        _, s = self.store()
        used = {}
        for _ in range(3000):
            if used and rng.random() < 0.5:
                at = rng.choice(list(used))
                s.give(1, at, used.pop(at))
            else:
                n = rng.randrange(1, 20000)
                got = s.take(n)
                if got:
                    used[got[1]] = n
            spans = sorted((a, a + _store._up(n)) for a, n in used.items())
            free = [(a, b) for a, b in s.own[0].free]
            whole = sorted(spans + free)
            self.assertEqual(whole[0][0], 0)
            self.assertEqual(whole[-1][1], 1 << 20)
            self.assertTrue(all(a[1] == b[0] for a, b in zip(whole, whole[1:])))
            self.assertTrue(all(a[1] < b[0] for a, b in zip(free, free[1:])))

    def test_pins(self):
        index, s = self.store()
        seg, at = s.take(100)
        seg.view[at : at + 100] = bytes(range(100))
        id = os.urandom(16)
        self.assertIsNone(s.pin(id))
        index.write(id, 2, 1, at, 100, 0)
        word, number, offset, size, form = s.pin(id)
        self.assertEqual((number, offset, size, form), (1, at, 100, 0))
        self.assertEqual(s.words[word], index.generation << 32 | index.slot(id) + 1)
        view = s.view(word, seg, offset, size)
        self.assertEqual(bytes(view), bytes(range(100)))
        self.assertTrue(view.readonly)
        a = np.frombuffer(view, np.uint8)[10:20]
        del view
        gc.collect()
        self.assertNotEqual(s.words[word], 0)
        self.assertEqual(a[0], 10)
        del a
        self.assertEqual(s.words[word], 0)
        index.state(id, 3)
        self.assertIsNone(s.pin(id))
        self.assertEqual(list(s.words), [0] * 512)

    def test_pin_that_comes_too_late(self):
        index, s = self.store()
        id = os.urandom(16)
        index.write(id, 2, 1, 0, 100, 0)
        find, calls = s.find, []

        def slow(id):
            if calls:
                index.write(id, 2, 1, 128, 100, 0)  # moved between the pin and the second look
            calls.append(id)
            return find(id)

        s.find = slow
        self.assertIsNone(s.pin(id))
        self.assertEqual(sum(s.words), 0)
        s.find = find
        self.assertEqual(s.pin(id)[2], 128)

    def test_pins_run_out(self):
        index, s = self.store()
        id = os.urandom(16)
        index.write(id, 2, 1, 0, 100, 0)
        views = [s.view(s.pin(id)[0], s.own[0], 0, 100) for _ in range(512)]
        with self.assertRaises(launcher.Error):
            s.pin(id)
        del views
        self.assertIsNotNone(s.pin(id))

    def test_probing(self):
        index, s = self.store(capacity=64)
        ids = [os.urandom(16) for _ in range(48)]
        for i, id in enumerate(ids):
            index.write(id, 2, 1, 64 * i, 64, 0)
        for i in range(0, 48, 3):
            index.state(ids[i], 1)
        for i, id in enumerate(ids):
            found = s.find(id)
            self.assertEqual(found is not None, i % 3 != 0)
            if found:
                self.assertEqual(found[1][5], 64 * i)

    def test_large_copy(self):
        _, s = self.store(size=128 << 20)
        a = np.random.default_rng(1).integers(0, 255, (66 << 20) + 5, np.uint8)
        seg, at = s.take(64 + a.nbytes)
        s.write(seg, at, b"head", [(64, memoryview(a))])
        got = np.frombuffer(seg.view, np.uint8)[at + 64 : at + 64 + a.nbytes]
        self.assertTrue((got == a).all())
        self.assertEqual(bytes(seg.view[at : at + 4]), b"head")

    def test_few_array_types(self):
        for n in range(1, 200000, 7):
            t = _store._array(n)
            self.assertGreaterEqual(t._length_, n)
        self.assertLess(len(_store._arrays), 200)

    def test_garbage(self):
        s = _store.Store()
        index = fake_agent.memfd(8192)
        with self.assertRaises(launcher.Error):
            s.attach(index, fake_agent.memfd(4096))
        with self.assertRaises(launcher.Error):
            s.add(1, fake_agent.memfd(4096), 8192, False)


class WorkerTest(unittest.TestCase):
    def test_waits_when_the_agent_is_back(self):
        """It hands back the first task that it is given and has not begun, but once."""
        w = _worker.Worker()
        w.client = types.SimpleNamespace(void=0, waiting=1, out=bytearray(), due_now=False, _call=lambda verb: 7)

        def give(task, sequence):
            w._on_exec(memoryview(_frames.EXEC_HEAD.pack(bytes([task]) * 16, bytes(16), 1, sequence, 1, 0, 0, 0)), 0)
            return [o.sequence for o in w.queue]

        begun = _frames.frame(_frames.RESULT, bytes([1]) * 16 + _frames.U32.pack(1))
        w.resume(begun)
        self.assertEqual((give(1, 8), w.client.out), ([], b""))  # it has ended
        self.assertEqual(give(2, 9), [])
        self.assertEqual(w.client.out, _frames.frame(_frames.HAND_BACK, _frames.U32.pack(9)))
        self.assertEqual((w.client.void, w.client.due_now), (7, True))
        self.assertEqual(give(3, 10), [])  # was on its way
        w.client.void = 0
        self.assertEqual(give(2, 11), [11])
        w.resume(b"")
        w.client.waiting = 0
        self.assertEqual(give(4, 12), [12])

    def test_what_a_new_agent_is_told(self):
        one, two = _frames.frame(_frames.PUT, b"x" * 40), _frames.frame(_frames.CALL, b"y" * 4)
        asked = _frames.frame(_frames.SPACE, bytes(16)) + _frames.frame(_frames.HAND_BACK, bytes(4))
        self.assertEqual(_frames.lasting(asked + one + asked + two), one + two)


class LogTest(unittest.TestCase):
    def show(self, *adds):
        p = _logs.Printer(True)
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            for stream, who, text in adds:
                p.add(stream, who, text)
                p.flush()
            p.close()
        return out.getvalue(), err.getvalue()

    def test_lines(self):
        self.assertEqual(self.show((1, b"f pid=1, node=a", b"one\ntwo\n"), (2, b"g", b"three")), ("(f pid=1, node=a) one\n(f pid=1, node=a) two\n", "(g) three\n"))

    def test_repeated(self):
        out, _ = self.show(*[(1, b"f pid=%d" % i, b"step %d done\n" % i) for i in range(6)])
        self.assertEqual(out, "(f pid=0) step 0 done\n(f pid=0) step 5 done [repeated 5x across the cluster]\n")
        out, _ = self.show((1, b"a", b"x\n"), (1, b"a", b"x\n"))  # one worker says so twice
        self.assertEqual(out, "(a) x\n(a) x\n")


class OptionsTest(unittest.TestCase):
    def test_encode(self):
        o = dict(num_cpus=0.5, num_gpus=1, memory=1 << 30, resources={"lic": 2}, max_retries=-1, priority=3, time=1.5, max_calls=4,
            runtime_env={"env_vars": {"B": "2", "A": "1"}, "working_dir": "/"}, scheduling_strategy="SPREAD", _generator_backpressure_num_objects=5)  # fmt: skip
        self.assertEqual(_pack.unpack(_remote.encode(o, "f")), {"name": "f", "cpu": 5000, "gpu": 10000, "memory": 1 << 30, "resources": {"lic": 20000}, "max_retries": -1,
            "priority": 3, "time": 1500000000, "max_calls": 4, "env": {"A": "1", "B": "2"}, "working_dir": "/", "strategy": ["spread"], "backpressure": 5})  # fmt: skip
        self.assertEqual(_pack.unpack(_remote.encode({}, "f")), {"name": "f"})

    def test_strategies(self):
        s = scheduling
        self.assertEqual(s.encode(s.NodeAffinitySchedulingStrategy("n1", soft=True), None), ["node", "n1", True])
        self.assertEqual(
            s.encode(s.NodeLabelSchedulingStrategy({"a": s.In("x", "y"), "b": s.Exists()}, soft={"c": s.NotIn("z"), "d": s.DoesNotExist()}), None),
            ["labels", {"a": ["in", ["x", "y"]], "b": ["exists", []]}, {"c": ["!in", ["z"]], "d": ["!exists", []]}],
        )
        self.assertEqual(s.encode(None, {"a": "x", "b": "!y", "c": "in(p, q)", "d": "!in(r)"}), ["labels", {"a": ["in", ["x"]], "b": ["!in", ["y"]], "c": ["in", ["p", "q"]], "d": ["!in", ["r"]]}, {}])

    def test_refused(self):
        for bad in (dict(num_cpus=-1), dict(num_cpus="1"), dict(num_cpu=1), dict(num_returns=-1), dict(num_returns=1.5), dict(max_retries=-2), dict(retry_exceptions=[3]), dict(retry_exceptions="x"),
                dict(resources={"CPU": 1}), dict(scheduling_strategy="PACK"), dict(runtime_env={"env_vars": {"A": 1}}), dict(runtime_env={"working_dir": "/nowhere"}), dict(num_cpus=float("nan"))):  # fmt: skip
            with self.assertRaises(ValueError, msg=str(bad)):
                launcher.remote(**bad)(len)
        with self.assertRaises(launcher.Error) as c:
            launcher.remote(runtime_env={"pip": ["x"]})(len)
        self.assertIn("not in this version", str(c.exception))
        with self.assertRaises(TypeError):
            launcher.remote(lambda: 1)()
        with self.assertRaises(TypeError):
            launcher.remote()

        async def coroutine():
            pass

        self.assertRaises(ValueError, launcher.remote, coroutine)


if __name__ == "__main__":
    unittest.main()
