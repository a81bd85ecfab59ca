"""A function as the agent tells a worker of it."""

from __future__ import annotations

from typing import Any, Optional

from . import _remote, _serial


class Function:
    """A function as the agent knows it; its code is loaded when it is first called."""

    __slots__ = ("name", "code", "call", "error", "slow")

    def __init__(self, name: str, code: bytes) -> None:
        self.name, self.code = name, code
        self.call: Any = None
        self.error: Optional[BaseException] = None
        self.slow = 1e9  # ns that it took lately, at most

    def load(self) -> Any:
        """The function itself."""
        if self.call is None:
            if self.error is not None:
                raise self.error
            try:
                if self.code:
                    self.call, refs = _serial.load_function(self.code)
                    _remote.remember(self.call, self.code, refs)
                else:
                    self.call = _named(self.name)
            except BaseException as e:
                self.error = e
                raise
        return self.call


def _named(name: str) -> Any:
    """A function that programs of other languages name: module:function."""
    import importlib

    module, _, rest = name.replace(":", ".", 1).rpartition(".") if ":" not in name else (name.split(":", 1)[0], "", name.split(":", 1)[1])
    if not module:
        raise ModuleNotFoundError(f"the function {name!r} is named without its module: call it by module:function")
    found: Any = importlib.import_module(module)
    for part in rest.split("."):
        found = getattr(found, part)
    return getattr(found, "_function", found)
