"""Collectives between actors: all-reduce, broadcast, all-gather, send and receive with numpy.

Under Ray it needs torch, whose gloo it uses.
"""

import numpy as np

import ray
from ray.util import collective

WORLD = 3


@ray.remote(num_cpus=0)
class Rank:
    def setup(self, rank):
        collective.init_collective_group(WORLD, rank, backend="gloo", group_name="example")
        self.rank = rank
        return collective.get_rank("example"), collective.get_collective_group_size("example")

    def allreduce(self):
        x = np.full(4, float(self.rank + 1), dtype=np.float32)
        collective.allreduce(x, "example")
        return x.tolist()

    def broadcast(self):
        x = np.full(2, float(self.rank), dtype=np.float32)
        collective.broadcast(x, src_rank=1, group_name="example")
        return x.tolist()

    def allgather(self):
        parts = [np.zeros(2, dtype=np.float32) for _ in range(WORLD)]
        collective.allgather(parts, np.full(2, float(self.rank), dtype=np.float32), "example")
        return [p.tolist() for p in parts]

    def ring(self):
        """Each gives to the next; the first begins, so that nobody waits for ever."""
        mine, got = np.full(1, 10.0 + self.rank, dtype=np.float32), np.zeros(1, dtype=np.float32)
        after, before = (self.rank + 1) % WORLD, (self.rank - 1) % WORLD
        if self.rank == 0:
            collective.send(mine, after, "example")
            collective.recv(got, before, "example")
        else:
            collective.recv(got, before, "example")
            collective.send(mine, after, "example")
        return got.tolist()

    def leave(self):
        collective.barrier("example")
        collective.destroy_collective_group("example")
        return collective.is_group_initialized("example")


ray.init()
ranks = [Rank.remote() for _ in range(WORLD)]
print("ranks:", ray.get([r.setup.remote(i) for i, r in enumerate(ranks)]))
for step in ("allreduce", "broadcast", "allgather", "ring", "leave"):
    print(f"{step}:", ray.get([getattr(r, step).remote() for r in ranks]))
