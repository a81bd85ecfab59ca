"""Reducing in a tree: partial sums are references, and no value comes to the driver."""

import numpy as np

import ray


@ray.remote
def make(seed):
    return np.random.default_rng(seed).integers(0, 100, size=50_000)


@ray.remote
def add(x, y):
    return x + y


@ray.remote
def total(x):
    return int(x.sum())


def reduce(refs, levels):
    """Adds neighbours until one is left."""
    while len(refs) > 1:
        levels.append(len(refs))
        pairs = [add.remote(a, b) for a, b in zip(refs[::2], refs[1::2])]
        refs = pairs + refs[len(pairs) * 2 :]
    return refs[0]


def reduce_as_ready(refs):
    """Adds whichever two are there, without waiting for a whole level."""
    while len(refs) > 1:
        ready, rest = ray.wait(refs, num_returns=2)
        refs = rest + [add.remote(*ready)]
    return refs[0]


ray.init(address="auto")  # a cluster that is up
parts = [make.remote(seed) for seed in range(9)]
levels = []
print("tree:", ray.get(total.remote(reduce(parts, levels))), "by levels of", levels)
print("as ready:", ray.get(total.remote(reduce_as_ready(parts))))
print("at once:", sum(ray.get([total.remote(p) for p in parts])))
