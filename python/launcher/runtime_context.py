"""Where code runs, where programs written for Ray import it from."""

from ._api import RuntimeContext, get_runtime_context

__all__ = ["RuntimeContext", "get_runtime_context"]
