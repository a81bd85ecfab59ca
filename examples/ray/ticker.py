"""A ticker: an actor that works by itself in the background and answers at the same time."""

import asyncio
import threading

import ray


@ray.remote
class Ticker:
    """Async: the loop is a call that does not return until it is told to."""

    def __init__(self):
        self.ticks = 0
        self.stopping = False
        self.waiters = []

    async def run(self):
        while not self.stopping:
            self.ticks += 1
            self.waiters = [w for w in self.waiters if not self.wake(*w)]
            await asyncio.sleep(0.01)
        return "stopped"

    def wake(self, at, future):
        if self.ticks >= at:
            future.set_result(at)
        return self.ticks >= at

    async def after(self, n):
        """Returns when so many ticks have passed."""
        future = asyncio.get_running_loop().create_future()
        self.waiters.append((n, future))
        return await future

    async def stop(self):
        self.stopping = True


@ray.remote
class Background:
    """The same with a thread, in an actor of plain methods."""

    def __init__(self):
        self.beats = 0
        self.enough = threading.Event()
        threading.Thread(target=self.beat, daemon=True).start()

    def beat(self):
        while not self.enough.wait(0.01):
            self.beats += 1
            if self.beats == 5:
                self.enough.set()

    def finished(self):
        return self.enough.wait(30), self.beats


ray.init()
ticker = Ticker.remote()
running = ticker.run.remote()
print("after:", ray.get([ticker.after.remote(n) for n in (3, 1, 2)]))
ready, _ = ray.wait([running], timeout=0)
print("still running:", not ready)
ray.get(ticker.stop.remote())
print(ray.get(running))
print("beats:", ray.get(Background.remote().finished.remote()))
