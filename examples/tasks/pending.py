"""Many more inputs than should be in the cluster at a time: python pending.py [INPUTS] [MOST]

Without a limit, each submitted task holds its arguments and, when it has ended, its
result. Waiting for one before submitting the next keeps both bounded.
"""

import sys

import launcher as ray


@ray.remote
def steps(n):
    """How many steps of Collatz's rule lead from n to 1."""
    count = 0
    while n != 1:
        n = n // 2 if n % 2 == 0 else 3 * n + 1
        count += 1
    return count


inputs = int(sys.argv[1]) if len(sys.argv) > 1 else 500
most = int(sys.argv[2]) if len(sys.argv) > 2 else 20

pending, total, peak = [], 0, 0
for n in range(1, inputs + 1):
    if len(pending) >= most:
        ready, pending = ray.wait(pending)
        total += sum(ray.get(ready))
    pending.append(steps.remote(n))
    peak = max(peak, len(pending))
total += sum(ray.get(pending))
print(f"{inputs} inputs, {total} steps in all, at most {peak} pending")
