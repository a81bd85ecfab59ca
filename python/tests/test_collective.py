"""launcher.collective without an agent: the memory is made here, ranks are threads.

Groups of real processes, with Go ranks and several nodes, are tested by collectives/.
"""

import array
import json
import os
import socket
import struct
import sys
import tempfile
import threading
import time
import unittest
import warnings

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
warnings.simplefilter("error")

from launcher import _group_memory as memory  # noqa: E402
from launcher import collective  # noqa: E402


def make_memory(n, timeout=60.0, rnd=8192, small=1024, arena=4 << 20, spin=0):
    """A memory as docs/collectives.md describes it, for n ranks on one node."""
    page = 4096

    def up(x, to=page):
        return -(-x // to) * to

    at = {}
    end = page
    for name, size, to in (
        ("records", (n + 1) * 256, page),
        ("sleepers", (n + 1) * 4, 128),
        ("controls", (n + 1) * 256, page),
        ("small", n * 2 * small, page),
        ("staging", 4 * n * rnd, page),
        ("results", 4 * rnd, page),
        ("arena", n * arena, 2 << 20),
    ):
        at[name] = up(end, to)
        end = at[name] + size
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, end)
    header = struct.pack("<Q10I", memory.MAGIC, 1, n, n, 0, 1, 0, spin, small, 4, rnd)
    header += struct.pack("<11Q", int(timeout * 1e9), at["records"], at["sleepers"], at["controls"], at["small"], at["staging"], at["results"], at["arena"], arena, end, 256)
    os.pwrite(fd, header, 0)
    os.pwrite(fd, struct.pack("<2I", 0, n), 256)
    return fd


class Ranks:
    """n ranks on threads of this process."""

    def __init__(self, n, **how):
        self.fd = make_memory(n, **how)
        self.groups = [collective.Group(memory.Memory(os.dup(self.fd), i)) for i in range(n)]

    def run(self, work, ranks=None):
        """work(group) on every rank; what each returned or raised."""
        out = [None] * len(self.groups)

        def one(i):
            try:
                out[i] = work(self.groups[i])
            except Exception as e:
                out[i] = e

        threads = [threading.Thread(target=one, args=(i,)) for i in (ranks or range(len(self.groups)))]
        for t in threads:
            t.start()
        for t in threads:
            t.join(60)
            assert not t.is_alive(), "a rank hangs"
        return out

    def close(self):
        for g in self.groups:
            g.close()
        os.close(self.fd)


