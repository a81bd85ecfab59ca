"""Pipelining: the next piece is asked for before the last is worked on; stages by reference."""

import ray


@ray.remote
class Source:
    def __init__(self, n):
        self.items = iter(range(n))

    def next(self):
        return next(self.items, None)


@ray.remote
class Consumer:
    """Asks for one item ahead: while it works on this one, the next is on its way."""

    def __init__(self, source):
        self.source = source

    def run(self):
        done = []
        ahead = self.source.next.remote()
        while True:
            item = ray.get(ahead)
            if item is None:
                return done
            ahead = self.source.next.remote()
            done.append(item * item)


@ray.remote
class Stage:
    """A stage of a line: what it gets are values, though references were passed."""

    def __init__(self, name):
        self.name = name
        self.seen = 0

    def work(self, item):
        self.seen += 1
        return f"{item} {self.name}"

    def count(self):
        return self.seen


ray.init()
source = Source.remote(12)
parts = ray.get([Consumer.remote(source).run.remote() for _ in range(2)])
print("all items:", sorted(sum(parts, [])))

# No get between the stages: all calls are made at once, and each waits for its argument.
line = [Stage.remote(name) for name in ("cut", "sewn", "packed")]
out = []
for i in range(4):
    ref = f"shirt{i}"
    for stage in line:
        ref = stage.work.remote(ref)
    out.append(ref)
for shirt in ray.get(out):
    print(shirt)
print("seen:", ray.get([s.count.remote() for s in line]))
