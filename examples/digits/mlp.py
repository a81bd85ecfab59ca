"""A small neural network on the digits, to be tuned.

    launcher sweep examples/digits/sweep.toml
    python examples/digits/mlp.py --lr 0.1 --hidden 32

After each epoch it reports loss and error on images it has not learned from; when
launcher has seen better ones at the same epoch, it is told to leave.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

try:
    import launcher
except ImportError:  # by plain python in a clone of the repository
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python"))
    import launcher

from data import load


def split():
    """Training and test images: every fifth is for the test."""
    x, y = load()
    test = np.arange(len(y)) % 5 == 0
    return x[~test], y[~test], x[test], y[test]


class Network:
    """One hidden layer of ReLUs, softmax on top, trained by SGD with momentum."""

    def __init__(self, inputs, hidden, outputs, rng):
        self.w = [rng.normal(0, np.sqrt(2 / inputs), (inputs, hidden)), np.zeros(hidden),
                  rng.normal(0, np.sqrt(1 / hidden), (hidden, outputs)), np.zeros(outputs)]
        self.speed = [np.zeros_like(w) for w in self.w]

    def forward(self, x):
        w1, b1, w2, b2 = self.w
        h = np.maximum(x @ w1 + b1, 0)
        s = h @ w2 + b2
        s -= s.max(axis=1, keepdims=True)
        p = np.exp(s)
        return h, p / p.sum(axis=1, keepdims=True)

    def learn(self, x, y, lr, momentum, decay):
        h, p = self.forward(x)
        p[np.arange(len(y)), y] -= 1
        p /= len(y)
        back = (p @ self.w[2].T) * (h > 0)
        gradients = [x.T @ back, back.sum(axis=0), h.T @ p, p.sum(axis=0)]
        for w, v, g in zip(self.w, self.speed, gradients):
            v *= momentum
            v -= lr * (g + decay * w)
            w += v

    def test(self, x, y):
        """Mean cross-entropy and the share of wrong answers."""
        p = self.forward(x)[1]
        loss = -np.log(np.maximum(p[np.arange(len(y)), y], 1e-12)).mean()
        return loss, (p.argmax(axis=1) != y).mean()


def main():
    given = launcher.params({"lr": 0.1, "hidden": 32, "batch": 32, "momentum": 0.9, "decay": 1e-4})
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--lr", type=float, default=given.lr, help="learning rate")
    args.add_argument("--hidden", type=int, default=given.hidden, help="hidden units")
    args.add_argument("--batch", type=int, default=given.batch)
    args.add_argument("--momentum", type=float, default=given.momentum)
    args.add_argument("--decay", type=float, default=given.decay)
    args.add_argument("--epochs", type=int, default=27)
    args.add_argument("--seed", type=int, default=0)
    args = args.parse_args()

    rng = np.random.default_rng(args.seed)
    x, y, x_test, y_test = split()
    net = Network(x.shape[1], args.hidden, 10, rng)
    np.seterr(over="ignore", invalid="ignore")  # a loss that diverges is reported as it is
    loss = error = float("nan")
    for epoch in range(1, args.epochs + 1):
        order = rng.permutation(len(y))
        for first in range(0, len(y), args.batch):
            part = order[first : first + args.batch]
            net.learn(x[part], y[part], args.lr, args.momentum, args.decay)
        loss, error = net.test(x_test, y_test)
        if launcher.report(loss=loss, error=error, step=epoch):
            print(f"leaving after epoch {epoch}: loss {loss:.4f}  error {error:.4f}")
            sys.exit(launcher.LEFT)
    print(f"loss {loss:.4f}  error {error:.4f}")


if __name__ == "__main__":
    main()
