"""A library that uses Ray by itself: programs import it and may not know. See batch_prediction.py."""

import numpy as np

import ray


class Scorer:
    """Stands for a model that is slow to load: it is loaded once and kept."""

    def __init__(self, weights):
        self.weights = np.asarray(weights)
        self.batches = 0

    def score(self, batch):
        self.batches += 1
        return np.tanh(batch @ self.weights)

    def count(self):
        return self.batches


def score_all(batches, weights, actors=2):
    """Scores of all batches in their order, and how many batches the actors had."""
    shared = ray.put(np.asarray(weights))
    scorers = [ray.remote(num_cpus=0)(Scorer).remote(shared) for _ in range(actors)]
    idle, running, results = list(scorers), {}, [None] * len(batches)
    for i, batch in enumerate(batches):
        if not idle:
            (ready,), _ = ray.wait(list(running))
            at, scorer = running.pop(ready)
            results[at] = ray.get(ready)
            idle.append(scorer)
        scorer = idle.pop()
        running[scorer.score.remote(batch)] = i, scorer
    for ref, (at, _) in running.items():
        results[at] = ray.get(ref)
    return results, ray.get([s.count.remote() for s in scorers])
