"""What is said once only."""

from __future__ import annotations

from typing import Set

_said: Set[str] = set()
_off = False


def log_once(key: str) -> bool:
    """True the first time that this process asks with this key."""
    if _off or key in _said:
        return False
    _said.add(key)
    return True


def disable_log_once_globally() -> None:
    """From now on log_once is always False."""
    global _off
    _off = True


def enable_periodic_logging() -> None:
    """Does nothing: what was said once is not said again."""


def reset_log_once(key: str) -> None:
    """log_once is True for the key once more."""
    _said.discard(key)


__all__ = ["disable_log_once_globally", "enable_periodic_logging", "log_once", "reset_log_once"]
