"""A compiled graph: actors bound into a pipeline once, then executed with little cost."""

import ray
from ray.dag import InputNode, MultiOutputNode


@ray.remote(num_cpus=0)
class Stage:
    def __init__(self, step):
        self.step = step
        self.count = 0

    def add(self, x):
        self.count += 1
        return x + self.step

    def both(self, x, y):
        return x * 100 + y

    def check(self, x):
        if x < 0:
            raise ValueError(f"{x} is negative")
        return x

    def seen(self):
        return self.count


ray.init()
first, second, third = (Stage.remote(step) for step in (1, 10, 1000))

with InputNode() as x:
    line = second.add.bind(first.add.bind(x))
compiled = line.experimental_compile()
print("one by one:", [ray.get(compiled.execute(i)) for i in range(5)])
ahead = [compiled.execute(i) for i in range(5)]
print("ahead:", [ray.get(ref) for ref in ahead])
compiled.teardown()
print("seen:", ray.get([first.seen.remote(), second.seen.remote()]))

# Two branches of one input, joined, and the branches themselves as outputs.
with InputNode() as x:
    left, right = first.add.bind(x), second.add.bind(x)
    fan = MultiOutputNode([left, third.both.bind(left, right)])
compiled = fan.experimental_compile()
print("fan:", ray.get(compiled.execute(1)))
compiled.teardown()

# The parts of an input, by position and by name; an exception comes out and harms nothing.
with InputNode() as x:
    parts = third.both.bind(x[0], x.right)
compiled = parts.experimental_compile()
print("parts:", ray.get(compiled.execute(3, right=4)))
compiled.teardown()
with InputNode() as x:
    checked = second.add.bind(first.check.bind(x))
compiled = checked.experimental_compile()
try:
    ray.get(compiled.execute(-1))
except ray.exceptions.RayTaskError as e:
    print("raised:", type(e.cause).__name__)
print("and goes on:", ray.get(compiled.execute(5)))
compiled.teardown()
