"""Code for multiprocessing.Pool, with the standard one and with Ray's: the same comes out."""

import multiprocessing
import os

import ray.util.multiprocessing as rays


def work(n):
    return n * n + 1


def slow_sum(a, b=0, *, c=0):
    return a + b + c


def boom(n):
    if n == 4:
        raise ZeroDivisionError(n)
    return n


def setup(value):
    os.environ["POOL_VALUE"] = value


def value(n):
    return os.environ["POOL_VALUE"] * n


def uses(make):
    """What a program gets from a pool, in all ways."""
    out = {}
    with make(2, initializer=setup, initargs=("v",)) as pool:
        out["map"] = pool.map(work, range(30))
        out["chunks"] = pool.map(work, range(30), chunksize=7)
        out["nothing"] = pool.map(work, [])
        out["starmap"] = pool.starmap(slow_sum, [(1,), (1, 2)])
        out["imap"] = list(pool.imap(work, iter(range(12)), chunksize=5))
        out["unordered"] = sorted(pool.imap_unordered(work, range(12)))
        out["apply"] = pool.apply(slow_sum, (1, 2), {"c": 3})
        got = []
        r = pool.apply_async(slow_sum, (5,), callback=got.append)
        out["async"] = r.get(30), r.ready(), r.successful()
        r = pool.map_async(work, range(5), callback=got.append)
        r.wait(30)
        out["map_async"] = r.get()
        r = pool.starmap_async(slow_sum, [(1, 1), (2, 2)])
        out["starmap_async"] = r.get(30)
        errors = []
        r = pool.apply_async(boom, (4,), error_callback=errors.append)
        for how in (lambda: r.get(30), lambda: pool.map(boom, range(6)), lambda: list(pool.imap(boom, range(6)))):
            try:
                how()
                out["error"] = "none"
            except ZeroDivisionError:
                out["error"] = out.get("error", 0) + 1
        out["successful"] = r.successful()
        out["initializer"] = pool.map(value, range(3))
        it = pool.imap(boom, [1, 4, 2])
        out["after an error"] = [next(it)]
        try:
            next(it)
        except ZeroDivisionError:
            out["after an error"].append(next(it))
    pool = make(2)
    last = pool.map_async(work, range(10))
    pool.close()
    pool.join()
    out["closed"] = last.get(1)
    try:
        pool.apply(work, (1,))
        out["refuses"] = False
    except ValueError:
        out["refuses"] = True
    return out


if __name__ == "__main__":
    want, got = uses(multiprocessing.get_context("fork").Pool), uses(rays.Pool)
    differ = [k for k in want if want[k] != got.get(k)]
    print("FAIL" if differ else "PASS", "apps.pool", f"{len(want)} uses of a Pool; differ from the standard one: " + ("; ".join(f"{k}: {got.get(k)} for {want[k]}" for k in differ) or "none"))
