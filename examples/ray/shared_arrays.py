"""A big array, put once and read by many: no copies, and nobody can write into it."""

import numpy as np

import ray


@ray.remote
def column_sum(table, i):
    return float(table[:, i].sum()), table.flags.writeable


@ray.remote
def try_to_write(table):
    try:
        table[0, 0] = -1
        return "written"
    except ValueError:
        return "read-only"


@ray.remote
class Model:
    """The reference is an argument of __init__; each actor maps the same memory."""

    def __init__(self, table, row):
        self.table, self.row = table, row

    def score(self, weights):
        return float(self.table[self.row] @ weights)


@ray.remote
def unwrap(box):
    """A reference within a value stays one: this task decides when to fetch it."""
    return type(box["table"]).__name__, ray.get(box["table"]).shape


ray.init()
table = np.arange(2_000_000, dtype=np.float64).reshape(-1, 4)
ref = ray.put(table)
sums = ray.get([column_sum.remote(ref, i) for i in range(4)])
print("sums are right:", [s for s, _ in sums] == list(table.sum(axis=0)), "writeable:", {w for _, w in sums})
print("a write:", ray.get(try_to_write.remote(ref)))
models = [Model.remote(ref, row) for row in (0, 1)]
weights = np.array([1.0, 0.0, 0.0, 10.0])
print("scores:", ray.get([m.score.remote(weights) for m in models]))
print("in a box:", ray.get(unwrap.remote({"table": ref})))
view = ray.get(ref)
own = view.copy()
own[0, 0] = 5.0
print("a copy is writeable:", own[0, 0], "the object is as it was:", view[0, 0])
