"""The dining philosophers: forks are actors, and who takes them in one order never starves."""

import asyncio

import ray


@ray.remote(num_cpus=0)
class Fork:
    """Held by one at a time; the others wait in the order they came."""

    def __init__(self):
        self.free = asyncio.Lock()
        self.holder = None
        self.used = 0

    async def take(self, who):
        await self.free.acquire()
        assert self.holder is None
        self.holder = who
        self.used += 1

    async def give(self, who):
        assert self.holder == who
        self.holder = None
        self.free.release()

    async def times(self):
        return self.used


@ray.remote(num_cpus=0)
class Philosopher:
    def __init__(self, name, left, right):
        # The lower first, for all: no circle of waiting can arise.
        self.name = name
        self.forks = [f for _, f in sorted([left, right], key=lambda pair: pair[0])]

    def dine(self, meals):
        for _ in range(meals):
            for fork in self.forks:
                ray.get(fork.take.remote(self.name))
            for fork in reversed(self.forks):
                ray.get(fork.give.remote(self.name))
        return f"{self.name} ate {meals} times"


ray.init()
names = ["Ada", "Bede", "Cleo", "Dion"]
forks = [Fork.remote() for _ in names]
diners = []
for i, name in enumerate(names):
    j = (i + 1) % len(names)
    diners.append(Philosopher.remote(name, (i, forks[i]), (j, forks[j])))
for line in ray.get([d.dine.remote(10) for d in diners]):
    print(line)
print("forks were used:", ray.get([f.times.remote() for f in forks]))
