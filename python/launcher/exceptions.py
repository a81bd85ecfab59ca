"""What can become of a task, an object or a call: Ray's names, with Ray's fields."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Type


class RayError(Exception):
    """Base of everything that get raises about tasks and objects."""

    hints: List[str] = []


class RayTaskError(RayError):
    """The task's own code raised; str() of it shows the traceback of the worker.

    What get raises is also an instance of the class of the cause, so
    ``except ValueError`` works.

    function_name: of the task; traceback_str: of the worker; cause: the exception itself
    when it could be carried over, else None; node, pid: where it ran.
    """

    def __init__(
        self,
        function_name: str = "",
        traceback_str: str = "",
        cause: Optional[BaseException] = None,
        node: str = "",
        pid: int = 0,
        message: str = "",
    ) -> None:
        Exception.__init__(self, function_name, traceback_str)  # not that of the cause's class
        self.function_name, self.traceback_str, self.cause = function_name, traceback_str, cause
        self.node, self.pid, self.message = node, pid, message

    def __str__(self) -> str:
        where = f" (pid={self.pid}, node={self.node})" if self.pid else ""
        return f"{self.function_name}{where}: {self.message}" + (f"\n{self.traceback_str.rstrip()}" if self.traceback_str else "")

    def __reduce__(self) -> Any:
        return (_task_error, (self.function_name, self.traceback_str, self.cause, self.node, self.pid, self.message))

    def as_instanceof_cause(self) -> "RayTaskError":
        """The same error as an instance of the cause's class too, where Python allows it."""
        cause = self.cause
        if cause is None or isinstance(self, type(cause)) or isinstance(cause, RayError):
            return self
        made = _dual(type(cause))
        if made is None:
            return self
        try:
            error = made.__new__(made)
            RayTaskError.__init__(error, self.function_name, self.traceback_str, cause, self.node, self.pid, self.message)
            error.args = cause.args
        except Exception:
            return self
        return error


def _task_error(*args: Any) -> RayTaskError:
    return RayTaskError(*args).as_instanceof_cause()


_duals: Dict[Type[BaseException], Optional[Type[RayTaskError]]] = {}


def _dual(cause: Type[BaseException]) -> Optional[Type[RayTaskError]]:
    """A class that is RayTaskError and cause both."""
    if cause not in _duals:
        made: Any = None
        if issubclass(cause, Exception):

            def init(self: Any, *args: Any, **kw: Any) -> None:
                pass  # the fields are set by as_instanceof_cause

            def attribute(self: Any, name: str) -> Any:
                cause = self.__dict__.get("cause")
                if cause is None or name.startswith("__"):
                    raise AttributeError(name)
                return getattr(cause, name)

            try:
                made = type(
                    f"RayTaskError({cause.__name__})",
                    (RayTaskError, cause),
                    {"__init__": init, "__str__": RayTaskError.__str__, "__getattr__": attribute, "__reduce__": RayTaskError.__reduce__, "__module__": __name__},
                )
            except TypeError:  # a class that cannot be derived from
                made = None
        if len(_duals) > 1000:
            _duals.clear()
        _duals[cause] = made
    return _duals[cause]


class TaskCancelledError(RayError):
    """The task was cancelled."""

    def __init__(self, message: str = "the task was cancelled", task_id: Optional[str] = None) -> None:
        super().__init__(message)
        self.task_id = task_id


class GetTimeoutError(RayError, TimeoutError):
    """get did not have all values within its timeout."""


class WorkerCrashedError(RayError):
    """The worker died while it ran the task, and the task may not be run again."""


class NodeDiedError(RayError):
    """The node died while the task ran there, and the task may not be run again."""


class RayActorError(RayError):
    """A call of an actor failed for what became of the actor.

    actor_id: of the actor, in hexadecimal, where it is known.
    """

    actor_id: Optional[str] = None

    @property
    def error_msg(self) -> str:
        """What happened."""
        return str(self)


class ActorDiedError(RayActorError):
    """The actor is dead, for good; __cause__ is what its constructor raised, if it did."""


class ActorUnavailableError(RayActorError):
    """The actor's process died while the call may have been running; the actor lives again."""


class ActorUnschedulableError(RayActorError):
    """No node can ever have the actor."""


class ActorAlreadyExistsError(ValueError, RayError):
    """There is an actor of that name already."""


class PendingCallsLimitExceeded(RayError):
    """The handle has max_pending_calls calls open already."""


class ActorPlacementGroupRemoved(RayError):
    """The placement group of the actor was removed."""


class OutOfMemoryError(RayError):
    """The worker was ended because the node or its share ran out of memory."""


