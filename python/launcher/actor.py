"""Actors, by the names of Ray's module of that name."""

from ._actors import ActorClass, ActorHandle, ActorID, ActorMethod, exit_actor, method

__all__ = ["ActorClass", "ActorHandle", "ActorID", "ActorMethod", "exit_actor", "method"]
