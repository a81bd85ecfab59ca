"""Metrics of a program: counted in each process, read from the nodes' agents.

    calls = Counter("calls", description="...", tag_keys=("kind",))
    calls.inc(tags={"kind": "read"})

``launcher metrics`` prints them as Prometheus text, under ray_NAME as with Ray.
"""

from __future__ import annotations

import re
from typing import Any, Dict, List, Optional, Tuple

from .. import _metrics

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")


class _Metric:
    kind = ""

    def __init__(self, name: str, description: str = "", tag_keys: Optional[Tuple[str, ...]] = None, boundaries: Tuple[float, ...] = ()) -> None:
        if not isinstance(name, str) or not name:
            raise ValueError("the name of a metric is a string, and not empty")
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot be the name of a metric: it has letters, digits, _ and :, and does not begin with a digit")
        if isinstance(tag_keys, str) or any(not isinstance(k, str) for k in tag_keys or ()):
            raise TypeError("tag_keys is a tuple of strings")
        self._name, self._description, self._tag_keys = name, description, tuple(tag_keys or ())
        self._boundaries = boundaries
        self._default: Dict[str, str] = {}
        self._family = _metrics.family(self.kind, name, description, self._tag_keys, boundaries)

    def set_default_tags(self, default_tags: Dict[str, str]) -> Any:
        """Values for tags that a call does not give."""
        self._check(default_tags)
        self._default = dict(default_tags)
        return self

    def _check(self, tags: Dict[str, str]) -> None:
        for k, v in tags.items():
            if k not in self._tag_keys:
                raise ValueError(f"{k!r} is no tag of {self._name}: its tag_keys are {list(self._tag_keys)}")
            if not isinstance(v, str):
                raise TypeError(f"the tag {k!r} is {v!r}; tags are strings")

    def _tags(self, tags: Optional[Dict[str, str]]) -> Tuple[str, ...]:
        given = tags or {}
        self._check(given)
        every = {**self._default, **given}
        missing = [k for k in self._tag_keys if k not in every]
        if missing:
            raise ValueError(f"{self._name}: missing value for tag key(s) {missing}")
        return tuple(every[k] for k in self._tag_keys)

    @property
    def info(self) -> Dict[str, Any]:
        """Name, description, tag_keys and default_tags."""
        return {"name": self._name, "description": self._description, "tag_keys": self._tag_keys, "default_tags": dict(self._default)}

    def __reduce__(self) -> Any:
        return (_made, (type(self), self._name, self._description, self._tag_keys, self._boundaries, self._default))


def _made(kind: Any, name: str, description: str, keys: Tuple[str, ...], bounds: Tuple[float, ...], default: Dict[str, str]) -> Any:
    args: Dict[str, Any] = {"boundaries": list(bounds)} if bounds else {}
    return kind(name, description=description, tag_keys=keys, **args).set_default_tags(default)


class Counter(_Metric):
    """It only grows."""

    kind = "counter"

    def inc(self, value: float = 1.0, tags: Optional[Dict[str, str]] = None) -> None:
        """Add to it."""
        if not isinstance(value, (int, float)):
            raise TypeError(f"value is {value!r}, not a number")
        if value <= 0:
            raise ValueError(f"value is {value}; it must be above 0")
        self._family.add(self._tags(tags), float(value))


class Gauge(_Metric):
    """What is so now."""

    kind = "gauge"

    def set(self, value: Optional[float], tags: Optional[Dict[str, str]] = None) -> None:
        """Set it; None changes nothing."""
        if value is None:
            return
        if not isinstance(value, (int, float)):
            raise TypeError(f"value is {value!r}, not a number")
        self._family.set(self._tags(tags), float(value))


class Histogram(_Metric):
    """How many values were at most each boundary."""

    kind = "histogram"

    def __init__(self, name: str, description: str = "", boundaries: Optional[List[float]] = None, tag_keys: Optional[Tuple[str, ...]] = None) -> None:
        if not boundaries:
            raise ValueError("a Histogram needs boundaries, such as [0.1, 1, 10]")
        if any(b <= 0 for b in boundaries) or sorted(set(boundaries)) != list(boundaries):
            raise ValueError(f"boundaries are {boundaries}; they must be above 0, and grow")
        super().__init__(name, description, tag_keys, tuple(float(b) for b in boundaries))

    def observe(self, value: float, tags: Optional[Dict[str, str]] = None) -> None:
        """Count a value."""
        if not isinstance(value, (int, float)):
            raise TypeError(f"value is {value!r}, not a number")
        self._family.observe(self._tags(tags), float(value))

    @property
    def info(self) -> Dict[str, Any]:
        """Name, description, tag_keys, default_tags and boundaries."""
        return {**super().info, "boundaries": list(self._boundaries)}


__all__ = ["Counter", "Gauge", "Histogram"]
