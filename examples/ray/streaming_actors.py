"""Methods that yield: of a plain actor and of an async one, read with for and async for."""

import asyncio

import ray


@ray.remote
class Reader:
    """Keeps its place between the streams it gives."""

    def __init__(self, lines):
        self.lines = lines
        self.at = 0

    @ray.method(num_returns="streaming")
    def read(self, n):
        for _ in range(n):
            if self.at == len(self.lines):
                return
            yield self.at, self.lines[self.at]
            self.at += 1


@ray.remote
class Ticker:
    async def ticks(self, name, n):
        for i in range(n):
            await asyncio.sleep(0)
            yield f"{name}{i}"


async def follow(ticker, name, n):
    return [await ref async for ref in ticker.ticks.options(num_returns="streaming").remote(name, n)]


async def main():
    ticker = Ticker.remote()
    # Two streams of one actor at the same time.
    a, b = await asyncio.gather(follow(ticker, "a", 3), follow(ticker, "b", 4))
    print(a, b)


ray.init()
reader = Reader.remote(["one", "two", "three", "four"])
for ref in reader.read.remote(3):
    print(*ray.get(ref))
print("the rest:", [ray.get(ref)[1] for ref in reader.read.remote(3)])
print("nothing more:", list(reader.read.remote(3)))
asyncio.run(main())