class ObjectLostError(RayError):
    """The object is gone and cannot be made again."""

    def __init__(self, message: str = "", object_ref_hex: str = "") -> None:
        super().__init__(message)
        self.object_ref_hex = object_ref_hex


class OwnerDiedError(ObjectLostError):
    """The node or program that owned the object is gone."""


class ObjectReconstructionFailedError(ObjectLostError):
    """The task that makes the object cannot be run again, or was too often."""


class ObjectReconstructionFailedMaxAttemptsExceededError(ObjectReconstructionFailedError):
    """The task that makes the object was run again too often."""


class ObjectFreedError(ObjectLostError):
    """The object was released."""


class ReferenceCountingAssertionError(ObjectLostError, AssertionError):
    """The object was deleted while a reference to it was in use."""


class ObjectFetchTimedOutError(ObjectLostError):
    """The object could not be fetched from its node in time."""


class ObjectStoreFullError(RayError):
    """The object memory of the node, or its disk, is full."""


class OutOfDiskError(RayError):
    """The disk that objects spill to is full."""


class RuntimeEnvSetupError(RayError):
    """The environment that the task asked for could not be made."""

    def __init__(self, error_message: str = "") -> None:
        super().__init__(error_message)
        self.error_message = error_message


class TaskUnschedulableError(RayError):
    """No node can ever run the task."""

    def __init__(self, error_message: str = "") -> None:
        super().__init__(error_message)
        self.error_message = error_message


class TaskPlacementGroupRemoved(RayError):
    """The placement group of the task was removed."""


class LocalRayletDiedError(RayError):
    """The node's agent is gone and did not come back."""


class RaySystemError(RayError):
    """launcher itself failed."""

    def __init__(self, client_exc: Any = "", traceback_str: Optional[str] = None) -> None:
        super().__init__(str(client_exc))
        self.client_exc, self.traceback_str = client_exc, traceback_str


class RayChannelError(RaySystemError):
    """A channel is closed, or a process at the other end of it is gone."""


class RayChannelTimeoutError(RayChannelError, TimeoutError):
    """Nothing came through the channel, or no room in it, within the timeout."""


class RayCgraphCapacityExceeded(RaySystemError):
    """So many executions of a compiled graph are under way that no more may be begun."""


class CrossLanguageError(RayError):
    """A function of another language failed."""


class UnserializableException(RayError):
    """An exception that could not be carried over."""


_CODES: Dict[str, Type[RayError]] = {
    "worker_crashed": WorkerCrashedError,
    "cancelled": TaskCancelledError,
    "lost": ObjectLostError,
    "owner_died": OwnerDiedError,
    "reconstruction": ObjectReconstructionFailedError,
    "node_died": NodeDiedError,
    "memory": OutOfMemoryError,
    "actor_died": ActorDiedError,
    "actor_unavailable": ActorUnavailableError,
    "full": ObjectStoreFullError,
    "runtime_env": RuntimeEnvSetupError,
    "unschedulable": TaskUnschedulableError,
    "actor_unschedulable": ActorUnschedulableError,
    "fenced": WorkerCrashedError,
    "group_removed": TaskPlacementGroupRemoved,
    "actor_group_removed": ActorPlacementGroupRemoved,
}


def from_wire(fields: List[Any]) -> RayError:
    """The exception that an error value stands for (docs/tasks.md section 2)."""
    code, message, trace, cause, name, node, pid, hints = (list(fields) + [None] * 8)[:8]
    message, trace, name, node = str(message or ""), str(trace or ""), str(name or ""), str(node or "")
    error: RayError
    if code == "task":
        original: Optional[BaseException] = None
        if isinstance(cause, bytes) and cause:
            import pickle

            try:
                loaded = pickle.loads(cause)
                original = loaded if isinstance(loaded, BaseException) else None
            except Exception as e:
                message += f" (the exception itself cannot be read here: {e})"
        elif isinstance(cause, list):
            original = CrossLanguageError(message)
        error = RayTaskError(name, trace, original, node, int(pid or 0), message).as_instanceof_cause()
    else:
        kind = _CODES.get(str(code), RaySystemError)
        what = "actor" if str(code).startswith("actor_") and code != "actor_unavailable" else "task"  # that is a call's
        text = (f"{what} {name}: " if name else "") + message + "".join(f"\nhint: {h}" for h in hints or [])
        error = kind(text)
        if isinstance(error, ActorDiedError) and isinstance(cause, bytes) and cause:
            import pickle

            try:
                error.__cause__ = pickle.loads(cause)
            except Exception:
                pass  # its text is in the message
            if trace:
                error.args = (f"{text}\n{trace.rstrip()}",)
    error.hints = [str(h) for h in hints or []]
    return error
