"""The run contract: reports, parameters and checkpoints over the agent's socket."""

from __future__ import annotations

import json
import math
import operator
import os
import re
import sys
import threading
from typing import Any, Dict, Mapping, Optional, Tuple, Union

from ._http import Error, call

LEFT = 75
"""Exit code of a program that saved and left because it was asked to: continue me."""

PathLike = Union[str, "os.PathLike[str]"]


class Leave:
    """What launcher answers to a report: true when the program should save and leave.

    reason:   "" (go on), "pruned", "deadline", "preempted" or "resize".
    deadline: unix time in seconds by which it should have left, or None.
    """

    __slots__ = ("reason", "deadline")

    def __init__(self, reason: str = "", deadline: Optional[float] = None) -> None:
        self.reason = reason
        self.deadline = deadline

    def __bool__(self) -> bool:
        return self.reason != ""

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Leave):
            return self.reason == other.reason and self.deadline == other.deadline
        return NotImplemented

    def __hash__(self) -> int:
        return hash((self.reason, self.deadline))

    def __str__(self) -> str:
        return self.reason

    def __repr__(self) -> str:
        return f"Leave(reason={self.reason!r}, deadline={self.deadline!r})"


class Params(Dict[str, Any]):
    """Parameters: a dict whose keys are attributes too, nested ones as well (p.opt.lr)."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            known = ", ".join(sorted(map(str, self))) or "none"
            raise AttributeError(f"there is no parameter {name!r}; there are: {known}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value


_lock = threading.Lock()
_step: Optional[int] = None  # of the newest report of this process
_noted = False


def _forked() -> None:
    """A child must not inherit a lock that another thread of its parent held."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def in_run() -> bool:
    """Whether launcher started this process."""
    return bool(os.environ.get("LAUNCHER_SOCKET")) and bool(os.environ.get("LAUNCHER_PROC"))


def report(
    metrics: Optional[Mapping[str, Any]] = None,
    step: Optional[int] = None,
    checkpoint: Optional[PathLike] = None,
    **kw: Any,
) -> Leave:
    """Say how it goes; learn whether to save and leave.

    metrics:    names and numbers (numpy and torch scalars too); more may be given as
                keyword arguments: report(loss=0.3).
    step:       which step of the training they belong to, 0 or more. Left out, reports
                count by themselves from 1, or on from the checkpoint resumed from.
                Early stopping compares trials at equal steps.
    checkpoint: a directory that holds all that is needed to go on from here. It has been
                copied when report returns, and may be changed or deleted then. In a gang
                every rank reports each checkpointed step, with a directory or without;
                the checkpoint counts once all have.

    Returns a Leave: true when the program should save, report the checkpoint and end
    with sys.exit(launcher.LEFT).

    Raises TypeError or ValueError for what is no number or no directory, launcher.Error
    when the node's agent refuses or does not answer (waits at most 60 s, ten minutes
    with a checkpoint). Outside a run it checks its arguments and does nothing.
    """
    global _step
    values = _numbers(metrics, kw)
    with _lock:
        if step is None:
            step = (_step if _step is not None else checkpoint_step()) + 1
        else:
            step = _whole(step)
        _step = step
    body: Dict[str, Any] = {"metrics": values, "step": step}
    if checkpoint is not None:
        path = os.path.abspath(os.fspath(checkpoint))
        if not os.path.isdir(path):
            raise ValueError(f"checkpoint: {os.fspath(checkpoint)!r} is not a directory")
        body["checkpoint"] = path
    if not in_run():
        _note()
        return Leave()
    return _leave(call("POST", "/v1/report", body, 600.0 if checkpoint is not None else 60.0))


def should_leave() -> Leave:
    """Ask whether to save and leave, without reporting. Outside a run: go on.

    Its deadline is that of now, also where there is no need to leave yet. In tasks and
    actors it tells of their node: "preempted" once that is to go away.
    """
    if not os.environ.get("LAUNCHER_SOCKET"):
        return Leave()
    return _leave(call("GET", "/v1/should-leave"))


def checkpoint(rank: Optional[int] = None) -> Optional[str]:
    """The directory to resume from, or None for a fresh start.

    In a gang: what this rank saved (or the given one); where it saved nothing, what the
    first rank that did. Read only: it is launcher's copy.
    """
    root = _checkpoint()[0]
    if not root:
        return None
    if _SHARD.fullmatch(os.path.basename(root)):
        if rank is None:
            return root
        root = os.path.dirname(root)
    wanted = os.path.join(root, f"rank-{_number('RANK', 0) if rank is None else rank}")
    if os.path.isdir(wanted):
        return wanted
    try:
        shards = [d for d in os.listdir(root) if _SHARD.fullmatch(d)]
    except FileNotFoundError as e:
        raise Error("not-found", f"the checkpoint {root} is gone: newer ones have taken its place", ["read it before reporting new ones, or keep more (train keep)"]) from e
    return os.path.join(root, min(shards, key=lambda d: int(d[5:]))) if shards else root


_SHARD = re.compile(r"rank-[0-9]+")


