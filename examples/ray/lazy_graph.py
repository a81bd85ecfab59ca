"""A graph of tasks and actors, built with bind and run with execute, as often as wanted."""

import ray
from ray.dag import InputNode


@ray.remote
def load(name):
    return [len(word) for word in name.split()]


@ray.remote
def scale(values, by):
    return [v * by for v in values]


@ray.remote
def join(*parts):
    return sum(parts, [])


@ray.remote
class Total:
    def __init__(self, start):
        self.total = start

    def add(self, values):
        self.total += sum(values)
        return self.total


ray.init()
with InputNode() as text:
    lengths = load.bind(text)
    graph = join.bind(scale.bind(lengths, 10), scale.bind(lengths, 1))
print(ray.get(graph.execute("a bird sat")))
print(ray.get(graph.execute("on the fence")))

# An actor is part of the graph too: of this node there is one.
total = Total.bind(100)
print(ray.get(total.add.bind(scale.bind(load.bind("the wind went"), 2)).execute()))
