"""Concurrency groups: slow calls of one kind do not keep others waiting."""

import asyncio
import threading

import ray


@ray.remote(concurrency_groups={"io": 2, "compute": 1})
class Store:
    """Async: each group has its own bound."""

    def __init__(self):
        self.released = False

    @ray.method(concurrency_group="io")
    async def fetch(self, key):
        # Not an asyncio.Event: a group may have an event loop of its own.
        while not self.released:
            await asyncio.sleep(0.01)
        return f"fetched {key}"

    @ray.method(concurrency_group="compute")
    async def compute(self, n):
        return n * n

    async def go(self):
        """In the default group: it gets in while "io" is full."""
        self.released = True
        return "released"


@ray.remote(concurrency_groups={"slow": 1, "quick": 1})
class Desk:
    """Threads: the same with plain methods."""

    def __init__(self):
        self.go = threading.Event()

    @ray.method(concurrency_group="slow")
    def file(self):
        return "filed" if self.go.wait(30) else "gave up"

    @ray.method(concurrency_group="quick")
    def ask(self):
        return "answered"

    def finish(self):
        self.go.set()


ray.init()
store = Store.remote()
fetches = [store.fetch.remote(k) for k in "abcd"]
print("computed while all of io waits:", ray.get(store.compute.remote(7)))
ready, _ = ray.wait(fetches, timeout=0)
print("fetched so far:", len(ready))
print(ray.get(store.go.remote()))
print(ray.get(fetches))
# The group may be chosen at the call.
print(ray.get(store.compute.options(concurrency_group="io").remote(9)))

desk = Desk.remote()
filing = desk.file.remote()
print(ray.get(desk.ask.remote()))
ray.get(desk.finish.remote())
print(ray.get(filing))
