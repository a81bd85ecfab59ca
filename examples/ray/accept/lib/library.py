"""A library that uses Ray: the program that imports it may not know."""

import ray


@ray.remote
def double(x):
    return 2 * x


def doubled(x):
    return ray.get(double.remote(x))