def checkpoint_step() -> int:
    """The step that checkpoint() belongs to; 0 for a fresh start."""
    return _checkpoint()[1]


_resume: Optional[Tuple[str, int]] = None


def _checkpoint() -> Tuple[str, int]:
    global _resume
    if _resume is None:
        if not in_run():
            _resume = ("", 0)
        else:
            answer = call("GET", "/v1/checkpoint")
            path = answer.get("path") or ""
            _resume = (path, int(answer.get("step") or 0) if path else 0)
    return _resume


def params(defaults: Optional[Mapping[str, Any]] = None) -> Params:
    """The parameters of this trial, on top of the defaults given.

    Nested parameters are nested dicts. Outside a sweep: the defaults alone.
    Raises launcher.Error when the parameters cannot be read.
    """
    given: Any = {}
    path = os.environ.get("LAUNCHER_PARAMS")
    if path:
        try:
            with open(path, encoding="utf-8") as f:
                given = json.load(f)
        except (OSError, ValueError) as e:
            raise Error("corrupt", f"LAUNCHER_PARAMS: cannot read {path}: {e}") from e
    elif in_run():
        given = call("GET", "/v1/params")
    if given is None:
        given = {}
    if not isinstance(given, dict):
        raise Error("corrupt", f"the parameters are {type(given).__name__}, not a table")
    return _merge(defaults or {}, given)


def rank() -> int:
    """This process's number among the ranks of its gang, from 0."""
    return _number("RANK", 0)


def world_size() -> int:
    """How many ranks the gang has; 1 when it is none."""
    return _number("WORLD_SIZE", 1)


def local_rank() -> int:
    """This process's number among the gang's ranks on its node, from 0."""
    return _number("LOCAL_RANK", 0)


def local_world_size() -> int:
    """How many ranks of the gang are on this node."""
    return _number("LOCAL_WORLD_SIZE", 1)


def job_id() -> Optional[int]:
    """The job's number; None outside a run."""
    return _number("LAUNCHER_JOB_ID", 0) or None


def task_id() -> Optional[str]:
    """JOB.INDEX, for example "7.12"; None outside a run."""
    return os.environ.get("LAUNCHER_TASK_ID")


def task_index() -> int:
    """The element of the array, or number of the trial; 0 outside a run."""
    return _number("LAUNCHER_TASK_INDEX", 0)


def attempt() -> int:
    """Which run of this task it is, from 1: the token for side effects."""
    return _number("LAUNCHER_ATTEMPT", 1)


def deadline() -> Optional[float]:
    """Unix time in seconds at which this run will be ended; None when there is no limit.

    As known when it was started; should_leave().deadline is that of now, as is this one in
    tasks and actors.
    """
    if not in_run() or os.environ["LAUNCHER_PROC"].startswith("0."):  # a worker
        return should_leave().deadline
    return float(_number("LAUNCHER_DEADLINE", 0)) or None


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    if text == "":
        return default
    try:
        return int(text)
    except ValueError:
        raise Error("invalid", f"{name} is {text!r}, not a whole number") from None


def _numbers(metrics: Optional[Mapping[str, Any]], kw: Mapping[str, Any]) -> Dict[str, Any]:
    if metrics is not None and not hasattr(metrics, "items"):
        raise TypeError(f"metrics must be a mapping of names to numbers, not {type(metrics).__name__}")
    out: Dict[str, Any] = {}
    for source in (metrics or {}, kw):
        for name, value in source.items():
            if not isinstance(name, str) or not name:
                raise TypeError(f"the name of a metric must be a string, not {name!r}")
            if name in out:
                raise ValueError(f"the metric {name!r} is given twice")
            if isinstance(value, (str, bytes)):
                raise TypeError(f"the metric {name!r} is {value!r}, not a number")
            try:
                number = float(value)
            except (TypeError, ValueError) as e:
                raise TypeError(f"the metric {name!r} is {type(value).__name__}, not a number") from e
            except OverflowError as e:
                raise ValueError(f"the metric {name!r} is too large for a float") from e
            # JSON has no NaN and no infinity; a loss that diverged is told all the same.
            if math.isnan(number):
                out[name] = "NaN"
            elif math.isinf(number):
                out[name] = "Infinity" if number > 0 else "-Infinity"
            else:
                out[name] = number
    return out


def _whole(step: Any) -> int:
    try:
        value = operator.index(step)
    except TypeError:
        raise TypeError(f"step must be a whole number, not {type(step).__name__}") from None
    if value < 0:
        raise ValueError(f"step must be 0 or more, not {value}")
    return value


def _leave(answer: Mapping[str, Any]) -> Leave:
    at = answer.get("deadline") or 0
    return Leave(str(answer.get("leave") or ""), float(at) if at else None)


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> Params:
    out = Params()
    for source in (below, above):
        for k, v in source.items():
            if isinstance(v, Mapping):
                old = out.get(k)
                v = _merge(old if isinstance(old, Mapping) else {}, v)
            out[k] = v
    return out


def _note() -> None:
    global _noted
    if not _noted:
        _noted = True
        print("launcher: not in a run, reports go nowhere", file=sys.stderr)
