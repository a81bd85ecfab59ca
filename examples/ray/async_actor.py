"""An actor with async methods: many calls are under way at once, in one event loop."""

import asyncio

import ray as r


@r.remote
class Gate:
    """Callers wait here until somebody opens it."""

    def __init__(self):
        self.opened = asyncio.Event()
        self.waiting = 0
        self.full = asyncio.Event()

    async def through(self, name, until):
        self.waiting += 1
        if self.waiting == until:
            self.full.set()
        await self.opened.wait()
        return name

    async def crowd(self):
        await self.full.wait()
        return self.waiting

    async def open(self):
        self.opened.set()


@r.remote
def visit(gate, name):
    """A task that calls the actor, as the driver does."""
    return "task " + r.get(gate.through.remote(name, -1))


async def main():
    """The driver too can await references."""
    gate = Gate.remote()
    calls = [gate.through.remote(i, 50) for i in range(50)]
    print("waiting at once:", await gate.crowd.remote())
    ready, _ = r.wait(calls, timeout=0)
    print("through before it opens:", len(ready))
    task = visit.remote(gate, "late")
    await gate.open.remote()
    print("through:", await asyncio.gather(*calls) == list(range(50)))
    print(await task)


r.init()
asyncio.run(main())

# Bounded: with max_concurrency no more than so many are in at once.
narrow = Gate.options(max_concurrency=3).remote()
inside = [narrow.through.remote(i, -1) for i in range(2)]
r.get(narrow.open.remote())
print("narrow:", r.get(inside))
