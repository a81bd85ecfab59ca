"""Batch prediction: a model is loaded once in each of a few actors, which score batches.

The library beside it, scoring.py, is what imports ray.
"""

import numpy as np
import scoring

r = np.random.default_rng(5)
data = r.normal(size=(1000, 8))
weights = r.normal(size=8)

batches = np.array_split(data, 20)
scores, had = scoring.score_all(batches, weights)
print("batches:", len(scores), "scored:", sum(had), "by both:", all(had))
print("as in one process:", np.allclose(np.concatenate(scores), np.tanh(data @ weights)))
print("positive:", int((np.concatenate(scores) > 0).sum()), "of", len(data))
