"""A task that yields: its items come while it runs. python generators.py [ITEMS]

The producer stops when its consumer is four items behind, so that however much it makes,
little of it is in memory.
"""

import sys

import launcher as ray

items = int(sys.argv[1]) if len(sys.argv) > 1 else 20


@ray.remote(_generator_backpressure_num_objects=4)
def squares(n):
    """The first n squares, one at a time."""
    for i in range(n):
        yield i * i


@ray.remote
def add(total, item):
    """Items are references: they can be arguments before their values are there."""
    return total + item


total = ray.put(0)
for ref in squares.remote(items):
    total = add.remote(total, ref)
print(f"the sum of {items} squares is {ray.get(total)}")
