"""Points about bad input, on a cluster of two nodes. After each the cluster works."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
from points import eventually, launcher, main, point, raises

import launcher as ray
from launcher import _refs

ray.init()


@ray.remote
def same(v):
    return v


def works():
    assert ray.get([same.remote(i) for i in range(20)], timeout=20) == list(range(20)), "the cluster does not work afterwards"


@point("bad.unpicklable")
def unpicklable():
    text = raises(TypeError, lambda: same.remote(threading.Lock()), "same")
    works()
    return text


@point("bad.forged-ref")
def forged():
    real = ray.put(1)
    got = []
    for id in (os.urandom(16), real.binary()[:8] + b"\xff" * 8, b"\0" * 16):
        start = time.monotonic()
        got.append(raises(ray.exceptions.RayError, lambda i=id: ray.get(_refs.load_ref(i), timeout=10)))
        assert "Timeout" not in got[-1], f"{id.hex()}: {got[-1]} after {time.monotonic() - start:.1f} s"
    works()
    return " / ".join(sorted(set(got)))


@point("bad.freed-ref")
def freed():
    r = ray.put(np.ones(1 << 20, dtype=np.uint8))
    id = r.binary()
    del r
    ray.get(same.remote(0), timeout=20)
    text = raises(ray.exceptions.RayError, lambda: ray.get(_refs.load_ref(id), timeout=10))
    assert "Timeout" not in text, text
    works()
    return text


@point("bad.impossible")
def impossible():
    start = time.monotonic()
    text = raises(ray.exceptions.TaskUnschedulableError, lambda: ray.get(same.options(num_cpus=1000).remote(1), timeout=10))
    other = raises(ray.exceptions.TaskUnschedulableError, lambda: ray.get(same.options(resources={"unheard-of": 1}).remote(1), timeout=10))
    took = time.monotonic() - start
    assert took < 3, took
    return f"{took:.2f} s: {text}; {other}"


@point("bad.garbage")
def garbage():
    @ray.remote(max_retries=0)
    def shout():
        import socket

        for fd in range(3, 64):
            try:
                s = socket.socket(fileno=os.dup(fd))
                s.send(b"\xff" * 4096)
            except OSError:
                pass
        time.sleep(1)

    text = raises(ray.exceptions.RayError, lambda: ray.get(shout.remote(), timeout=20))
    works()
    return text


@point("bad.stopped-worker")
def stopped():
    @ray.remote(max_retries=0)
    def stop():
        os.kill(os.getpid(), signal.SIGSTOP)

    r = stop.remote()
    time.sleep(0.5)
    works()
    ray.cancel(r, force=True)
    text = raises(ray.exceptions.RayError, lambda: ray.get(r, timeout=20))
    works()
    return f"others go on; by force: {text}"


class ExitsWhenDeleted:
    def __del__(self):
        os._exit(3)


@point("bad.exits-in-del")
def exits_in_del():
    @ray.remote(max_retries=0)
    def leaves_one():
        globals()["x"] = ExitsWhenDeleted()
        del globals()["x"]
        return 1

    text = raises(ray.exceptions.WorkerCrashedError, lambda: ray.get(leaves_one.remote(), timeout=20), "3")
    works()
    return text


@point("bad.too-much-in-one-task", 120)
def too_much():
    """What is allowed one by one is in sum too; what is too long is an error of its own."""
    text, n = "x" * 15000, 3000

    @ray.remote(max_retries=0, scheduling_strategy="SPREAD")
    def size(*values):
        return sum(len(v) for v in values)

    @ray.remote(max_retries=0, num_returns=n, scheduling_strategy="SPREAD")
    def texts(error=""):
        if error:
            raise KeyError(error)
        return [text[:10000]] * n

    refs = [ray.put(text) for _ in range(n)]
    assert ray.get([size.remote(*refs) for _ in range(4)], timeout=60) == [n * 15000] * 4
    assert sum(map(len, ray.get(refs, timeout=60))) == n * 15000
    for _ in range(2):
        assert sum(map(len, ray.get(texts.remote(), timeout=60))) == n * 10000
        for r in texts.remote("k" * (20 << 20))[:: n // 3]:
            long = raises(ray.exceptions.RayTaskError, lambda r=r: ray.get(r, timeout=60), "KeyError", "[...]")
            assert len(long) < 1000, long
    big = np.zeros(20 << 20, np.uint8)
    told = raises(ValueError, lambda: ray.remote(lambda: big.sum()).remote(), "put()")
    works()
    return f"{n} arguments and results of 15 and 10 KB, {n} errors of 20 MB; {told}"


@point("bad.old-python")
def old_python():
    """An interpreter that says that it is too old, as the SDK does in one."""
    fake = os.environ["TMPDIR"] + "/python3.6"
    with open(fake, "w") as f:
        f.write("#!/bin/sh\necho 'launcher needs Python 3.9 or later; this is 3.6' >&2\nexit 1\n")
    os.chmod(fake, 0o755)
    text = raises(ray.exceptions.RayError, lambda: ray.get(same.options(program=fake, max_retries=0).remote(1), timeout=30), "needs Python 3.9")
    works()
    return text


@point("bad.missing-module")
def missing_module():
    d = os.environ["TMPDIR"] + "/gone"
    os.makedirs(d, exist_ok=True)
    with open(d + "/only_here.py", "w") as f:
        f.write("def f():\n    return 1\n")
    sys.path.insert(0, d)
    import only_here

    os.unlink(d + "/only_here.py")
    sys.path.remove(d)
    text = raises(Exception, lambda: ray.get(ray.remote(only_here.f).remote(), timeout=20), "only_here")
    works()
    return text


@point("bad.endless-recursion", 120)
def endless():
    @ray.remote(max_retries=0)
    def forever(n):
        return ray.get(forever.remote(n + 1))

    r = forever.remote(0)
    time.sleep(3)
    deep = sum(c["count"] for c in launcher("tasks")["counts"] if "forever" in c["name"])
    ray.cancel(r)
    raises(ray.exceptions.RayError, lambda: ray.get(r, timeout=60))
    eventually("all of it is cancelled", lambda: not any("forever" in c["name"] for c in launcher("tasks")["counts"] if c["state"] not in ("done", "failed", "cancelled")), 60)
    works()
    return f"{deep} deep after 3 s; cancelled to the last one"


@point("bad.fork")
def fork():
    r = ray.put(41)
    out, pid = os.pipe(), os.fork()
    if pid == 0:
        try:
            text = str(ray.get(same.remote(42), timeout=20))
        except BaseException as e:
            text = f"{type(e).__name__}: {e}"
        os.write(out[1], text.encode())
        os._exit(0)
    os.close(out[1])
    text = os.read(out[0], 4096).decode()
    os.waitpid(pid, 0)
    assert text == "42" and ray.get(r) == 41, text
    works()
    return "a child of fork has a connection of its own; the parent's is as it was"


@point("bad.threads")
def threads():
    wrong = []

    def work(k):
        for i in range(50):
            v = ray.get(same.remote((k, i)), timeout=30)
            if v != (k, i):
                wrong.append((k, i, v))

    n = 2 * (os.cpu_count() or 1)
    all_ = [threading.Thread(target=work, args=(k,)) for k in range(n)]
    for t in all_:
        t.start()
    for t in all_:
        t.join(45)
    assert not wrong and not any(t.is_alive() for t in all_), wrong[:3]
    return f"{n} threads, 50 gets each"


@point("bad.not-options")
def not_options():
    a = raises(ValueError, lambda: same.options(num_cpu=1), "num_cpu")
    b = raises(ValueError, lambda: same.options(num_cpus=-1), "num_cpus")
    c = raises(TypeError, lambda: same(1))
    d = raises((TypeError, ValueError), lambda: ray.get("no ref"))
    return f"{a}; {b}; {c}; {d}"


if __name__ == "__main__":
    main()
