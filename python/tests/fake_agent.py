"""A small agent for the tests of the SDK: it speaks docs/tasks.md to a driver and to
workers forked from the real template, all in this process. It is not fast, and forgets
nothing."""

import collections
import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if HERE not in sys.path:
    sys.path.insert(0, HERE)

from launcher import _frames as f  # noqa: E402
from launcher import _pack, _store  # noqa: E402

SEGMENT = 64 << 20
MASK = (1 << 64) - 1


def memfd(size):
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    return fd


class Index:
    """An index of objects as agents write it."""

    def __init__(self, capacity=1 << 14):
        import mmap

        self.fd = memfd(4096 + 64 * capacity)
        self.map = mmap.mmap(self.fd, 0)
        self.capacity = capacity
        struct.pack_into("<IIII", self.map, 0, _store.INDEX_MAGIC, 1, capacity, 0)
        self.generation = 0

    def slot(self, id):
        a, b = struct.unpack("<QQ", id)
        h = a ^ (b * 0x9E3779B97F4A7C15 & MASK)
        h ^= h >> 32
        s = h & (self.capacity - 1)
        while True:
            state = struct.unpack_from("<I", self.map, 4096 + 64 * s + 4)[0]
            if state == 0 or bytes(self.map[4096 + 64 * s + 8 : 4096 + 64 * s + 24]) == id and state != 1:
                return s
            s = (s + 1) & (self.capacity - 1)

    def write(self, id, state, segment, offset, size, form):
        at = 4096 + 64 * self.slot(id)
        version = struct.unpack_from("<I", self.map, at)[0]
        self.generation += 1
        struct.pack_into("<I", self.map, at, version + 1)
        struct.pack_into("<I16sIIQQI", self.map, at + 4, state, id, segment, self.generation, offset, size, form)
        struct.pack_into("<I", self.map, at, version + 2)

    def state(self, id, state):
        at = 4096 + 64 * self.slot(id)
        if state == 1 and not struct.unpack_from("<I", self.map, 4096 + (at + 64 - 4096) % (64 * self.capacity) + 4)[0]:
            state = 0  # nothing was probed past it
        struct.pack_into("<I", self.map, at + 4, state)


class Conn:
    def __init__(self, sock):
        self.sock, self.buf, self.kind, self.client = sock, bytearray(), 0, 0
        self.functions, self.shapes, self.segments = set(), {}, {}
        self.running, self.sequence, self.waits = [], 0, []
        self.wants, self.dead, self.template = {}, False, False
        self.pins, self.control, self.greeted = None, None, False
        self.seen = collections.Counter()

    def send(self, type, body, fds=(), flags=0):
        if self.dead:
            return
        data = f.HEAD.pack(len(body) + 4, type, flags) + body
        try:
            if fds:
                n = socket.send_fds(self.sock, [data], list(fds))
                data = data[n:]
            self.sock.sendall(data)
        except OSError:
            self.dead = True


