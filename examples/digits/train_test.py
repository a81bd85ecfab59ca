"""train.py with ranks that are threads: the same weights at every world size, and after a
restart from any checkpoint. Run by digits_test.go."""

import argparse
import contextlib
import io
import os
import shutil
import tempfile
import threading
import unittest

import numpy as np
import train


class Crowd:
    """A group of threads that add up in the order of ranks."""

    def __init__(self, size):
        self.size = size
        self.meet = threading.Barrier(size)
        self.arrays = [None] * size

    def rank(self, rank):
        crowd = self

        class Group:
            size = crowd.size

            def empty(self, shape, dtype):
                return np.empty(shape, dtype)

            def all_reduce(self, array, op="sum"):
                crowd.arrays[self.rank] = array
                if crowd.meet.wait(30) == 0:
                    total = crowd.arrays[0].copy()
                    for other in crowd.arrays[1:]:
                        total = np.maximum(total, other) if op == "max" else total + other
                    for other in crowd.arrays:
                        other[...] = total
                crowd.meet.wait(30)
                return array

        group = Group()
        group.rank = rank
        return group


def run(size, steps=50):
    args = argparse.Namespace(steps=steps, lam=1e-3, tolerance=1e-12, pause=0.0, out=None)
    crowd, weights, errors = Crowd(size), [None] * size, []

    def one(rank):
        try:
            weights[rank] = train.train(crowd.rank(rank), args)
        except BaseException as e:
            errors.append(e)
            crowd.meet.abort()

    threads = [threading.Thread(target=one, args=(r,)) for r in range(size)]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    if errors:
        raise errors[0]
    return weights, out.getvalue()


class Train(unittest.TestCase):
    def test_world_sizes(self):
        first = None
        for size in (1, 2, 3, 4):
            weights, out = run(size)
            for w in weights[1:]:
                self.assertTrue((w == weights[0]).all(), "ranks differ")
            self.assertIn(f"objective 0.26186455  accuracy 0.978854  |W| 15.547594  steps 8  ranks {size}\n", out)
            first = weights[0] if first is None else first
            self.assertLess(np.abs(weights[0] - first).max(), 1e-10)

    def test_resume(self):
        (whole, *_), _ = run(2)
        folder = tempfile.mkdtemp()
        before = train.launcher.checkpoint, train.launcher.checkpoint_step
        try:
            for stop in (1, 4, 8):
                (w, *_), _ = run(2, steps=stop)
                np.save(os.path.join(folder, "weights.npy"), w)
                train.launcher.checkpoint, train.launcher.checkpoint_step = lambda: folder, lambda s=stop: s
                (again, *_), out = run(2)
                self.assertIn(f"going on from step {stop}\n", out)
                self.assertTrue((again == whole).all(), f"resumed from step {stop}: other weights")
                train.launcher.checkpoint, train.launcher.checkpoint_step = before
        finally:
            train.launcher.checkpoint, train.launcher.checkpoint_step = before
            shutil.rmtree(folder)


if __name__ == "__main__":
    unittest.main()
