"""A sweep by plain tasks: each trial is a function call, the best one wins.

    python sweep.py [TRIALS]

Trials that raise are counted, not fatal; a trial whose worker dies is run again.
"""

import math
import random
import sys

import launcher as ray


@ray.remote(max_retries=2)
def trial(rate, momentum):
    """Minimise a curved valley by gradient descent; the loss at the end."""
    x, y, vx, vy = -1.5, 2.0, 0.0, 0.0
    for _ in range(2000):
        gx, gy = -2 * (1 - x) - 40 * x * (y - x * x), 20 * (y - x * x)
        vx, vy = momentum * vx - rate * gx, momentum * vy - rate * gy
        x, y = x + vx, y + vy
        if not abs(x) + abs(y) < 1e6:
            raise ArithmeticError(f"it diverged at a rate of {rate:.4f}")
    return (1 - x) ** 2 + 10 * (y - x * x) ** 2


r = random.Random(1)
space = [(math.exp(r.uniform(math.log(1e-4), math.log(0.1))), r.uniform(0, 0.99)) for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 40)]
trials = {trial.remote(rate, momentum): (rate, momentum) for rate, momentum in space}

best, failed, waiting = (math.inf, None), 0, list(trials)
while waiting:
    (one,), waiting = ray.wait(waiting)
    try:
        loss = ray.get(one)
    except ArithmeticError:
        failed += 1
        continue
    if loss < best[0]:
        best = loss, trials[one]
        print(f"loss {loss:.3e} with rate {best[1][0]:.4f}, momentum {best[1][1]:.2f}")
print(f"{len(trials)} trials, {failed} diverged, the best loss is {best[0]:.3e}")
