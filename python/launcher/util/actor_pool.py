"""A fixed number of actors that share out work."""

from __future__ import annotations

from collections import deque
from typing import Any, Callable, Deque, Dict, Generic, Iterable, Iterator, List, Optional, Tuple, TypeVar

import launcher

V = TypeVar("V")


class ActorPool(Generic[V]):
    """Gives work to whichever of some actors is free.

        pool = ActorPool([Worker.remote() for _ in range(4)])
        print(list(pool.map(lambda actor, x: actor.double.remote(x), range(100))))

    A function that is given to it takes an actor and a value, and gives a reference.
    """

    def __init__(self, actors: Iterable[Any]) -> None:
        self._idle: List[Any] = list(actors)
        self._waiting: Deque[Tuple[int, Callable[[Any, V], Any], V]] = deque()
        self._running: Dict[Any, Tuple[int, Any]] = {}  # by reference: number and actor
        self._by_number: Dict[int, Any] = {}
        self._given = 0  # numbers so far
        self._next = 0  # the number that get_next gives next
        self._unordered = False

    # All at once.

    def map(self, fn: Callable[[Any, V], Any], values: Iterable[V]) -> Iterator[Any]:
        """Apply fn to each value; the results in order, as they are asked for.

        Results that nobody took before are dropped.
        """
        self._drop()
        for v in values:
            self.submit(fn, v)
        return self._results(self.get_next)

    def map_unordered(self, fn: Callable[[Any, V], Any], values: Iterable[V]) -> Iterator[Any]:
        """Apply fn to each value; the results as they come."""
        self._drop()
        for v in values:
            self.submit(fn, v)
        return self._results(self.get_next_unordered)

    def _drop(self) -> None:
        while self.has_next():
            self.get_next_unordered()

    def _results(self, following: Callable[[], Any]) -> Iterator[Any]:
        while self.has_next():
            yield following()

    # One by one.

    def submit(self, fn: Callable[[Any, V], Any], value: V) -> None:
        """Have fn(actor, value) called on the next actor that is free."""
        self._waiting.append((self._given, fn, value))
        self._given += 1
        self._start()

    def _start(self) -> None:
        while self._idle and self._waiting:
            number, fn, value = self._waiting.popleft()
            actor = self._idle.pop()
            ref = fn(actor, value)
            self._running[ref] = (number, actor)
            self._by_number[number] = ref

    def has_next(self) -> bool:
        """Whether there is a result that was not taken yet."""
        return bool(self._running or self._waiting)

    def get_next(self, timeout: Optional[float] = None, ignore_if_timedout: bool = False) -> Any:
        """The next result in the order of submit.

        Raises StopIteration when there is none, TimeoutError after timeout seconds: the
        result is still the next one, or, with ignore_if_timedout, is dropped.
        """
        if not self.has_next():
            raise StopIteration("there is no result to come")
        if self._unordered:
            raise ValueError("get_next cannot be used after get_next_unordered while results of before are open")
        ref = self._by_number[self._next]
        there, _ = launcher.wait([ref], timeout=timeout)
        if not there and not ignore_if_timedout:
            raise TimeoutError(f"the next result was not there within {timeout} s")
        self._next += 1
        return self._take(ref, bool(there))

    def get_next_unordered(self, timeout: Optional[float] = None, ignore_if_timedout: bool = False) -> Any:
        """The next result that is there, whichever it is; raises as get_next does."""
        if not self.has_next():
            raise StopIteration("there is no result to come")
        there, _ = launcher.wait(list(self._running), num_returns=1, timeout=timeout)
        if not there:
            if not ignore_if_timedout:
                raise TimeoutError(f"no result was there within {timeout} s")
            there = [next(iter(self._running))]
            number = self._running[there[0]][0]
            self._passed(number)
            return self._take(there[0], False)
        self._passed(self._running[there[0]][0])
        return self._take(there[0], True)

    def _passed(self, number: int) -> None:
        """A result was taken out of order: get_next goes on once all are."""
        self._unordered = number != self._next or self._unordered
        self._next = max(self._next, number + 1)

    def _take(self, ref: Any, there: bool) -> Any:
        number, actor = self._running.pop(ref)
        del self._by_number[number]
        self._back(actor)
        if not self.has_next():
            self._unordered, self._next = False, self._given
        if not there:
            raise TimeoutError("the next result was not there in time, and is dropped")
        return launcher.get(ref)

    def _back(self, actor: Any) -> None:
        self._idle.append(actor)
        self._start()

    # The actors.

    def has_free(self) -> bool:
        """Whether an actor has nothing to do."""
        return bool(self._idle) and not self._waiting

    def pop_idle(self) -> Optional[Any]:
        """Take an actor that has nothing to do out of the pool; None when there is none."""
        return self._idle.pop() if self.has_free() else None

    def push(self, actor: Any) -> None:
        """Add an actor."""
        if actor in self._idle or any(actor is a for _, a in self._running.values()):
            raise ValueError("the actor is in the pool already")
        self._back(actor)


__all__ = ["ActorPool"]