class Operations(unittest.TestCase):
    def setUp(self):
        self.ranks = Ranks(3)
        self.addCleanup(self.ranks.close)

    def all(self, work):
        out = self.ranks.run(work)
        for r in out:
            if isinstance(r, Exception):
                raise r
        return out

    def test_shapes(self):
        for shape in ((), (5,), (4, 100), (3, 50, 30)):
            for kind in ("private", "shared"):

                def work(g, shape=shape, kind=kind):
                    a = g.empty(shape, "float64") if kind == "shared" else np.empty(shape)
                    a[...] = g.rank + 1
                    b = g.all_reduce(a)
                    self.assertIs(a, b)
                    return a

                for a in self.all(work):
                    self.assertEqual(a.shape, shape)
                    self.assertTrue((a == 6).all())

    def test_gather_and_scatter(self):
        def work(g):
            got = g.all_gather(np.full((2, 3), g.rank, np.int32))
            self.assertEqual(got.shape, (3, 2, 3))
            self.assertTrue((got == np.arange(3)[:, None, None]).all())
            v = np.arange(10.0) * (g.rank + 1)
            part = g.reduce_scatter(v, "mean")
            self.assertTrue(np.array_equal(part, np.arange(10.0)[g.part(10)] * 2))
            whole = np.empty(10)
            self.assertIs(g.all_gather(part, out=whole), whole)
            self.assertTrue(np.array_equal(whole, np.arange(10.0) * 2))
            r = np.array([g.rank], np.int64)
            g.reduce(r, "max", root=1)
            self.assertEqual(r[0], 2 if g.rank == 1 else g.rank)
            g.broadcast(r, root=1)
            self.assertEqual(r[0], 2)
            g.barrier()

        self.all(work)

    def test_wrapping_and_nan(self):
        def work(g):
            i = np.full(4, 2**31 - 1, np.int32)
            g.all_reduce(i)
            self.assertEqual(i[0], 3 * (2**31 - 1) - 2**32)
            f = np.array([1.0, np.nan if g.rank == 1 else 5.0, g.rank])
            lo, hi = f.copy(), f.copy()
            g.all_reduce(lo, "min")
            g.all_reduce(hi, "max")
            self.assertTrue(np.isnan(lo[1]) and np.isnan(hi[1]) and lo[2] == 0 and hi[2] == 2)

        self.all(work)

    def test_round_once(self):
        def work(g):
            one = 0x3F80 if g.rank == 0 else 0x3B80  # 1, and 2**-8: half of 1's last place
            b = np.full(2000, one, np.uint16)
            g.all_reduce(b, dtype="bfloat16")
            h = np.full(2000, 1 if g.rank == 0 else 2.0**-11, np.float16)
            g.all_reduce(h)
            return b[0], h[0]

        for b, h in self.all(work):
            self.assertEqual(b, 0x3F81)  # rounding each sum would give 1 again
            self.assertEqual(h, 1 + 2.0**-10)

    def test_arena(self):
        g = self.ranks.groups[0]
        a = g.empty(100_000, "float64")
        b = g.empty((3, 7), "bfloat16")
        self.assertEqual(b.dtype, np.uint16)
        a[:] = 1
        b[:] = 2
        self.assertTrue((a == 1).all())
        view = a[5:]
        at = g._offset(a)
        del a
        c = g.empty(100_000, "float64")  # the view still holds the memory
        self.assertNotEqual(g._offset(c), at)
        self.assertTrue((view == 1).all())
        del view
        d = g.empty(100_000, "float64")
        self.assertEqual(g._offset(d), at)
        with self.assertRaises(collective.Error) as e:
            g.empty(1 << 20, "float64")
        self.assertEqual(e.exception.kind, "exhausted")
        self.assertEqual(g.empty(0).size, 0)

    def test_refusals(self):
        g = self.ranks.groups[0]
        f = np.zeros(4)
        for what, call in {
            "a numpy array is needed": lambda: g.all_reduce([1.0]),
            "cannot be combined": lambda: g.all_reduce(np.zeros(3, np.uint8)),
            "not contiguous": lambda: g.all_reduce(np.zeros((4, 4))[:, 1]),
            "is not an operation": lambda: g.all_reduce(f, "average"),
            "the mean of int32": lambda: g.all_reduce(np.zeros(3, np.int32), "mean"),
            "held in uint16": lambda: g.all_reduce(f, dtype="bfloat16"),
            "not float32": lambda: g.all_reduce(f, dtype="float32"),
            "root 3": lambda: g.broadcast(f, root=3),
            "out must be": lambda: g.reduce_scatter(f, out=np.zeros(4)),
            "of which rank 0 has 3": lambda: g.all_gather(f, out=np.zeros(9)),
            ">f8": lambda: g.all_reduce(np.zeros(3, ">f8")),
        }.items():
            with self.assertRaises(collective.Error) as e:
                call()
            self.assertEqual(e.exception.kind, "invalid", what)
            self.assertIn(what, str(e.exception))
        self.test_gather_and_scatter()  # nothing was published


