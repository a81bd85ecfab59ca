"""How the program wants objects of its classes passed on."""

from __future__ import annotations

import copyreg
from typing import Any, Callable, Type


def _made(deserializer: Callable[[Any], Any], data: Any) -> Any:
    return deserializer(data)


def register_serializer(cls: Type[Any], *, serializer: Callable[[Any], Any], deserializer: Callable[[Any], Any]) -> None:
    """Objects of exactly this class are passed on as what serializer makes of them.

    It counts in this process; where they are read, deserializer comes along.
    """
    copyreg.pickle(cls, lambda value: (_made, (deserializer, serializer(value))))


def deregister_serializer(cls: Type[Any]) -> None:
    """Pass objects of the class on as they pickle by themselves."""
    copyreg.dispatch_table.pop(cls, None)


__all__ = ["deregister_serializer", "register_serializer"]
