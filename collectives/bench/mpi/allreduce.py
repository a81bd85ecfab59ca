"""The same through mpi4py: mpirun --bind-to core -n 2 python allreduce.py 4096 65536 ..."""

import statistics
import sys
import time

import numpy as np
from mpi4py import MPI

comm = MPI.COMM_WORLD


def run(buf, calls):
    comm.Barrier()
    start = time.perf_counter()
    for _ in range(calls):
        comm.Allreduce(MPI.IN_PLACE, buf)
    return comm.allreduce((time.perf_counter() - start) / calls, op=MPI.MAX)


for size in map(int, sys.argv[1:]):
    i = np.arange(size // 4) % 1000
    buf = (i + comm.rank).astype(np.float32)
    comm.Allreduce(MPI.IN_PLACE, buf)
    n = comm.size
    assert (buf == n * i + n * (n - 1) // 2).all()
    buf[...] = 0
    calls = max(3, min(50_000, int(0.04 / max(run(buf, 3), 1e-9))))
    t = statistics.median(run(buf, calls) for _ in range(9))
    if comm.rank == 0:
        print(size, f"{t * 1e6:.2f}", flush=True)
