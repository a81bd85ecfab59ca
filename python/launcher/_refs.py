"""References to objects, and the stream of them that a generator task gives."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, AsyncIterator, Deque, Generator, Generic, Iterator, List, Optional, TypeVar

if TYPE_CHECKING:
    import concurrent.futures

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

PUT_INDEX = 0xFFFFF
SHARED = 2


class _Found(threading.local):
    """The references that the pickling in work has met, and those that the loading of a
    function has made."""

    refs: Optional[List[Any]] = None
    loaded: Optional[List[Any]] = None


found = _Found()


def with_index(id: bytes, index: int) -> bytes:
    """The id of another object of the same task; index 0 is the task."""
    low = int.from_bytes(id[8:], "little") & ~PUT_INDEX | index
    return id[:8] + low.to_bytes(8, "little")


class ObjectRef(Generic[T_co]):
    """A reference to an object of the cluster: a result to come, or a value that was put.

    The object lives at least as long as a reference to it does, wherever that is. It can
    be awaited in asyncio, and passed to tasks.
    """

    __slots__ = ("_id", "_home", "__weakref__")

    _id: bytes
    _home: Any

    def __init__(self, id: bytes, home: Any) -> None:
        self._id = id
        self._home = home

    def __del__(self) -> None:
        # It can run at any point of any thread: nothing here may wait.
        home = self._home
        home.gone.append(self._id)
        known = home.values.get(self._id)
        if known is None or known[0] == SHARED:  # it may be large
            home.nudge()

    def hex(self) -> str:
        """The id of the object."""
        return self._id.hex()

    def binary(self) -> bytes:
        """The id of the object, 16 bytes."""
        return self._id

    def task_id(self) -> str:
        """The id of the task that makes it; of a put object, its own."""
        if int.from_bytes(self._id[8:], "little") & PUT_INDEX == PUT_INDEX:
            return self._id.hex()
        return with_index(self._id, 0).hex()

    def job_id(self) -> str:
        """The job of the program that has this reference."""
        return str(self._home.job)

    def is_nil(self) -> bool:
        """Whether it refers to nothing; it never does."""
        return False

    def future(self) -> "concurrent.futures.Future[T_co]":
        """A Future of the value. It takes a thread that reads while Futures are open."""
        made: "concurrent.futures.Future[T_co]" = self._home.future(self)
        return made

    def as_future(self) -> Any:
        """An asyncio Future of the value, on the running loop."""
        return self._home.aio.future(self)

    def __await__(self) -> Generator[Any, None, T_co]:
        return self._home.aio.future(self).__await__()  # type: ignore[no-any-return]

    def __hash__(self) -> int:
        return hash(self._id)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectRef) and other._id == self._id

    def __repr__(self) -> str:
        return f"ObjectRef({self._id.hex()})"

    def __reduce__(self) -> Any:
        refs = found.refs
        if refs is None:
            raise TypeError("an ObjectRef can be pickled only inside what launcher passes on: as an argument, in a value that is put, or in a result")
        refs.append(self)
        return (load_ref, (self._id,))

    def __copy__(self) -> "ObjectRef[T_co]":
        return self

    def __deepcopy__(self, memo: Any) -> "ObjectRef[T_co]":
        return self


def load_ref(id: bytes) -> "ObjectRef[Any]":
    """Make a reference of an id that was found inside a value."""
    from . import _client

    ref: ObjectRef[Any] = _client.connected().hold(id)
    if found.loaded is not None:
        found.loaded.append(ref)
    return ref


class ObjectRefGenerator(Generic[T_co]):
    """The results of a task that yields, in order, each as soon as it is there.

    next() waits for the next result and gives its reference; the values are had by get.
    """

    def __init__(self, task: bytes, home: Any, ahead: int = 8) -> None:
        self._task = task
        self._most = ahead  # results that are asked for before they are taken
        self._home = home
        self._low = int.from_bytes(task[8:], "little")
        self._next = 0
        self._over = False
        self._kept = False
        self._ahead: Deque[ObjectRef[T_co]] = home.queue()
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[ObjectRef[T_co]]:
        return self

    def __aiter__(self) -> AsyncIterator[ObjectRef[T_co]]:
        return self

    def __next__(self) -> ObjectRef[T_co]:
        ref = self.next_ready()
        if ref is None:
            raise StopIteration
        return ref

    def next_ready(self, timeout: Optional[float] = None) -> Optional[ObjectRef[T_co]]:
        """The next reference; None at the end. Raises GetTimeoutError after timeout seconds."""
        with self._lock:
            ref = self._look()
            if ref is None:
                return None
            self._home.settle(ref, timeout)
            return self._take(ref)

    def peek(self) -> Optional[ObjectRef[T_co]]:
        """What next will wait for, which may be the end; None when there is nothing more."""
        with self._lock:
            return self._look()

    async def __anext__(self) -> ObjectRef[T_co]:
        with self._lock:
            ref = self._look()
        if ref is None:
            raise StopAsyncIteration
        await self._home.aio.ready(ref)
        with self._lock:
            taken = self._take(ref)
        if taken is None:
            raise StopAsyncIteration
        return taken

    def _look(self) -> Optional[ObjectRef[T_co]]:
        """The next item, asked for with those after it."""
        if self._over:
            return None
        while len(self._ahead) < self._most:
            low = self._low + self._next + len(self._ahead) + 1
            self._ahead.append(self._home.item(self._task[:8] + low.to_bytes(8, "little")))
        self._home.want(self._ahead)
        return self._ahead[0]

    def _take(self, ref: ObjectRef[T_co]) -> Optional[ObjectRef[T_co]]:
        """What the item that is there means for the stream."""
        if self._over or not self._ahead or self._ahead[0] is not ref:
            return None
        kind = self._home.kind(ref)
        if kind == 4:
            self._close()
            return None
        self._ahead.popleft()
        self._next += 1
        if kind == 3:
            self._close()
        return ref

    def _close(self) -> None:
        self._over = True
        self._ahead.clear()

    def completed(self) -> ObjectRef[Any]:
        """A reference that is there, and None, when the task has ended, well or not."""
        self._kept = True  # the agent has to answer for it after the last item
        last = self._low + PUT_INDEX - 1  # of an item that no stream ever has
        return self._home.item(self._task[:8] + last.to_bytes(8, "little"))  # type: ignore[no-any-return]

    def is_finished(self) -> bool:
        """Whether there is nothing more to come."""
        return self._over

    def task_id(self) -> str:
        """The id of the task."""
        return self._task.hex()

    def __repr__(self) -> str:
        return f"ObjectRefGenerator({self._task.hex()})"

    def __reduce__(self) -> Any:
        raise TypeError("an ObjectRefGenerator cannot be passed on: pass the references that it gives")

    def __del__(self) -> None:
        if not (self._over and self._kept):
            self._home.left.append((self._task, self._next))
            self._home.nudge()  # its task may hold a core
