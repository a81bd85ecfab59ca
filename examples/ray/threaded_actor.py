"""A threaded actor: plain methods, several of them at once, and a lock as in any program."""

import threading

import ray


@ray.remote(max_concurrency=4)
class Meeting:
    def __init__(self, people):
        self.barrier = threading.Barrier(people)
        self.lock = threading.Lock()
        self.names = []
        self.threads = set()

    def arrive(self, name):
        """Returns only when all have arrived: one thread alone would wait for ever."""
        self.barrier.wait(timeout=30)
        with self.lock:
            self.names.append(name)
            self.threads.add(threading.get_ident())
        return name

    def who(self):
        return sorted(self.names), len(self.threads)


@ray.remote
class Ledger:
    """One call at a time, the default: no lock is needed."""

    def __init__(self):
        self.value = 0

    def add(self, n):
        before = self.value
        self.value = before + n
        return self.value


ray.init()
meeting = Meeting.remote(3)
print("came back:", ray.get([meeting.arrive.remote(n) for n in ("ann", "bob", "cy")]))
names, threads = ray.get(meeting.who.remote())
print("met:", names, "in", threads, "threads")

ledger = Ledger.remote()
sums = ray.get([ledger.add.remote(n) for n in range(1, 11)])
print("one at a time:", sums)
