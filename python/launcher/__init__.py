"""launcher: what a program says and asks while it runs on a launcher cluster.

    import launcher

    @launcher.remote
    def square(x):
        return x * x

    print(launcher.get([square.remote(i) for i in range(10)]))    # tasks, on all nodes

    start = launcher.checkpoint()                  # a directory, or None the first time
    for epoch in range(10):
        ...
        if launcher.report(loss=loss, step=epoch + 1, checkpoint="ckpt"):
            sys.exit(launcher.LEFT)                # saved; launcher goes on elsewhere

Tasks and objects have Ray's names and behaviour (``import launcher as ray``); they need
cloudpickle. Outside a run the first call finds the cluster that is up, or starts one on
this machine for the life of the program.

A program that reports runs by plain ``python`` too: outside a run it is rank 0 of 1,
nothing is reported (a note says so once), nobody asks it to leave, and it has no
parameters but its own defaults.

Python 3.9 or later. ``launcher.collective``, the all-reduce and its kin between ranks,
also needs numpy and is imported when it is used.
"""

import sys

if sys.version_info < (3, 9):
    raise ImportError("launcher needs Python 3.9 or later; this is %d.%d (%s)" % (sys.version_info[0], sys.version_info[1], sys.executable))

from typing import TYPE_CHECKING, Any, List

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

if TYPE_CHECKING:
    from . import collective, exceptions, scheduling
    from ._actors import get_actor, kill, method
    from ._api import (
        available_resources,
        cancel,
        cluster_resources,
        create,
        function,
        get,
        get_gpu_ids,
        get_runtime_context,
        init,
        is_initialized,
        nodes,
        put,
        remote,
        shutdown,
        timeline,
        wait,
    )
    from ._refs import ObjectRef, ObjectRefGenerator

# Tasks and objects are loaded when they are first used.
_TASKS = {
    "ObjectRef": "_refs",
    "ObjectRefGenerator": "_refs",
    "available_resources": "_api",
    "cancel": "_api",
    "cluster_resources": "_api",
    "create": "_api",
    "function": "_api",
    "get": "_api",
    "get_actor": "_actors",
    "get_gpu_ids": "_api",
    "get_runtime_context": "_api",
    "init": "_api",
    "is_initialized": "_api",
    "kill": "_actors",
    "method": "_actors",
    "nodes": "_api",
    "put": "_api",
    "remote": "_api",
    "shutdown": "_api",
    "timeline": "_api",
    "wait": "_api",
}

_MODULES = ("actor", "collective", "dag", "exceptions", "experimental", "job_config", "job_submission", "remote_function", "runtime_context", "runtime_env", "scheduling", "types", "util")

__all__ = [
    "Error",
    "LEFT",
    "Leave",
    "ObjectRef",
    "ObjectRefGenerator",
    "Params",
    "attempt",
    "available_resources",
    "cancel",
    "checkpoint",
    "checkpoint_step",
    "cluster_resources",
    "create",
    "collective",
    "deadline",
    "exceptions",
    "function",
    "get",
    "get_actor",
    "get_gpu_ids",
    "get_runtime_context",
    "in_run",
    "init",
    "is_initialized",
    "job_id",
    "kill",
    "local_rank",
    "local_world_size",
    "method",
    "nodes",
    "params",
    "put",
    "rank",
    "remote",
    "report",
    "scheduling",
    "should_leave",
    "shutdown",
    "task_id",
    "task_index",
    "timeline",
    "wait",
    "world_size",
]


def __getattr__(name: str) -> Any:
    import importlib

    if name in _TASKS:
        found = getattr(importlib.import_module("." + _TASKS[name], __name__), name)
        globals()[name] = found
        return found
    if name in _MODULES:  # collective needs numpy
        return importlib.import_module("." + name, __name__)
    raise AttributeError(f"module 'launcher' has no attribute {name!r}")


def __dir__() -> List[str]:
    return sorted(__all__)
