"""Metrics of this process, kept here and told to the node's agent while they change."""

from __future__ import annotations

import atexit
import bisect
import os
import threading
from typing import Any, Dict, List, Optional, Sequence, Tuple

from . import _client, _pack

_EVERY = 1.0  # seconds

_lock = threading.Lock()
_families: Dict[str, "Family"] = {}
_timer: Optional[threading.Timer] = None


class Family:
    """A metric, with a value for each combination of tags that was used."""

    def __init__(self, kind: str, name: str, description: str, keys: Sequence[str], bounds: Sequence[float]) -> None:
        self.kind, self.name, self.description = kind, name, description
        self.keys, self.bounds = list(keys), list(bounds)
        self.values: Dict[Tuple[str, ...], List[Any]] = {}  # value, and counts of buckets

    def _of(self, tags: Tuple[str, ...]) -> List[Any]:
        found = self.values.get(tags)
        if found is None:
            found = self.values[tags] = [0.0, [0.0] * (len(self.bounds) + 1) if self.bounds else []]
        return found

    def add(self, tags: Tuple[str, ...], amount: float) -> None:
        """Count."""
        with _lock:
            self._of(tags)[0] += amount
            _changed()

    def set(self, tags: Tuple[str, ...], value: float) -> None:
        """Set."""
        with _lock:
            self._of(tags)[0] = float(value)
            _changed()

    def observe(self, tags: Tuple[str, ...], value: float) -> None:
        """Count into a bucket."""
        with _lock:
            found = self._of(tags)
            found[0] += value
            found[1][bisect.bisect_left(self.bounds, value)] += 1
            _changed()


def family(kind: str, name: str, description: str, keys: Sequence[str], bounds: Sequence[float] = ()) -> Family:
    """The metric of this name; a process has one, however often it is made."""
    with _lock:
        f = _families.get(name)
        if f is None:
            f = _families[name] = Family(kind, name, description, keys, bounds)
        elif (f.kind, f.keys, f.bounds) != (kind, list(keys), list(bounds)):
            raise ValueError(f"there is a metric {name!r} of another kind, with other tags or boundaries, in this process")
        return f


def _changed() -> None:
    global _timer
    if _timer is None:
        _timer = threading.Timer(_EVERY, flush)
        _timer.daemon = True
        _timer.start()


def flush() -> None:
    """Tell the agent, if anything has changed and there is one."""
    global _timer
    with _lock:
        if _timer is None:
            return
        _timer.cancel()
        _timer = None
        told = [
            [f.name, f.kind, f.description, f.keys, f.bounds, [[list(tags), value[0], list(value[1])] for tags, value in f.values.items()]]
            for f in _families.values()
            if f.values
        ]
    client = _client.current()
    if client is None or client.closed:
        return
    try:
        client.ask("metrics", _pack.pack(told))
    except Exception as e:  # metrics never stop a program
        client.printer.lines.append((2, f"launcher: metrics: {e}".encode()))


def _forked() -> None:
    global _lock, _timer
    _lock, _timer = threading.Lock(), None
    for f in _families.values():  # what the parent counts, it tells
        f.values.clear()


atexit.register(flush)
os.register_at_fork(after_in_child=_forked)
