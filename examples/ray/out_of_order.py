"""Out of order: a call whose argument is not there yet lets later ones pass, where allowed."""

import asyncio

import ray


@ray.remote(num_cpus=0)
class Gate:
    def __init__(self):
        self.event = asyncio.Event()

    async def wait(self):
        await self.event.wait()
        return "late"

    async def open(self):
        self.event.set()


@ray.remote(num_cpus=0)
class Log:
    def __init__(self):
        self.entries = []

    def write(self, entry):
        self.entries.append(entry)
        return list(self.entries)


@ray.remote(num_cpus=0, allow_out_of_order_execution=True)
class LooseLog:
    def __init__(self):
        self.entries = []

    def write(self, entry):
        self.entries.append(entry)
        return list(self.entries)


ray.init()
gate = Gate.remote()
loose = LooseLog.remote()
late = loose.write.remote(gate.wait.remote())
print("passes:", ray.get([loose.write.remote("a"), loose.write.remote("b")])[-1].count("late"))
ray.get(gate.open.remote())
print("the late one:", ray.get(late)[-1])

gate = Gate.remote()
log = Log.remote()
first = log.write.remote(gate.wait.remote())
second = log.write.remote("a")
ready, _ = ray.wait([second], timeout=0.3)
print("in order, the second is ready:", bool(ready))
ray.get(gate.open.remote())
print("then:", ray.get(second))
