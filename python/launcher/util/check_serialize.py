"""What in an object it is that cannot be passed on."""

from __future__ import annotations

import inspect
import sys
from typing import Any, Iterator, List, Optional, Set, TextIO, Tuple

from .. import _serial


class FailureTuple:
    """Something that cannot be pickled: the object, its name, and what it was found in."""

    def __init__(self, obj: Any, name: str, parent: Any) -> None:
        self.obj, self.name, self.parent = obj, name, parent

    def __repr__(self) -> str:
        return f"FailTuple({self.name} [obj={self.obj!r}, parent={self.parent!r}])"


def inspect_serializability(base_obj: Any, name: Optional[str] = None, depth: int = 3, print_file: Optional[TextIO] = None) -> Tuple[bool, Set[FailureTuple]]:
    """Whether an object can be passed on, and what in it, down to depth, cannot.

    It prints what it finds.
    """
    to = print_file or sys.stdout
    failures: List[FailureTuple] = []
    seen: Set[int] = set()

    def look(obj: Any, label: str, parent: Any, left: int) -> bool:
        """Whether obj fails; adds the innermost causes that are found."""
        if _passes(obj):
            return False
        if id(obj) in seen:
            return True
        seen.add(id(obj))
        deeper = False
        if left > 0:
            for part, value in _parts(obj):
                deeper = look(value, part, obj, left - 1) or deeper
        if not deeper:
            failures.append(FailureTuple(obj, label, parent))
        return True

    label = name or _serial.name_of(base_obj)
    if not look(base_obj, label, None, depth):
        return True, set()
    print(f"{label} cannot be passed on:", file=to)
    for f in failures:
        inside = "" if f.parent is None else f", in {_serial.name_of(f.parent)}"
        print(f"  {f.name} (a {type(f.obj).__name__}){inside}", file=to)
    print("make these inside the function or method that uses them, or give the class a __reduce__", file=to)
    return False, set(failures)


def _passes(obj: Any) -> bool:
    try:
        _serial.encode(obj)
    except Exception:
        return False
    return True


def _parts(obj: Any) -> Iterator[Tuple[str, Any]]:
    """What an object takes along when it is pickled."""
    if inspect.isfunction(obj) or inspect.ismethod(obj):
        found = inspect.getclosurevars(obj)
        yield from found.nonlocals.items()
        yield from found.globals.items()
        if inspect.ismethod(obj):
            yield "self", obj.__self__
    elif isinstance(obj, dict):
        for key, value in obj.items():
            yield repr(key), value
    elif isinstance(obj, (list, tuple, set, frozenset)):
        for i, value in enumerate(obj):
            yield f"[{i}]", value
    elif inspect.isclass(obj):
        for key, value in vars(obj).items():
            if not key.startswith("__") or callable(value):
                yield key, value
    else:
        yield from getattr(obj, "__dict__", {}).items()


__all__ = ["FailureTuple", "inspect_serializability"]
