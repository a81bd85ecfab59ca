"""multiprocessing.Pool over the cluster: code for the standard one, with another import."""

import os

import ray
from ray.util.multiprocessing import Pool


def square(x):
    return x * x


def power(x, n):
    return x**n


def fail(x):
    if x == 3:
        raise ValueError("three is not wanted")
    return x


def set_offset(n):
    """Runs once in each process of the pool."""
    os.environ["OFFSET"] = str(n)


def shifted(x):
    return x + int(os.environ["OFFSET"])


ray.init()
with Pool(2) as pool:
    print("map:", pool.map(square, range(8)))
    print("chunks:", pool.map(square, range(8), chunksize=3))
    print("starmap:", pool.starmap(power, [(2, 3), (3, 2), (5, 1)]))
    print("imap:", list(pool.imap(square, range(5), chunksize=2)))
    print("imap_unordered:", sorted(pool.imap_unordered(square, range(5))))
    print("apply:", pool.apply(power, (2, 10)), pool.apply(power, (2,), {"n": 4}))
    later = pool.map_async(square, [10, 20])
    later.wait(timeout=60)
    print("async:", later.ready(), later.successful(), later.get())
    called = pool.apply_async(power, (7, 2), callback=None)
    print("apply_async:", called.get(timeout=60))
    try:
        pool.map(fail, range(5))
    except ValueError:
        print("raised here too")

pool = Pool(processes=2, initializer=set_offset, initargs=(100,))
print("initialised:", pool.map(shifted, range(4)))
pool.close()
pool.join()
try:
    pool.map(square, [1])
except ValueError:
    print("closed")
