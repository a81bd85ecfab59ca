"""Cancelling calls of actors: one that waits its turn, and one that an async actor is in."""

import asyncio

import ray
from ray.exceptions import TaskCancelledError


@ray.remote(num_cpus=0)
class Board:
    """Where others say how far they are."""

    def __init__(self):
        self.seen = {}

    def note(self, name):
        self.seen.setdefault(name, asyncio.Event()).set()

    async def seen_it(self, name):
        await self.seen.setdefault(name, asyncio.Event()).wait()


@ray.remote(num_cpus=0)
class Service:
    """Async: a cancelled call gets CancelledError where it waits."""

    async def forever(self, board):
        try:
            await board.note.remote("call")
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            await board.note.remote("tidied up")
            raise

    async def alive(self):
        return "alive"


@ray.remote(num_cpus=0)
class Plain:
    def wait_for(self, board, name):
        ray.get(board.seen_it.remote(name))
        return f"saw {name}"


def outcome(ref):
    try:
        return ray.get(ref, timeout=60)
    except TaskCancelledError:
        return "cancelled"


ray.init()
board, service, plain = Board.remote(), Service.remote(), Plain.remote()
call = service.forever.remote(board)
ray.get(board.seen_it.remote("call"))
ray.cancel(call)
print("in an async actor:", outcome(call))
ray.get(board.seen_it.remote("tidied up"))
print("it is", ray.get(service.alive.remote()))

now = plain.wait_for.remote(board, "the signal")
queued = plain.wait_for.remote(board, "nothing")
ray.cancel(queued)
ray.get(board.note.remote("the signal"))
print("queued:", [outcome(ref) for ref in (now, queued)])
