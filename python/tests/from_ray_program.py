"""A program for Ray, run by `launcher run --as-ray`: every way to import, here and in workers."""

import importlib
import operator
import sys

import ray
import ray as r
from ray.util.dask import ray_dask_get
from ray.util.helpers import as_completed

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
print("all well")
