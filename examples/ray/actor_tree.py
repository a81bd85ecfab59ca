"""A tree of actors: a supervisor makes workers, which make workers of their own.

Only the supervisor is known to the driver; results come up the tree.
"""

import ray


@ray.remote(num_cpus=0)
class Counter:
    """A leaf: counts words by their first letter."""

    def __init__(self):
        self.counts = {}

    def add(self, words):
        for word in words:
            self.counts[word[0]] = self.counts.get(word[0], 0) + 1

    def total(self):
        return self.counts


@ray.remote(num_cpus=0)
class Section:
    """In the middle: hands words out to its own counters."""

    def __init__(self, counters):
        self.counters = [Counter.remote() for _ in range(counters)]

    def count(self, words):
        for i, counter in enumerate(self.counters):
            counter.add.remote(words[i :: len(self.counters)])
        # Calls of one caller run in their order: each total comes after its add.
        return merge(ray.get([c.total.remote() for c in self.counters]))


@ray.remote(num_cpus=0)
class Supervisor:
    def __init__(self, sections, counters):
        self.sections = [Section.remote(counters) for _ in range(sections)]

    def count(self, words):
        parts = [s.count.remote(words[i :: len(self.sections)]) for i, s in enumerate(self.sections)]
        return merge(ray.get(parts))


def merge(parts):
    merged = {}
    for part in parts:
        for letter, n in part.items():
            merged[letter] = merged.get(letter, 0) + n
    return merged


if __name__ == "__main__":
    ray.init()
    top = Supervisor.remote(2, 2)
    words = "ant bee cat asp bat cow ape boa crab auk bear carp".split()
    for letter, n in sorted(ray.get(top.count.remote(words)).items()):
        print(letter, n)
    more = ray.get(top.count.remote(["axolotl", "dog"]))
    print("after two more:", sorted(more.items()))
