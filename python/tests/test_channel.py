"""Channels between processes, without an agent."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import unittest

import numpy as np

from launcher import _serial, channel, exceptions

# A process that answers on the second channel what comes on the first.
ECHO = """
import pickle, sys
from launcher import channel
a, b = pickle.load(sys.stdin.buffer)
reader, writer = a.reader(), b.writer()
print("ready", flush=True)
try:
    while True:
        value = reader.read()
        writer.write(reader.count if isinstance(value, str) and value == "count" else value)
except channel.RayChannelError as e:
    print(e, flush=True)
"""


@unittest.skipUnless(channel.usable(), "SKIP: no channels on this machine")
class ChannelTest(unittest.TestCase):
    def setUp(self):
        late = threading.Timer(240, os.kill, (os.getpid(), signal.SIGABRT))
        late.daemon = True
        late.start()
        self.addCleanup(late.cancel)

    def echo(self, **options):
        a, b = channel.create(**options), channel.create(**options)
        child = subprocess.Popen([sys.executable, "-c", ECHO], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.addCleanup(child.stdout.close)
        self.addCleanup(child.wait)
        self.addCleanup(child.kill)
        pickle.dump((a, b), child.stdin)
        child.stdin.close()
        writer, reader = a.writer(), b.reader()
        self.assertEqual(child.stdout.readline(), b"ready\n")
        return child, writer, reader

    def test_values(self):
        _, writer, reader = self.echo(size=1 << 16)
        sent = [0, None, "a" * 100, {"a": [1, (2, 3)]}, lambda: 7, np.arange(100), np.arange(1 << 16), np.arange(1 << 18), np.arange(10), b"x" * 200000, list(range(100000))]
        for v in sent * 3:  # what is larger than a slot has memory of its own
            writer.write(v, timeout=120)
            got = reader.read(timeout=120)
            if callable(v):
                self.assertEqual(got(), 7)
            elif isinstance(v, np.ndarray):
                np.testing.assert_array_equal(got, v)
                self.assertFalse(got.flags.writeable)
            else:
                self.assertEqual(got, v)

    def test_an_array_stays_until_the_next_read(self):
        c = channel.create(slots=1)
        w, r = c.writer(), c.reader()
        w.write(np.zeros(10))
        a = r.read()
        with self.assertRaises(exceptions.RayChannelTimeoutError):
            w.write(np.ones(10), timeout=0.05)
        self.assertEqual(a.sum(), 0)
        r.release()
        w.write(np.ones(10), timeout=60)
        self.assertEqual(r.read(60).sum(), 10)
        w.close()
        del a

    def test_all_readers_get_all(self):
        c = channel.create(readers=3, slots=2)
        w, readers = c.writer(), [c.reader(i) for i in range(3)]
        got = [[] for _ in readers]

        def read(i):
            for _ in range(500):
                got[i].append(readers[i].read(120))

        threads = [threading.Thread(target=read, args=(i,)) for i in range(3)]
        for t in threads:
            t.start()
        for i in range(500):
            w.write(i, timeout=120)
        for t in threads:
            t.join()
        self.assertEqual(got, [list(range(500))] * 3)

    def test_counts_wrap(self):
        c = channel.create()
        for party in range(2):
            c.words[channel._party(party)] = 0xFFFFFFFE
        w, r = c.writer(), c.reader()
        for i in range(6):
            w.write(i, timeout=60)
            self.assertEqual(r.read(60), i)

    def test_close(self):
        c = channel.create()
        w, r = c.writer(), c.reader()
        w.write(1)
        w.close()
        self.assertEqual(r.read(), 1)
        for call in (r.read, lambda: w.write(2)):
            with self.assertRaisesRegex(exceptions.RayChannelError, "closed"):
                call()

    def test_close_wakes(self):
        child, writer, reader = self.echo()
        writer.write(1)
        self.assertEqual(reader.read(60), 1)
        writer.close()
        self.assertIn(b"closed", child.stdout.readline())
        self.assertEqual(child.wait(60), 0)

    def test_death(self):
        for word in ("read", "write"):
            child, writer, reader = self.echo(slots=1)
            writer.write(1)
            self.assertEqual(reader.read(60), 1)
            child.kill()  # a zombie, as nobody waits for it yet
            with self.assertRaisesRegex(exceptions.RayChannelError, "gone"):
                while True:
                    reader.read(60) if word == "read" else writer.write(1, timeout=60)

    def test_one_process_an_end(self):
        child, writer, _ = self.echo()
        with self.assertRaisesRegex(exceptions.RayChannelError, f"process {child.pid}"):
            writer.channel.reader(0)
        self.assertRaises(ValueError, writer.channel.reader, 1)

    def test_gone_and_foreign(self):
        c = channel.create()
        text = pickle.dumps(c)
        _, _, token = c.__reduce__()[1]
        with self.assertRaisesRegex(exceptions.RayChannelError, "is gone"):
            channel._open(os.getpid(), c.fd, token ^ 1)
        del c
        with self.assertRaises(exceptions.RayChannelError):
            pickle.loads(text)

    def test_errors_travel(self):
        c = channel.create()
        w, r = c.writer(), c.reader()
        data = _serial.task_failed(ValueError("no"), "f", "n", 1)
        w.put(channel.ERROR, _serial.Encoded(_serial.FORM_PLAIN, len(data), data, [], []))
        with self.assertRaisesRegex(ValueError, "no"):
            r.read(60)


if __name__ == "__main__":
    unittest.main()
