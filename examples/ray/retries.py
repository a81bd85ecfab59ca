"""Exceptions: raised where the result is asked for, and retried where that was asked for."""

import os
import tempfile
import time

import ray
from ray.exceptions import GetTimeoutError, RayTaskError


class Busy(Exception):
    def __init__(self, code):
        super().__init__(f"busy with {code}")
        self.code = code


def tries(path):
    """Counts the tries in a file: nothing else is left of one that failed."""
    with open(path, "a") as f:
        f.write("x")
    return os.path.getsize(path)


@ray.remote(max_retries=0)
def fails(code):
    raise Busy(code)


@ray.remote(max_retries=3, retry_exceptions=[Busy])
def third_time(path, error):
    n = tries(path)
    if n < 3:
        raise Busy(n) if error == "busy" else KeyError(n)
    return n


@ray.remote
def uses(value):
    return value


@ray.remote
def slow():
    time.sleep(1)


ray.init()
folder = tempfile.TemporaryDirectory()
where = folder.name
try:
    ray.get(fails.remote(7))
except Busy as e:
    print("it is what was raised:", e.code, "and Ray's:", isinstance(e, RayTaskError))
try:
    ray.get(uses.remote(fails.remote(8)))
except RayTaskError as e:
    print("through another task:", isinstance(e.cause, Busy))

print("the third try:", ray.get(third_time.remote(f"{where}/a", "busy")))
try:
    ray.get(third_time.remote(f"{where}/b", "key"))
except KeyError:
    print("no retries for others:", os.path.getsize(f"{where}/b"))
every = third_time.options(retry_exceptions=True)
print("retries for all:", ray.get(every.remote(f"{where}/c", "key")))

try:
    ray.get(slow.remote(), timeout=0.2)
except GetTimeoutError:
    print("not yet")
