"""Tasks that yield: each value is there for the caller when it is made, not at the end."""

import numpy as np

import ray


@ray.remote
def chunks(n, size):
    """A large result in pieces, so that it never lies in memory as a whole."""
    for i in range(n):
        yield np.full(size, i, dtype=np.int32)


@ray.remote
def weigh(chunk):
    return int(chunk.sum())


@ray.remote(num_returns="streaming", max_retries=0)
def faulty(n):
    for i in range(n):
        if i == 3:
            raise ValueError(f"no value {i}")
        yield i


@ray.remote(_generator_backpressure_num_objects=2)
def numbers():
    """Endless: it is two values ahead of its reader, no more."""
    n = 0
    while True:
        yield n
        n += 1


ray.init()
# References from the generator are arguments as any other.
weights = [weigh.remote(ref) for ref in chunks.remote(5, 1000)]
print("weights:", ray.get(weights))

got = []
try:
    for ref in faulty.remote(10):
        got.append(ray.get(ref))
except ValueError as e:
    print("after", got, "came:", repr(e.cause))

endless = numbers.remote()
print("the first of an endless stream:", [ray.get(next(endless)) for _ in range(4)])
ray.cancel(endless)

# A stream and a plain result, whatever is there first.
stream = chunks.remote(2, 10)
waiting, seen = [stream, weigh.remote(np.ones(10))], []
while waiting:
    ready, waiting = ray.wait(waiting, num_returns=1)
    if ready[0] is stream:
        try:
            seen.append(("chunk", int(ray.get(next(stream))[0])))
            waiting.append(stream)
        except StopIteration:
            pass
    else:
        seen.append(("plain", ray.get(ready[0])))
print(sorted(seen))
