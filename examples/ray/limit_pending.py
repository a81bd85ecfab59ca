"""Back-pressure: no more than so many calls are pending, whoever the caller is."""

import ray as r


@r.remote
def steps(n):
    """How many steps of Collatz's rule lead from n to 1."""
    count = 0
    while n != 1:
        n = n // 2 if n % 2 == 0 else 3 * n + 1
        count += 1
    return count


@r.remote
class Summer:
    def __init__(self):
        self.total = 0

    def add(self, n):
        self.total += n
        return self.total


def bounded(submit, inputs, most):
    """Submits for each input, waiting while `most` are pending; the results, and the peak."""
    pending, results, peak = [], [], 0
    for x in inputs:
        if len(pending) >= most:
            ready, pending = r.wait(pending, num_returns=1)
            results += r.get(ready)
        pending.append(submit(x))
        peak = max(peak, len(pending))
    return results + r.get(pending), peak


r.init()
counts, peak = bounded(steps.remote, range(1, 61), 8)
print("tasks:", sum(counts), "steps; at most", peak, "pending")

summer = Summer.remote()
sums, peak = bounded(summer.add.remote, range(100), 5)
print("calls:", max(sums), "in the end; at most", peak, "pending")

ready, rest = r.wait([steps.remote(27) for _ in range(4)], num_returns=4, timeout=60)
print("all four:", r.get(ready), len(rest), "left")
