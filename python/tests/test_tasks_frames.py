"""What is allowed alone is allowed in sum too, or refused with an error: no frame is too long
for the agent, and no worker dies of one."""

import os
import tempfile
import unittest
from unittest import mock

import fake_agent
import numpy as np
import task_cases

import launcher
from launcher import _client, _frames, exceptions

TEXT = "x" * (_frames.INLINE_MAX - 200)
MANY = 2 * _frames.INLINE_SUM // _frames.INLINE_MAX


class FramesTest(task_cases.Connected, unittest.TestCase):
    bound = 240

    @classmethod
    def setUpClass(cls):
        cls.dir = tempfile.TemporaryDirectory()
        cls.path = os.path.join(cls.dir.name, "s")
        cls.agent = fake_agent.Agent(cls.path, 1)

    @classmethod
    def tearDownClass(cls):
        cls.agent.close()
        cls.dir.cleanup()

    def test_many_results(self):
        text = TEXT

        @launcher.remote(num_returns=MANY)
        def many():
            return [text + str(i) for i in range(MANY)]

        self.agent.longest, before = 0, self.agent.counts["shared"]
        got = launcher.get(many.remote())
        self.assertEqual([v[len(TEXT) :] for v in got], [str(i) for i in range(MANY)])
        self.assertLess(self.agent.longest, _frames.INLINE_SUM + 48 * MANY)
        self.assertGreaterEqual(self.agent.counts["shared"] - before, MANY // 2 - 1)

    def test_many_arguments(self):
        @launcher.remote
        def ends(*values, last):
            return [v[len(TEXT) :] if isinstance(v, str) else v.size for v in values] + [last]

        refs = [launcher.put(TEXT + str(i)) for i in range(MANY)]
        refs[MANY - 3] = launcher.put(np.zeros(100000))  # shared, and apart too
        want = [str(i) for i in range(MANY)]
        want[MANY - 3] = 100000
        self.assertEqual(launcher.get(ends.remote(*refs, refs[0], last=5)), [*want, "0", 5])

    def test_an_argument_apart_that_failed(self):
        @launcher.remote
        def fails():
            raise KeyError("lost")

        @launcher.remote
        def count(*values):
            return len(values)

        refs = [launcher.put(TEXT) for i in range(MANY)]
        with self.assertRaises(KeyError):
            launcher.get(count.remote(*refs, fails.remote()))
        self.assertEqual(launcher.get(count.remote(1)), 1)

    def test_room_comes_back(self):
        """Of results that were placed in vain."""
        client = _client.current()
        launcher.put(np.zeros(100000))
        client.ask("sync")

        def free():
            return sum(e - b for s in client.store.own for b, e in s.free) + sum(n for _, _, n in client.store.unused)

        class Bad:
            size, refs, form, head, buffers = 1 << 62, [], 0, b"", []

        client.store.take(1 << 40)
        before = free()
        big = launcher._serial.encode(b"x" * 100000)
        with mock.patch.object(client, "room", side_effect=[client.room(100000), OSError]), self.assertRaises(OSError):
            client.several([big, Bad()])
        client.store.take(1 << 40)
        self.assertEqual(free(), before)

    def test_later(self):
        """Values that the agent has only announced are asked for again."""
        @launcher.remote
        def double(i):
            return 2 * i

        refs = [double.remote(i) for i in range(20)]
        launcher.wait(refs, num_returns=20, fetch_local=False)
        self.agent.later = 30
        self.assertEqual(launcher.get(refs), [2 * i for i in range(20)])
        self.assertEqual(self.agent.later, 0)

    def test_too_long(self):
        @launcher.remote
        def same(*v):
            return v

        refs = [launcher.put(i) for i in range(300)]
        ref, big = refs[0], np.zeros(_frames.BODY_MAX, np.uint8)
        with mock.patch.object(_frames, "BODY_MAX", 4 << 10):
            for what in (lambda: launcher.put(refs), lambda: same.remote(refs)):
                with self.assertRaisesRegex(ValueError, "references.*at most 4096 are allowed"):
                    what()
        with mock.patch.object(_frames, "MANY_MAX", 100), self.assertRaisesRegex(ValueError, "101 arguments.*pass a list"):
            same.remote(*[ref] * 101)
        with self.assertRaisesRegex(ValueError, "num_returns"):
            same.options(num_returns=_frames.MANY_MAX + 1)
        with self.assertRaisesRegex(ValueError, "options"):
            same.options(name="n" * (_frames.OPTIONS_MAX + 1)).remote()
        with self.assertRaisesRegex(ValueError, "16 MiB.*put"):
            launcher.remote(lambda: big.sum()).remote()
        self.assertEqual(launcher.get(same.remote(1)), (1,))

    def test_too_long_in_a_worker(self):
        @launcher.remote
        def many():
            launcher._frames.BODY_MAX = _frames.INLINE_SUM + 4096  # as if there were a million
            return [launcher.put(i) for i in range(300)]

        @launcher.remote(num_returns=3)
        def long_error():
            raise KeyError("k" * (_frames.BODY_MAX + 1), b"x" * (2 << 20))

        with self.assertRaisesRegex(exceptions.RayTaskError, "references.*allowed"):
            launcher.get(many.remote())
        for ref in long_error.remote():
            with self.assertRaisesRegex(exceptions.RayTaskError, r"KeyError.*\[...\]") as c:
                launcher.get(ref)
            self.assertLess(len(str(c.exception)), 1 << 20)


if __name__ == "__main__":
    unittest.main()
