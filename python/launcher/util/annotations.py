"""The marks that Ray puts on its interface, for libraries that use them: they do nothing."""

from __future__ import annotations

from typing import Any


class RayDeprecationWarning(DeprecationWarning):
    """A warning that Ray gives."""


def _mark(*args: Any, **options: Any) -> Any:
    """Decorate, with options or without: what is decorated stays as it is."""
    if len(args) == 1 and not options and callable(args[0]):
        return args[0]
    return lambda marked: marked


PublicAPI = DeveloperAPI = Deprecated = _mark

__all__ = ["Deprecated", "DeveloperAPI", "PublicAPI", "RayDeprecationWarning"]
