"""Actors, by the names of Ray's module of that name."""

from ._actors import ActorClass, ActorHandle, ActorID, ActorMethod, exit_actor

__all__ = ["ActorClass", "ActorHandle", "ActorID", "ActorMethod", "exit_actor"]
