"""launcher: what a program says and asks while it runs on a launcher cluster.

    import launcher

    start = launcher.checkpoint()                  # a directory, or None the first time
    for epoch in range(10):
        ...
        if launcher.report(loss=loss, step=epoch + 1, checkpoint="ckpt"):
            sys.exit(launcher.LEFT)                # saved; launcher goes on elsewhere

The same program runs by plain ``python`` too: outside a run it is rank 0 of 1, nothing
is reported (a note says so once), nobody asks it to leave, and it has no parameters but
its own defaults.

Only the standard library is needed (Python 3.9 or later). ``launcher.collective``, the
all-reduce and its kin between ranks, also needs numpy and is imported when it is used.
"""

from typing import Any, List

from ._http import Error
from ._run import (
    LEFT,
    Leave,
    Params,
    attempt,
    checkpoint,
    checkpoint_step,
    deadline,
    in_run,
    job_id,
    local_rank,
    local_world_size,
    params,
    rank,
    report,
    should_leave,
    task_id,
    task_index,
    world_size,
)

__all__ = [
    "LEFT",
    "Error",
    "Leave",
    "Params",
    "attempt",
    "checkpoint",
    "checkpoint_step",
    "collective",
    "deadline",
    "in_run",
    "job_id",
    "local_rank",
    "local_world_size",
    "params",
    "rank",
    "report",
    "should_leave",
    "task_id",
    "task_index",
    "world_size",
]


def __getattr__(name: str) -> Any:
    if name == "collective":  # needs numpy: only those who use it pay for it
        import importlib

        return importlib.import_module(".collective", __name__)
    raise AttributeError(f"module 'launcher' has no attribute {name!r}")


def __dir__() -> List[str]:
    return sorted(__all__)
