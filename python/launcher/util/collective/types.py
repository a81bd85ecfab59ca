"""What the operations of ray.util.collective are told."""

from __future__ import annotations

import enum


class ReduceOp(enum.Enum):
    """How values become one."""

    SUM = 0
    PRODUCT = 1
    MIN = 2
    MAX = 3
    AVERAGE = 4


class Backend:
    """Names of backends. All mean the same: shared memory, and transfer between nodes."""

    NCCL = "nccl"
    GLOO = "gloo"
    MPI = "mpi"
    TORCH_GLOO = "torch_gloo"
    UNRECOGNIZED = "unrecognized"


__all__ = ["Backend", "ReduceOp"]
