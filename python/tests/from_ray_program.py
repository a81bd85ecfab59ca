"""A program for Ray, run by `launcher run --as-ray`: every way to import, here and in workers."""

import importlib
import operator
import os
import subprocess
import sys
import time

import ray
import ray as r
from ray.util.dask import ray_dask_get
from ray.util.helpers import as_completed
from ray.util.metrics import Counter, Gauge, Histogram

import from_ray_library

ray.init(address="auto", namespace="here", dashboard_host="0.0.0.0", log_to_driver=False)


@ray.remote
def anywhere(x):
    import ray  # lazily, in a worker
    from ray.exceptions import RayError

    assert issubclass(RayError, Exception)
    return ray.get(from_ray_library.one_more.remote(x)) + importlib.import_module("ray").get(from_ray_library.one_more.remote(x))


assert r is ray and ray.__name__ == "launcher.as_ray"
assert sorted(as_completed([anywhere.remote(i) for i in range(10)])) == [2 * i + 2 for i in range(10)]
assert ray_dask_get({"a": 1, "b": (operator.add, "a", 2), "c": (sum, ["a", "b"])}, ["b", "c"]) == (3, 4)


@ray.remote
def fails():
    raise ray.exceptions.OutOfMemoryError("mine")


try:
    ray.get(fails.remote())
    sys.exit("no error")
except ray.exceptions.RayError:
    pass

counter = Counter("counted", description="what was counted", tag_keys=("kind",))


@ray.remote
def counts(n):
    counter.inc(n, tags={"kind": "task"})


ray.get([counts.remote(i + 1) for i in range(10)])
Gauge("level").set(4)
Histogram("took", boundaries=[0.5, 1]).observe(0.7)
deadline = time.monotonic() + 20
while True:  # a process tells what it counted within a second
    text = subprocess.run([os.environ["LAUNCHER"], "metrics"], check=True, stdout=subprocess.PIPE).stdout.decode()
    total = sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f'ray_counted_total{{job="{os.environ["LAUNCHER_JOB_ID"]}"'))
    if total == 55 and "ray_level{" in text and 'le="1"} 1' in text:
        break
    assert time.monotonic() < deadline, text
    time.sleep(0.1)  # sleep: until the processes have told
assert 'launcher_resources{node="local-0",resource="CPU",state="total"} 4' in text, text
assert 'launcher_tasks_ended_total{node="local-1",state="done"}' in text, text
print("all well")
