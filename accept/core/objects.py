"""Points about the object plane, on a private cluster with 256 MiB of object memory."""

import os
import signal
import time

import numpy as np
from points import eventually, main, objects, point, processes, raises, total

import launcher as ray

MIB = 1 << 20
SPILL = os.environ["TMPDIR"]
context = ray.init("local", num_cpus=3, object_store_memory=256 * MIB)


@point("plane.nothing-at-start")
def nothing_at_start():
    n = list(objects().values())[0]
    assert n["segments"] == 0 and n["limit"] == 256 * MIB, n
    return f"segments take 0 of {n['limit'] >> 20} MiB before the first put"


@point("plane.inline")
def inline():
    ref = ray.put(b"x" * 1000)
    assert ray.get(ref) == b"x" * 1000
    (o,) = [o for o in list(objects().values())[0]["objects"] if o["id"] == ref.hex()]
    assert o["state"] == "inline" and list(objects().values())[0]["segments"] == 0, o
    return "1,000 bytes are inline; no segment was made"


@point("plane.no-message", 20)
def no_message():
    """With the agent stopped, what needs it would not come back."""
    there = [ray.put(np.full(MIB // 2, i, dtype=np.uint8)) for i in range(4)]
    assert ray.wait(there, num_returns=4, timeout=10)[1] == [] and total("count") >= 4
    (agent,) = processes("agent")
    os.kill(agent, signal.SIGSTOP)
    try:
        start = time.perf_counter()
        new = [ray.put(np.full(MIB // 8, i, dtype=np.uint8)) for i in range(4)]
        put = time.perf_counter() - start
        got = [int(ray.get(r)[-1]) for r in there]
        took = time.perf_counter() - start - put
    finally:
        os.kill(agent, signal.SIGCONT)
    assert got == list(range(4)) and [int(ray.get(r, timeout=10)[-1]) for r in new] == got
    return f"with the agent stopped 4 puts of 128 KiB took {put * 1e6:.0f} us, 4 gets of 512 KiB {took * 1e6:.0f} us"


@ray.remote
def attack(a):
    """Try to change an object that another process made."""
    tried = []
    try:
        a.flags.writeable = True
        tried.append("writeable")
    except ValueError:
        pass
    address = a.__array_interface__["data"][0]
    for line in open("/proc/self/maps"):
        span, perms, _, _, inode, *_ = line.split()
        lo, hi = (int(v, 16) for v in span.split("-"))
        if lo <= address < hi:
            if "w" in perms:
                tried.append("mapped " + perms)
            segment = int(inode)
    for fd in os.listdir("/proc/self/fd"):
        try:
            if os.stat("/proc/self/fd/" + fd).st_ino != segment:
                continue
            w = os.open("/proc/self/fd/" + fd, os.O_RDWR)
            os.pwrite(w, b"x", 0)
            tried.append("written through descriptor " + fd)
        except OSError:
            pass
    return tried


@point("plane.sealed")
def sealed():
    ref = ray.put(np.zeros(MIB, dtype=np.uint8))
    tried = ray.get(attack.remote(ref), timeout=20)
    assert tried == [], tried
    return "a reader can neither map, nor make, nor open an object for writing"


keep = []


@ray.remote
def reader(refs):
    keep.append(ray.get(refs[0]))
    return os.getpid()


@point("plane.dead-reader")
def dead_reader():
    before = eventually("there is little else", lambda: total("resident") < MIB and 1 + total("resident")) - 1
    ref = ray.put(np.ones(32 * MIB, dtype=np.uint8))
    pid = ray.get(reader.remote([ref]), timeout=20)
    pinned = eventually("the reader's pin is seen", lambda: total("pinned") >= 32 * MIB)
    del ref
    time.sleep(0.5)
    held = total("resident") - before
    assert pinned and held >= 32 * MIB, f"{held} bytes are held for a reader that lives"
    os.kill(pid, signal.SIGKILL)
    eventually("what a killed reader held is free", lambda: total("resident") - before < MIB)
    return f"{held >> 20} MiB held while the reader lived, none after its kill -9"


@point("plane.quota")
def quota():
    return raises(ray.exceptions.ObjectStoreFullError, lambda: ray.put(np.ones(300 * MIB, dtype=np.uint8)))


def spilled_files():
    return sum(f.stat().st_size for d, _, names in os.walk(SPILL) for n in names for f in [__import__("pathlib").Path(d, n)] if f.exists())


@point("plane.spill", 120)
def spill():
    refs = [ray.put(np.full(10 * MIB, i, dtype=np.uint8)) for i in range(60)]
    spilled, resident, files = total("spilled"), total("resident"), spilled_files()
    assert spilled > 300 * MIB and resident <= 256 * MIB and files >= spilled * 0.9, (spilled, resident, files)
    for i, r in enumerate(refs):
        a = ray.get(r, timeout=30)
        assert a[0] == a[-1] == i and int(a[:1000].sum()) == 1000 * i, i
        del a
    del refs, r
    eventually("the disk is given back", lambda: total("spilled") == 0 and spilled_files() == 0)
    return f"600 MiB in 256 MiB: {spilled >> 20} MiB on disk ({files >> 20} MiB of files), all back unharmed, the files gone"


@point("plane.back-pressure", 90)
def back_pressure():
    """Pinned memory cannot be spilled: a put waits for room, then says what is wrong."""
    eventually("there is nothing else", lambda: total("resident") == 0)
    refs = [ray.put(np.ones(40 * MIB, dtype=np.uint8)) for _ in range(5)]
    views = ray.get(refs)
    text = raises(ray.exceptions.ObjectStoreFullError, lambda: ray.put(np.ones(80 * MIB, dtype=np.uint8)))
    del views, refs
    after = eventually("there is room again", lambda: ray.get(ray.put(np.ones(80 * MIB, dtype=np.uint8)))[0] == 1)
    assert after
    return text


@point("plane.no-loss", 120)
def no_loss():
    """A spilled value that memory has no room for is told as that, within get's timeout, and is there later."""
    eventually("there is nothing else", lambda: total("resident") == 0)
    cold = ray.put(np.full(60 * MIB, 7, dtype=np.uint8))
    views = [ray.get(ray.put(np.ones(40 * MIB, dtype=np.uint8))) for _ in range(5)]
    ray.wait([ray.put(np.ones(MIB, dtype=np.uint8))], timeout=20)
    (o,) = [o for o in list(objects().values())[0]["objects"] if o["id"] == cold.hex()]
    assert o["state"] == "spilled", o
    start = time.monotonic()
    raises(ray.exceptions.GetTimeoutError, lambda: ray.get(cold, timeout=2))
    took = time.monotonic() - start
    assert 1.5 < took < 6, f"get(timeout=2) took {took:.1f} s"
    text = raises(ray.exceptions.ObjectStoreFullError, lambda: ray.get(cold), f"pid {os.getpid()}", "let go of views")
    views.clear()
    a = ray.get(cold, timeout=20)
    assert a[0] == a[-1] == 7
    return f"get(timeout=2) ended after {took:.1f} s; {text}; read when the views were gone"


@ray.remote
def maker(n):
    return np.full(n * MIB, n, dtype=np.uint8)


@ray.remote
def looker(a):
    return int(a[0]) + int(a[-1])


@point("plane.readers", 120)
def readers():
    """Results that other processes have read, and more than memory of them: what is gone is unmapped, and only then counts as free."""
    eventually("there is nothing else", lambda: total("resident") == 0)
    most, view = 0, None
    for i in range(16):
        ref = maker.remote(60 + i)
        seen = looker.remote(ref)
        view = ray.get(ref, timeout=30)
        assert view[0] == 60 + i and ray.get(seen, timeout=30) == 2 * (60 + i)
        del ref, seen
        mapped = sum(int(line.split()[0].split("-")[1], 16) - int(line.split()[0].split("-")[0], 16) for line in open("/proc/self/maps") if "memfd:launcher-objects" in line and " r--s" in line)
        most = max(most, mapped)
    assert most <= 256 * MIB, f"{most >> 20} MiB of segments are mapped for reading"
    del view
    ray.cluster_resources()
    segments = eventually("memory is given back", lambda: ray.cluster_resources() and total("resident") == 0 and 1 + total("segments"), 30)
    return f"{sum(range(60, 76))} MiB of results through 256 MiB of memory; a reader had at most {most >> 20} MiB mapped"


@point("plane.warm-pool")
def warm_pool():
    ref = ray.put(np.ones(64 * MIB, dtype=np.uint8))
    del ref
    eventually("the object is gone", lambda: total("resident") < MIB)
    ref = ray.put(np.ones(64 * MIB, dtype=np.uint8))
    del ref
    segments = eventually("memory follows the need", lambda: total("segments") <= 160 * MIB and total("segments"), 30)
    return f"{segments >> 20} MiB of segments after two puts of 64 MiB, one after the other"


@point("plane.create")
def create():
    """Memory of an object, filled in place, then sealed."""
    a = ray.create((1024, 1024), "float32")
    a[:] = 7
    ref = ray.put(a)
    before = total("resident")
    assert ray.get(ref).sum() == 7 * 1024 * 1024
    return f"filled in place; {before >> 20} MiB resident: not copied"


@point("objects.shows")
def shows():
    ref = ray.put(np.ones(MIB, dtype=np.uint8))
    view = ray.get(ref)
    (o,) = [o for n in objects().values() for o in n["objects"] if o["id"] == ref.hex()]
    why = [f"{h['what']} {h['who']}" for h in o["holders"]]
    assert o["state"] == "resident" and o["size"] >= MIB and any(str(os.getpid()) in w for w in why) and view[0] == 1, o
    return f"resident, {o['size']} bytes, alive for {', '.join(why)}"


if __name__ == "__main__":
    main()
