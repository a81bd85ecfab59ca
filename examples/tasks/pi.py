"""Pi, by throwing darts at a square: python pi.py [TASKS] [DARTS]"""

import random
import sys

import launcher as ray


@ray.remote
def throw(seed, darts):
    """How many darts hit the circle. A task that is run again throws the same ones."""
    r = random.Random(seed)
    return sum(r.random() ** 2 + r.random() ** 2 < 1 for _ in range(darts))


tasks = int(sys.argv[1]) if len(sys.argv) > 1 else 16
darts = int(sys.argv[2]) if len(sys.argv) > 2 else 100_000

waiting = [throw.remote(seed, darts) for seed in range(tasks)]
hits = done = 0
while waiting:
    ready, waiting = ray.wait(waiting, num_returns=min(4, len(waiting)))
    hits += sum(ray.get(ready))
    done += len(ready)
    print(f"{done} of {tasks} tasks: pi is about {4 * hits / (done * darts):.4f}")