class Agent:
    """Listens on path; workers=N are forked from a template."""

    def __init__(self, path, workers=0, node=7, python=sys.executable):
        self.path = path
        self.index = Index()
        self.lock = threading.RLock()
        self.conns, self.clients, self.nonces = {}, 0, {}
        self.objects = {}  # id -> (kind, form, refs, size, data or place)
        self.functions, self.tasks, self.queue = {}, {}, collections.deque()
        self.counts = collections.Counter()
        self.next_segment, self.segments, self.used = 1, {}, {}
        self.node, self.calls, self.requests = node, {}, []
        self.longest = self.later = 0  # of the frames of clients; so many values are only announced
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(path)
        self.listener.listen(64)
        self.closing = False
        self.wake = os.pipe()
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()
        self.template = None
        if workers:
            self.start(python)
            for _ in range(workers):
                self.fork()

    # Workers.

    def start(self, python):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        env = {**os.environ, "PYTHONPATH": os.pathsep.join((HERE, os.path.join(HERE, "tests"), os.environ.get("PYTHONPATH", ""))), "PYTHONDONTWRITEBYTECODE": "1"}

        def three():
            os.dup2(theirs.fileno(), 3)

        self.process = subprocess.Popen([python, "-m", "launcher._template"], env=env, preexec_fn=three, pass_fds=(3,) if theirs.fileno() == 3 else (), close_fds=False)
        theirs.close()
        self.template = ours
        assert json.loads(ours.recv(1 << 16)) == {"ready": True}
        self.orders = 0

    def fork(self, env=None, cwd=None, cpus=None):
        ours, theirs = socket.socketpair()
        self.orders += 1
        order = {"id": self.orders, "env": {"LAUNCHER_WORKER": f"token{self.orders}", "LAUNCHER_SOCKET": self.path, **(env or {})}, "cwd": cwd or HERE, "name": f"worker-{self.orders}", "seed": self.orders, "cpus": cpus}
        socket.send_fds(self.template, [json.dumps(order).encode()], [theirs.fileno(), 1, 2])
        theirs.close()
        answer = json.loads(self.template.recv(1 << 16))
        assert answer.get("id") == self.orders and answer.get("pid"), answer
        with self.lock:
            c = Conn(ours)
            c.pid = answer["pid"]
            self.conns[ours.fileno()] = c
        os.write(self.wake[1], b"x")
        return answer["pid"]

    # The loop.

    def serve(self):
        while not self.closing:
            with self.lock:
                fds = [c.sock for c in self.conns.values() if not c.dead]
            ready, _, _ = select.select([self.listener, self.wake[0], *fds], [], [], 1.0)
            for s in ready:
                if s is self.wake[0]:
                    os.read(s, 100)
                elif s is self.listener:
                    c, _ = s.accept()
                    with self.lock:
                        self.conns[c.fileno()] = Conn(c)
                else:
                    with self.lock:
                        c = self.conns.get(s.fileno())
                        if c is not None:
                            self.read(c)

    def read(self, c):
        try:
            data = c.sock.recv(1 << 20)
        except OSError:
            data = b""
        if not data:
            c.dead = True
            self.conns.pop(c.sock.fileno(), None)
            c.sock.close()
            self.ended(c)
            return
        c.buf += data
        if not c.greeted:
            if len(c.buf) < 4:
                return
            assert c.buf[:4] == b"LSDK", bytes(c.buf[:20])
            del c.buf[:4]
            c.greeted = True
        at = 0
        while len(c.buf) - at >= 8:
            n, type, flags = f.HEAD.unpack_from(c.buf, at)
            if len(c.buf) - at < n + 4:
                break
            self.longest = max(self.longest, n)
            self.frame(c, type, bytes(c.buf[at + 8 : at + 4 + n]))
            at += n + 4
        del c.buf[:at]
        self.schedule()

    def ended(self, c):
        for task in c.running:
            t = self.tasks[task]
            t["attempt"] += 1
            if t["attempt"] > 1 + t["options"].get("max_retries", 3):
                self.fail(t, ["worker_crashed", "the worker died", "", None, t["name"], "n", c.pid, []])
            else:
                self.queue.append(task)
        c.running = []
        if c.kind == 2 and not self.closing and self.template is not None and not c.template:
            self.fork()
        self.schedule()

    def fail(self, t, fields):
        data = _pack.pack(fields)
        for i in range(max(t["returns"] if t["returns"] != f.STREAM else 1, 1)):
            low = t["low"] + (t["yields"] if t["returns"] == f.STREAM else 0) + i + 1
            self.store(t["task"][:8] + struct.pack("<Q", low), (f.FAILED, 1, [], len(data), data))

    # Frames.

    def frame(self, c, type, b):
        c.seen[type] += 1
        getattr(self, "on_%04x" % type)(c, b)

    def on_0410(self, c, b):
        h = _pack.unpack(b)
        c.hello, c.kind = h, h[1]
        if h[7]:
            assert self.nonces[h[7]][0] == h[8]
            c.client, c.pins_fd, c.control_fd = h[7], self.nonces[h[7]][1], self.nonces[h[7]][2]
            c.shapes = self.nonces[h[7]][3]
        else:
            self.clients += 1
            c.client, c.pins_fd, c.control_fd = self.clients, memfd(4096), memfd(4096)
        self.nonces[c.client] = (h[8], c.pins_fd, c.control_fd, c.shapes)
        fds = [self.index.fd, c.pins_fd] + ([c.control_fd] if c.kind == 2 else [])
        c.send(f.WELCOME, _pack.pack([1, self.node, c.client, f"node-{self.node}", "test", "job-1", f.INLINE_MAX, h[8], 20000]), fds)

    def on_0411(self, c, b):
        self.functions[b[:16]] = b

    def on_0412(self, c, b):
        c.shapes[struct.unpack_from("<I", b)[0]] = _pack.unpack(b[4:])

    def on_0413(self, c, b):
        task, fn, shape, returns, flags, deps, held = struct.unpack_from("<16s16sIIIII", b)
        ids = [b[52 + 16 * i : 68 + 16 * i] for i in range(deps + held)]
        if task in self.tasks:
            return
        self.counts["tasks"] += 1
        for id in ids:
            self.counts[id] += 1  # what tasks refer to is never freed here
        options = c.shapes[shape]
        self.tasks[task] = dict(task=task, fn=fn, returns=returns, flags=flags, deps=ids[:deps], payload=b[52 + 16 * (deps + held) :], attempt=1,
            options=options, name=options.get("name", ""), low=struct.unpack("<Q", task[8:])[0], yields=0, cancelled=False, parent=c.running[-1] if c.running else None)  # fmt: skip
        self.queue.append(task)

    def value(self, b, at):
        kind, form, refs, size = f.VALUE.unpack_from(b, at)
        at += 16
        ids = [b[at + 16 * i : at + 16 * i + 16] for i in range(refs)]
        at += 16 * refs
        n = 16 if kind == f.SHARED else size
        return (kind, form, ids, size, b[at : at + n]), at + n

    def store(self, id, v):
        if id in self.objects:
            return
        kind, form, refs, size, data = v
        if kind == f.SHARED:
            self.counts["shared"] += 1
            segment, _, offset = f.PLACE.unpack(data)
            self.index.write(id, 2, segment, offset, size, form)
            self.used[id] = (segment, offset, size)
        self.objects[id] = v
        for c in list(self.conns.values()):
            if id in c.wants:
                self.tell(c, id, c.wants.pop(id))
                for depth, ids in c.waits:
                    ids.discard(id)
                c.waits = [w for w in c.waits if w[1]]

    def tell(self, c, id, flags):
        kind, form, refs, size, data = self.objects[id]
        if kind == f.INLINE and flags & 1 and self.later > 0:
            self.later -= 1
            c.send(f.OBJECT, id + f.VALUE.pack(kind, form, 0, size), flags=f.READY_ONLY | f.LATER)
        elif kind == f.INLINE and not flags & 1:
            c.send(f.OBJECT, id + f.VALUE.pack(kind, form, 0, size), flags=1)
        else:
            c.send(f.OBJECT, id + f.VALUE.pack(kind, form, len(refs), size) + b"".join(refs) + (b"" if kind == f.SHARED else data))

    def on_0414(self, c, b):
        self.counts["puts"] += 1
        self.store(b[:16], self.value(b, 16)[0])

    def on_0415(self, c, b):
        flags = struct.unpack_from("<I", b)[0]
        blocks = set()
        for i in range(8, len(b), 16):
            id = b[i : i + 16]
            if id in self.objects:
                self.tell(c, id, flags)
            else:
                c.wants[id] = flags
                blocks.add(id)
        if flags & 2 and blocks:
            c.waits.append((len(c.running), blocks))

    def on_0416(self, c, b):
        c.waits = [w for w in c.waits if w[0] != len(c.running)]

    def on_0417(self, c, b):
        for i in range(0, len(b), 16):
            self.counts["released"] += 1
            id = b[i : i + 16]
            c.wants.pop(id, None)
            if id in self.used and self.counts[id] == 0:
                segment, offset, size = self.used.pop(id)
                self.index.state(id, 1)
                del self.objects[id]
                owner = self.segments[segment]
                owner.send(f.GRANTED, struct.pack("<II", 2, 1) + f.EXTENT.pack(segment, 0, offset, (size + 63) // 64 * 64))
            elif self.counts[id]:
                self.counts[id] -= 1

    def on_0418(self, c, b):
        for i in range(0, len(b), 16):
            self.counts["held"] += 1
            self.counts[b[i : i + 16]] += 1

    def on_0419(self, c, b):
        task, attempt, status, start, end, count = struct.unpack_from("<16sIIQQI", b)
        t = self.tasks.get(task)
        if t is None or task not in c.running or attempt != t["attempt"]:
            return
        c.running.remove(task)
        self.counts["results"] += 1
        if status == f.RETRY and attempt <= t["options"].get("max_retries", 3):
            t["attempt"] += 1
            self.queue.append(task)
            return
        at, base = 44, t["low"]
        if t["returns"] == f.STREAM:
            base += t["yields"]
        for i in range(count):
            v, at = self.value(b, at)
            for j in range(t["returns"] if v[0] == f.FAILED and t["returns"] != f.STREAM else 1):
                self.store(task[:8] + struct.pack("<Q", base + 1 + i + j), v)
        if t["returns"] == f.STREAM:
            for low in ([base + 1] if not count else []) + [t["low"] + 0xFFFFE]:
                self.store(task[:8] + struct.pack("<Q", low), (f.END, 0, [], 0, b""))

    def on_041a(self, c, b):
        task, attempt, index = struct.unpack_from("<16sII", b)
        t = self.tasks[task]
        t["yields"] = max(t["yields"], index + 1)
        self.store(task[:8] + struct.pack("<Q", t["low"] + index + 1), self.value(b, 24)[0])

    def on_041b(self, c, b):
        size, _ = struct.unpack("<QQ", b)
        if size > 1 << 30:
            c.send(f.GRANTED, struct.pack("<I", 3) + _pack.pack(["full", "the object memory is full", "", None, "", "", 0, ["drop some"]]))
            return
        n = self.next_segment
        self.next_segment += 1
        size = max(SEGMENT, (size + 4095) & ~4095)
        fd = memfd(size)
        self.segments[n] = c
        c.segments[n] = (fd, size)
        c.send(f.GRANTED, struct.pack("<IIQ", 1, n, size), [fd])

    def on_041c(self, c, b):
        (n,) = struct.unpack("<I", b)
        fd, size = self.segments[n].segments[n]
        ro = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
        c.send(f.SEGMENT, struct.pack("<IQ", n, size), [ro])
        os.close(ro)

    def on_041d(self, c, b):
        flags = struct.unpack_from("<I", b)[0]
        for i in range(8, len(b), 16):
            self.cancel(b[i : i + 16], flags)

    def cancel(self, task, flags):
        t = self.tasks[task]
        for child in [k for k, x in self.tasks.items() if x["parent"] == task and flags & 2]:
            self.cancel(child, flags)
        t["cancelled"] = True
        if task in self.queue:
            self.queue.remove(task)
            self.fail(t, ["cancelled", "the task was cancelled", "", None, t["name"], "", 0, []])
        for w in self.conns.values():
            if task in w.running:
                w.send(f.CANCEL_TASK, task + struct.pack("<I", t["attempt"]))
                os.kill(w.pid, 2)

    def on_041e(self, c, b):
        (sequence,) = struct.unpack("<I", b)
        for task in [t for t in c.running if self.tasks[t]["sequence"] >= sequence]:
            c.running.remove(task)
            self.queue.appendleft(task)

    def on_041f(self, c, b):
        (request,) = struct.unpack_from("<I", b)
        verb, *args = _pack.unpack(b[4:])
        self.requests.append((verb, args))
        c.send(f.ANSWER, struct.pack("<II", request, 0) + _pack.pack(self.calls.get(verb)))

    def on_0420(self, c, b):
        pass

    # Tasks.

    def schedule(self):
        free = [c for c in self.conns.values() if c.kind == 2 and not c.dead and (not c.running or c.waits and c.waits[-1][0] == len(c.running))]
        while self.queue and free:
            task = next((t for t in self.queue if all(d in self.objects for d in self.tasks[t]["deps"])), None)
            if task is None:
                return
            self.queue.remove(task)
            w = free.pop(0)
            self.give(w, task)

    def give(self, w, task):
        t = self.tasks[task]
        if t["fn"] not in w.functions:
            w.functions.add(t["fn"])
            w.send(f.GIVEN_FUNC, self.functions[t["fn"]])
        w.sequence += 1
        t["sequence"] = w.sequence
        w.running.append(task)
        about = _pack.pack(t["options"])
        body = f.EXEC_HEAD.pack(task, t["fn"], t["attempt"], w.sequence, t["returns"], t["flags"], len(t["deps"]), len(about)) + about
        room = f.INLINE_SUM
        for d in t["deps"]:
            kind, form, refs, size, data = self.objects[d]
            room -= len(data)
            if room < 0:
                body += d + f.VALUE.pack(f.APART, 0, 0, 0)
                continue
            body += d + f.VALUE.pack(kind, form, len(refs), size) + b"".join(refs) + (b"" if kind == f.SHARED else data)
        w.send(f.EXEC, body + t["payload"])

    def log(self, who, text, stream=1):
        with self.lock:
            for c in self.conns.values():
                if c.kind == 1:
                    c.send(f.LOG, struct.pack("<BBH", stream, 0, len(who)) + who.encode() + text.encode())

    def cut(self):
        """Break all connections of drivers, as an agent that is killed does."""
        with self.lock:
            for c in self.conns.values():
                if c.kind == 1:
                    c.sock.shutdown(socket.SHUT_RDWR)

    def close(self):
        with self.lock:
            self.closing = True
            for c in self.conns.values():
                if c.kind == 2:
                    c.send(f.EXIT, b"")
        os.write(self.wake[1], b"x")
        self.thread.join()
        for c in list(self.conns.values()):
            if c.kind == 2 and not c.dead:  # in a task still, it would keep our output open
                with contextlib.suppress(ProcessLookupError):
                    os.kill(c.pid, signal.SIGKILL)
            c.sock.close()
        self.listener.close()
        if self.template is not None:
            self.template.close()
            self.process.wait(60)
