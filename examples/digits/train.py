"""Softmax regression on the digits, by as many ranks as there are.

    launcher train -n 4 examples/digits/train.py        # four ranks
    python examples/digits/train.py                     # one, without launcher

Each rank holds its part of the images. The loss, its gradient and the products of its
second derivative with a vector are sums over all images: every rank computes its own
part and launcher.collective.all_reduce adds them up. All ranks so hold the same numbers
and take the same decisions; the result does not depend on how many they are.

The problem is convex, so there is one right answer: objective 0.26186455. A rank that is
killed changes nothing: the gang starts again from the last checkpoint.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

try:
    import launcher
except ImportError:  # by plain python in a clone of the repository
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python"))
    import launcher

from data import load

CLASSES = 10


class Softmax:
    """mean cross-entropy + lam/2 |W|^2 over all ranks' images; the bias is not held down.

    The weights are one vector: W (64 x 10, row by row), then the bias (10).
    """

    def __init__(self, group, lam):
        x, y = load()
        self.total, self.features = x.shape
        first, end = (self.total * r // group.size for r in (group.rank, group.rank + 1))
        self.x = np.hstack([x[first:end], np.ones((end - first, 1))])
        self.y = y[first:end]
        self.lam = lam
        self.group = group
        self.size = (self.features + 1) * CLASSES
        # What is reduced lies in the group's shared memory: no copy on the way.
        self.buffer = group.empty(self.size + 2, np.float64)
        self.held = np.ones((self.features + 1, CLASSES))
        self.held[-1] = 0

    def evaluate(self, w):
        """Objective, gradient and accuracy at w; keeps what product needs."""
        scores = self.x @ w.reshape(-1, CLASSES)
        scores -= scores.max(axis=1, keepdims=True)
        p = np.exp(scores)
        norm = p.sum(axis=1, keepdims=True)
        rows = np.arange(len(self.y))
        loss = (np.log(norm[:, 0]) - scores[rows, self.y]).sum()
        hits = (scores.argmax(axis=1) == self.y).sum()
        p /= norm
        self.p = p.copy()
        p[rows, self.y] -= 1
        b = self.buffer
        b[: self.size] = (self.x.T @ p).ravel()
        b[self.size :] = loss, hits
        self.group.all_reduce(b)
        b /= self.total
        held = w * self.held.ravel()
        return b[self.size] + self.lam / 2 * (held @ held), b[: self.size] + self.lam * held, b[self.size + 1]

    def product(self, v):
        """The second derivative at the last w, times v."""
        s = self.x @ v.reshape(-1, CLASSES)
        s = self.p * (s - (self.p * s).sum(axis=1, keepdims=True))
        b = self.buffer[: self.size]
        b[:] = (self.x.T @ s).ravel()
        self.group.all_reduce(b)
        return b / self.total + self.lam * self.held.ravel() * v


def direction(model, gradient):
    """Newton's direction: solves second derivative * d = -gradient by conjugate gradients."""
    d = np.zeros_like(gradient)
    r = -gradient
    p = r.copy()
    rr = r @ r
    enough = rr * min(0.1, np.sqrt(np.sqrt(rr))) ** 2
    for _ in range(500):
        hp = model.product(p)
        curvature = p @ hp
        if curvature <= 1e-30:
            break
        alpha = rr / curvature
        d += alpha * p
        r -= alpha * hp
        rr, before = r @ r, rr
        if rr <= enough:
            break
        p *= rr / before
        p += r
    return d


def tell(group, w, step, **metrics):
    """Report a step with the weights; true when all ranks should leave.

    Every rank reports the step, rank 0 brings the file. One rank may hear of the end of
    its node before the others do, so they agree: if one is to leave, all are.
    """
    if group.rank == 0 and launcher.in_run():
        with tempfile.TemporaryDirectory(dir=os.environ.get("LAUNCHER_CHECKPOINT_OUT")) as d:
            np.save(os.path.join(d, "weights.npy"), w)
            leave = launcher.report(metrics, step=step, checkpoint=d)
    else:
        leave = launcher.report(metrics, step=step)
    votes = np.array([float(bool(leave))])
    group.all_reduce(votes, op="max")
    return votes[0] > 0


def train(group, args):
    """Newton's method from the checkpoint, or from zero, to the optimum; gives the weights."""
    model = Softmax(group, args.lam)
    chief = group.rank == 0

    w, step = np.zeros(model.size), 0
    start = launcher.checkpoint()
    if start is not None:
        w, step = np.load(os.path.join(start, "weights.npy")), launcher.checkpoint_step()
        if chief:
            print(f"going on from step {step}", flush=True)

    objective, gradient, accuracy = model.evaluate(w)
    while step < args.steps and np.linalg.norm(gradient) > args.tolerance:
        d = direction(model, gradient)
        slope, scale = gradient @ d, 1.0
        while True:  # halve the step until it goes down
            trial = model.evaluate(w + scale * d)
            if trial[0] <= objective + 1e-4 * scale * slope + 1e-15 or scale < 1e-6:
                break
            scale /= 2
        w = w + scale * d
        objective, gradient, accuracy = trial
        step += 1
        if chief:
            print(f"step {step}: objective {objective:.8f}  gradient {np.linalg.norm(gradient):.1e}", flush=True)
        if tell(group, w, step, objective=objective, accuracy=accuracy):
            sys.exit(launcher.LEFT)
        time.sleep(args.pause)

    if chief:
        norm = np.linalg.norm(w * model.held.ravel())
        print(f"objective {objective:.8f}  accuracy {accuracy:.6f}  |W| {norm:.6f}  steps {step}  ranks {group.size}", flush=True)
        if args.out:
            np.save(args.out, w)
    return w


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=50, help="Newton steps at most")
    parser.add_argument("--lam", type=float, default=1e-3, help="weight of |W|^2 / 2")
    parser.add_argument("--tolerance", type=float, default=1e-12, help="end when the gradient is as small")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds to wait after each step, to have time to kill a rank")
    parser.add_argument("--out", help="file for the weights (.npy)")
    args = parser.parse_args()
    group = launcher.collective.init()
    try:
        train(group, args)
    except launcher.collective.PeerLost as e:
        # Another rank died; the whole gang starts again from the last checkpoint.
        sys.exit(f"rank {group.rank} stops: {e}")


if __name__ == "__main__":
    main()
