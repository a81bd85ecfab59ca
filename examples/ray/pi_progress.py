"""Pi by throwing darts; the tasks report to an actor, and the driver asks it how far they are."""

import random

import ray


@ray.remote(num_cpus=0)
class Progress:
    def __init__(self, tasks):
        self.done = dict.fromkeys(range(tasks), 0)

    def report(self, task, darts):
        self.done[task] = darts

    def total(self):
        return sum(self.done.values())


@ray.remote
def throw(task, darts, progress):
    r = random.Random(task)
    hits = 0
    for i in range(1, darts + 1):
        hits += r.random() ** 2 + r.random() ** 2 < 1
        if i % 5000 == 0:
            progress.report.remote(task, i)  # it does not wait for an answer
    return hits


if not ray.is_initialized():
    ray.init()
TASKS, DARTS = 6, 20_000
progress = Progress.remote(TASKS)
hits = [throw.remote(i, DARTS, progress) for i in range(TASKS)]

seen, last = 0, -1
while last < TASKS * DARTS:
    now = ray.get(progress.total.remote())
    assert now >= last, "progress went back"
    seen, last = seen + 1, now
    ray.wait(hits, num_returns=TASKS, timeout=0.05)
print("asked at least once:", seen > 0, "all darts:", last)
print(f"pi is about {4 * sum(ray.get(hits)) / (TASKS * DARTS):.4f}")
