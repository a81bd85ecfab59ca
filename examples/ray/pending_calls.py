"""max_pending_calls: a caller that is too far ahead of an actor is told so."""

import asyncio

import ray
from ray.exceptions import PendingCallsLimitExceeded


@ray.remote(num_cpus=0)
class Gate:
    def __init__(self):
        self.event = asyncio.Event()

    async def wait(self):
        await self.event.wait()

    async def open(self):
        self.event.set()


@ray.remote(num_cpus=0, max_pending_calls=5)
class Slow:
    def work(self, gate, n):
        ray.get(gate.wait.remote())
        return n


def submit(slow, gate, n):
    """As many as are taken, of n."""
    taken = []
    for i in range(n):
        try:
            taken.append(slow.work.remote(gate, i))
        except PendingCallsLimitExceeded:
            break
    return taken


ray.init()
gate, slow = Gate.remote(), Slow.remote()
taken = submit(slow, gate, 20)
print("taken:", len(taken))
ray.get(gate.open.remote())
print("done:", ray.get(taken))
print("and more:", ray.get(submit(slow, gate, 3)))

# With patience: what was refused is tried again when one is done.
results, pending = [], []
for i in range(30):
    while True:
        try:
            pending.append(slow.work.remote(gate, i))
            break
        except PendingCallsLimitExceeded:
            ready, pending = ray.wait(pending)
            results += ray.get(ready)
results += ray.get(pending)
print("all:", sorted(results) == list(range(30)))
