"""Cancelling tasks: one that waits, that runs, that is ended by force, that has children."""

import asyncio
import importlib
import time

ray = importlib.import_module("ray")
exceptions = importlib.import_module("ray.exceptions")


@ray.remote(num_cpus=0)
class Board:
    """Where tasks say that they have begun."""

    def __init__(self):
        self.seen = {}

    def note(self, name):
        self.seen.setdefault(name, asyncio.Event()).set()

    async def begun(self, name):
        await self.seen.setdefault(name, asyncio.Event()).wait()


@ray.remote(num_cpus=0)
def long(board, name):
    ray.get(board.note.remote(name))
    for _ in range(600):
        time.sleep(0.05)
    return "the end"


@ray.remote(num_cpus=0)
def parent(board):
    return ray.get(long.remote(board, "child"))


def outcome(ref):
    try:
        return ray.get(ref, timeout=60)
    except exceptions.TaskCancelledError:
        return "cancelled"
    except exceptions.WorkerCrashedError:
        return "killed"


ray.init()
board = Board.remote()
running = long.remote(board, "running")
ray.get(board.begun.remote("running"))
ray.cancel(running)
print("while it runs:", outcome(running))

forced = long.remote(board, "forced")
ray.get(board.begun.remote("forced"))
ray.cancel(forced, force=True)
print("by force:", outcome(forced) in ("cancelled", "killed"))

tree = parent.remote(board)
ray.get(board.begun.remote("child"))
ray.cancel(tree, recursive=True)
print("with its child:", outcome(tree))

waiting = long.remote(board, board.begun.remote("never"))  # its argument never comes
ray.cancel(waiting)
print("before it runs:", outcome(waiting))
