"""A pool of actors: each gets the next piece of work when it has finished the last."""

import ray
from ray.util import ActorPool


@ray.remote(num_cpus=0)
class Squarer:
    def __init__(self, base):
        self.base = base
        self.calls = 0

    def square(self, n):
        self.calls += 1
        return self.base + n * n

    def done(self):
        return self.calls


ray.init()
actors = [Squarer.remote(100) for _ in range(2)]
pool = ActorPool(actors)

print("in order:", list(pool.map(lambda a, n: a.square.remote(n), range(8))))
print("as they end:", sorted(pool.map_unordered(lambda a, n: a.square.remote(n), range(8))))

# By hand: submit, and take results while there are some.
for n in (3, 1, 2):
    pool.submit(lambda a, v: a.square.remote(v), n)
got = []
while pool.has_next():
    got.append(pool.get_next(timeout=30))
print("by hand:", got)

# An actor may be taken out for something else, and put in again.
idle = pool.pop_idle()
print("an idle actor answers:", ray.get(idle.square.remote(0)))
pool.push(idle)
pool.push(Squarer.remote(1000))
print("with a third:", sorted(pool.map_unordered(lambda a, n: a.square.remote(n) if n else a.done.remote(), [1, 2]))[0] > 0)
print("calls of the first two:", sum(ray.get([a.done.remote() for a in actors])) >= 20)