class Failures(unittest.TestCase):
    def ranks(self, n, **how):
        r = Ranks(n, **how)
        self.addCleanup(r.close)
        return r

    def test_mismatch(self):
        r = self.ranks(3)
        for e in r.run(lambda g: g.all_reduce(np.zeros(5 + (g.rank == 1)))):
            self.assertIsInstance(e, collective.Mismatch)
            self.assertIn("5 x float64", e.cause)
            self.assertIn("6 x float64", e.cause)

    def test_never_calls(self):
        r = self.ranks(3, timeout=3)  # a busy machine may start the second thread late
        for e in r.run(lambda g: g.all_reduce(np.zeros(5)), ranks=[0, 2])[::2]:
            self.assertIsInstance(e, collective.Timeout)
            self.assertEqual(e.rank, 1)
        with self.assertRaises(collective.Timeout):
            r.groups[1].barrier()

    def test_set_timeout(self):
        r = self.ranks(2, timeout=1000)
        r.groups[0]._mem.set_timeout(0.2)  # as init(timeout=0.2) does
        start = time.monotonic()
        with self.assertRaises(collective.Timeout) as e:
            r.groups[0].barrier()
        self.assertLess(time.monotonic() - start, 100)
        self.assertEqual(e.exception.rank, 1)
        with self.assertRaises(collective.Error):
            collective.init(timeout=0)

    def test_no_room(self):
        r = self.ranks(1, arena=64 << 20)
        g = r.groups[0]
        whole, left = memory.room, [100 << 20, 84 << 20, 20 << 20]
        before = os.fstat(g._mem.fd).st_blocks
        memory.room = lambda: left.pop(0) if len(left) > 1 else left[0]
        try:
            with self.assertRaises(collective.Error) as e:  # others take what seemed free
                g.empty(48 << 20, "uint8")
        finally:
            memory.room = whole
        self.assertEqual(e.exception.kind, "exhausted")
        self.assertIn(f"{20 << 20} bytes of memory are left", str(e.exception))
        self.assertEqual(os.fstat(g._mem.fd).st_blocks, before, "what was taken is given back")
        self.assertEqual(g.empty(48 << 20, "uint8").nbytes, 48 << 20)

    def test_leaves(self):
        r = self.ranks(2)
        r.groups[1].close()
        with self.assertRaises(collective.PeerLost) as e:
            r.groups[0].barrier()
        self.assertEqual(e.exception.rank, 1)
        with self.assertRaises(collective.Error):
            r.groups[1].barrier()

    def test_abort_wakes(self):
        r = self.ranks(2)
        m = r.groups[1]._mem
        threading.Timer(0.3, lambda: m.end(memory.LOST, 1, "killed by SIGKILL")).start()
        with self.assertRaises(collective.PeerLost) as e:
            r.groups[0].barrier()
        self.assertEqual((e.exception.rank, e.exception.cause), (1, "killed by SIGKILL"))

    def test_fork(self):
        r = self.ranks(1)
        collective._group = r.groups[0]
        before = bytes(r.groups[0]._mem.bytes[: r.groups[0]._mem.small_at])
        pid = os.fork()
        if pid == 0:
            os._exit(0 if collective._group is None and r.groups[0].closed else 1)
        self.assertEqual(os.waitpid(pid, 0)[1], 0)
        self.assertFalse(r.groups[0].closed)
        self.assertEqual(bytes(r.groups[0]._mem.bytes[: len(before)]), before)
        collective._group = None

    def test_second_process(self):
        r = self.ranks(1)
        r.groups[0]._mem._u32[r.groups[0]._mem._own32(60)] = 1  # always lives
        with self.assertRaises(collective.Error) as e:
            memory.Memory(os.dup(r.fd), 0)
        self.assertEqual(e.exception.kind, "exists")

    def test_foreign_memory(self):
        for spoil, kind in (((0, b"x"), "corrupt"), ((8, b"\7"), "version"), ((120, b"\1"), "corrupt"), ((57, b"\xff" * 6), "corrupt")):
            fd = make_memory(1)
            os.pwrite(fd, spoil[1], spoil[0])
            with self.assertRaises(collective.Error) as e:
                memory.Memory(fd, 0)
            self.assertEqual(e.exception.kind, kind)


