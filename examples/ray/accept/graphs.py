"""Graphs of dask by ray_dask_get: the same as dask's own scheduler computes."""

import dask
import dask.bag
import numpy as np
import ray
from ray.util.dask import disable_dask_on_ray, enable_dask_on_ray, ray_dask_get, ray_dask_get_sync


def inc(x):
    return x + 1


def add(*xs):
    return sum(xs)


def nested(x):
    return tuple(map(nested, x)) if isinstance(x, (list, tuple)) else x


def point(name, ok, evidence):
    print("PASS" if ok else "FAIL", f"apps.dask.{name}", evidence)


ray.init()
graph = {"a": 1, "b": (inc, "a"), "c": (inc, "b"), "d": (add, "b", "c"), "e": (sum, ["a", "b", (inc, "d")])}
want = ((2, 3), 5, 9)
got = ray_dask_get(graph, [["b", "c"], "d", "e"])
point("graph", nested(got) == want, f"{got} of {want}")
got = ray_dask_get_sync(graph, [["b", "c"], "d", "e"])
point("sync", nested(got) == want, f"{got} of {want}")

wide = {("x", i): (inc, i) for i in range(100)}
wide["sum"] = (add, *wide)
got = ray_dask_get(wide, "sum")
point("wide", got == 5050, f"100 tasks into one: {got}")


def fails(x):
    raise KeyError("no " + str(x))


try:
    ray_dask_get({"a": 1, "b": (fails, "a"), "c": (inc, "b")}, "c")
    point("error", False, "nothing was raised")
except KeyError as e:
    point("error", "no 1" in str(e), "the task's error is raised where the graph is computed")

total = dask.delayed(sum)([dask.delayed(inc)(i) for i in range(10)])
got = total.compute(scheduler=ray_dask_get)
point("delayed", got == 55, f"dask.delayed, scheduler=ray_dask_get: {got}")
with dask.config.set(scheduler=ray_dask_get):
    got = dask.compute(dask.delayed(np.arange)(5), [dask.delayed(inc)(1)])
point("config", got[0].tolist() == [0, 1, 2, 3, 4] and got[1] == [2], "dask.config.set(scheduler=ray_dask_get)")
enable_dask_on_ray()
got = total.compute()
disable_dask_on_ray()
point("enabled", got == 55 and total.compute(scheduler="sync") == 55, f"enable_dask_on_ray: {got}")
bag = dask.bag.from_sequence(range(20), npartitions=4).map(inc).filter(lambda x: x % 2).fold(lambda a, b: a + b)
got = bag.compute(scheduler=ray_dask_get)
point("bag", got == 100, f"a bag of four partitions: {got}")
