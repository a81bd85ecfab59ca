"""RemoteFunction, where programs written for Ray import it from."""

from ._remote import RemoteFunction

__all__ = ["RemoteFunction"]
