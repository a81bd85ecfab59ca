"""ObjectRef, where programs written for Ray import it from."""

from ._refs import ObjectRef

__all__ = ["ObjectRef"]
