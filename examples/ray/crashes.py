"""Workers that die under a task: run again as often as allowed, then an error; and max_calls."""

import os
import signal
import tempfile

import ray as r
from ray.exceptions import RayError, WorkerCrashedError


def tries(path):
    """Counts the tries in a file: nothing else is left of one that crashed."""
    with open(path, "a") as f:
        f.write("x")
    return os.path.getsize(path)


@r.remote(max_retries=2)
def crashes(path, times):
    n = tries(path)
    if n <= times:
        os._exit(1)
    return n


@r.remote(max_retries=0)
def killed():
    os.kill(os.getpid(), signal.SIGKILL)


@r.remote(max_retries=1)
def stream(path):
    """It dies in the middle; the second try makes all the values again."""
    first = tries(path) == 1
    for i in range(4):
        if first and i == 2:
            os._exit(1)
        yield i


@r.remote(max_calls=1)
def once():
    """Each call in a process of its own."""
    return os.getpid()


r.init()
folder = tempfile.TemporaryDirectory()
where = folder.name
print("crashed once:", r.get(crashes.remote(f"{where}/a", 1)))
try:
    r.get(crashes.remote(f"{where}/b", 100))
except WorkerCrashedError as e:
    print("crashed always:", os.path.getsize(f"{where}/b"), "tries; a RayError:", isinstance(e, RayError))
try:
    r.get(killed.remote())
except WorkerCrashedError:
    print("killed")
print("others are not touched:", r.get([crashes.remote(f"{where}/c{i}", 0) for i in range(4)]))
print("a stream:", [r.get(ref) for ref in stream.remote(f"{where}/d")])
pids = r.get([once.remote() for _ in range(3)])
print("processes for three calls:", len(set(pids)))