class Joining(unittest.TestCase):
    """init() against an agent of our own."""

    def setUp(self):
        self.dir = tempfile.TemporaryDirectory()
        self.addCleanup(self.dir.cleanup)
        self.path = os.path.join(self.dir.name, "agent.sock")
        self.server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.server.bind(self.path)
        self.server.listen()
        self.addCleanup(self.server.close)
        self.env = {"LAUNCHER_SOCKET": self.path, "LAUNCHER_PROC": "7.0#1/1", "WORLD_SIZE": "2"}
        os.environ.update(self.env)
        self.addCleanup(lambda: [os.environ.pop(k, None) for k in self.env])
        collective._group = None
        self.asked = None

    def agent(self, *answers):
        """Answer each connection in turn; None breaks it."""

        def serve():
            for answer in answers:
                conn, _ = self.server.accept()
                with conn:
                    data = conn.recv(65536)
                    self.asked = struct.unpack_from("<IHH", data)[1], json.loads(data[8:])
                    if answer is None:
                        continue
                    kind, body, fd = answer
                    body = json.dumps(body).encode()
                    frame = struct.pack("<IHH", len(body) + 4, kind, 0) + body
                    oob = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))] if fd is not None else []
                    conn.sendmsg([frame[:10]], oob)
                    time.sleep(0.02)  # an answer may come in pieces
                    conn.sendall(frame[10:])

        t = threading.Thread(target=serve)
        t.start()
        self.addCleanup(t.join)

    def test_join(self):
        fd = make_memory(2)
        self.agent(None, (memory.MSG_JOINED, {"rank": 1, "world": 2}, fd))  # the first breaks: it is asked again
        g = collective.init()
        self.assertEqual((g.rank, g.size), (1, 2))
        self.assertEqual(self.asked, (memory.MSG_JOIN, {"proc": "7.0#1/1"}))
        self.assertIs(collective.init(), g)
        g.close()
        os.close(fd)

    def test_refused(self):
        self.agent((memory.MSG_ERROR, {"kind": "fenced", "msg": "replaced", "hints": ["do so"]}, None))
        with self.assertRaises(collective.Error) as e:
            collective.init()
        self.assertEqual((e.exception.kind, e.exception.msg, e.exception.hints), ("fenced", "replaced", ["do so"]))

    def test_gone(self):
        self.server.close()
        os.unlink(self.path)
        with self.assertRaises(collective.Error) as e:
            collective.init()
        self.assertEqual(e.exception.kind, "unavailable")

    def test_alone(self):
        os.environ["WORLD_SIZE"] = "1"
        with collective.init() as g:
            a = np.arange(3.0)
            self.assertEqual((g.rank, g.size, list(g.all_reduce(a, "mean"))), (0, 1, [0, 1, 2]))
            self.assertEqual(g.all_gather(a).shape, (1, 3))
            g.reduce(a), g.broadcast(a), g.barrier()
            self.assertEqual(list(g.reduce_scatter(a)), [0, 1, 2])
            self.assertEqual(g.empty((2, 2)).shape, (2, 2))
        with self.assertRaises(collective.Error):
            g.all_reduce(a)


class Plan(unittest.TestCase):
    def test_parts(self):
        for count in (0, 1, 7, 64, 1000):
            for n in range(1, 9):
                for f in (memory.part, lambda c, n, i: memory.share(c, n, i, 4)):
                    at = 0
                    for i in range(n):
                        a, b = f(count, n, i)
                        self.assertEqual(a, at)
                        at = b
                    self.assertEqual(at, count)

    def test_words(self):
        sig = memory.signature(memory.REDUCE, memory.TYPES.index("bfloat16"), memory.OPS.index("mean"), 3, 77)
        self.assertEqual(memory.describe(sig), "reduce (mean) of 77 x bfloat16 with root 3")
        self.assertEqual(memory.describe(memory.signature(memory.BARRIER)), "barrier")
        for sig in (0, 2**64 - 1, 0x7FFF << 48):
            memory.describe(sig)


if __name__ == "__main__":
    unittest.main()
