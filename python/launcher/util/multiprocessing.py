"""multiprocessing.Pool over the cluster: its processes are actors."""

from __future__ import annotations

import collections
import functools
import itertools
import queue
import threading
import time
from multiprocessing import JoinableQueue, TimeoutError
from typing import Any, Callable, Deque, Dict, Iterable, Iterator, List, Optional, Tuple

import launcher

_core: Any = launcher

_AHEAD = 2  # batches that a process has, so that it need not wait for the next


class _Process:
    """The actor that a process of the pool is."""

    def __init__(self, initializer: Optional[Callable[..., Any]], initargs: Tuple[Any, ...]) -> None:
        if initializer is not None:
            initializer(*initargs)

    def run(self, function: Callable[..., Any], calls: List[Tuple[Tuple[Any, ...], Dict[str, Any]]]) -> List[Tuple[bool, Any]]:
        """Make some calls: for each whether it went well, and its value or what it raised."""
        out: List[Tuple[bool, Any]] = []
        for args, kwargs in calls:
            try:
                out.append((True, function(*args, **kwargs)))
            except Exception as e:
                out.append((False, e))
        return out


class _Slot:
    """A place for a process, and what it has to do."""

    def __init__(self) -> None:
        self.actor: Any = None
        self.given = 0  # batches to this actor
        self.open = 0  # of them not done


class _Batch:
    """Calls that travel together, and where their results go."""

    def __init__(self, function: Any, calls: Any, done: Callable[[List[Tuple[bool, Any]]], None]) -> None:
        self.function, self.calls, self.done = function, calls, done


class AsyncResult:
    """The result to come of an ..._async method."""

    def __init__(self, batches: int, single: bool, callback: Optional[Callable[[Any], Any]], error_callback: Optional[Callable[[BaseException], Any]]) -> None:
        self._parts: Dict[int, List[Tuple[bool, Any]]] = {}
        self._left, self._single = batches, single
        self._callback, self._error_callback = callback, error_callback
        self._event = threading.Event()
        self._value: Any = None
        self._error: Optional[BaseException] = None
        if batches == 0:
            self._finish()

    def _part(self, number: int, outcome: List[Tuple[bool, Any]]) -> None:
        self._parts[number] = outcome
        if len(self._parts) == self._left:
            self._finish()

    def _finish(self) -> None:
        every = [x for n in sorted(self._parts) for x in self._parts.pop(n)]
        failed = [v for ok, v in every if not ok]
        if failed:
            self._error = failed[0]
        elif self._single:
            self._value = every[0][1]
        else:
            self._value = [v for _, v in every]
        try:
            if self._error is not None:
                if self._error_callback is not None:
                    self._error_callback(self._error)
            elif self._callback is not None:
                self._callback(self._value)
        finally:
            self._event.set()

    def wait(self, timeout: Optional[float] = None) -> None:
        """Wait until it is there, timeout seconds at most."""
        self._event.wait(timeout)

    def get(self, timeout: Optional[float] = None) -> Any:
        """The result; raises what a call raised, or TimeoutError."""
        if not self._event.wait(timeout):
            raise TimeoutError
        if self._error is not None:
            raise self._error
        return self._value

    def ready(self) -> bool:
        """Whether it is there."""
        return self._event.is_set()

    def successful(self) -> bool:
        """Whether no call raised; ValueError when it is not there yet."""
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        return self._error is None


class IMapIterator:
    """The results of imap or imap_unordered. Work is given out as results are taken."""

    def __init__(self, pool: "Pool", function: Any, items: Iterable[Any], chunksize: int, ordered: bool) -> None:
        self._pool, self._function, self._ordered = pool, function, ordered
        self._chunks = _chunks(((item,) for item in items), chunksize)
        self._window = pool._size * _AHEAD + 1
        self._there: Deque[Tuple[bool, Any]] = collections.deque()
        self._early: Dict[int, List[Tuple[bool, Any]]] = {}
        self._changed = threading.Condition()
        self._given = self._got = self._passed = 0
        self._over = False
        self._error: Optional[BaseException] = None
        self._fill()

    def _fill(self) -> None:
        while not self._over and self._given - self._passed < self._window:
            try:
                chunk = next(self._chunks, None)
            except Exception as e:  # what the caller iterates over failed: results of before come first
                self._over, self._error = True, e
                return
            if chunk is None:
                self._over = True
                return
            number, self._given = self._given, self._given + 1
            self._pool._give(_Batch(self._function, chunk, functools.partial(self._part, number)))

    def _part(self, number: int, outcome: List[Tuple[bool, Any]]) -> None:
        with self._changed:
            self._got += 1
            if self._ordered:
                self._early[number] = outcome
                while self._passed in self._early:
                    self._there.extend(self._early.pop(self._passed))
                    self._passed += 1
            else:
                self._there.extend(outcome)
                self._passed += 1
            self._changed.notify_all()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self.next()

    def next(self, timeout: Optional[float] = None) -> Any:
        """The next result; TimeoutError when it is not there within timeout seconds."""
        self._fill()
        end = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while not self._there:
                if self._over and self._passed == self._given:
                    if self._error is not None:
                        raise self._error
                    raise StopIteration
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError
                self._changed.wait(left)
            ok, value = self._there.popleft()
        self._fill()
        if not ok:
            raise value
        return value


def _chunks(calls: Iterable[Tuple[Any, ...]], size: int) -> Iterator[List[Tuple[Tuple[Any, ...], Dict[str, Any]]]]:
    if size < 1:
        raise ValueError(f"chunksize must be 1 or more, not {size}")
    it = iter(calls)
    return iter(lambda: [(args, {}) for args in itertools.islice(it, size)], [])


class Pool:
    """A pool of processes on the cluster, with the methods of multiprocessing.Pool.

    processes: how many; default: the cluster's cores. ray_remote_args: options of the
    actors. One thread of this process gives work out and calls callbacks.
    """

    def __init__(
        self,
        processes: Optional[int] = None,
        initializer: Optional[Callable[..., Any]] = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: Optional[int] = None,
        context: Any = None,
        ray_address: Optional[str] = None,
        ray_remote_args: Optional[Dict[str, Any]] = None,
    ) -> None:
        if not _core.is_initialized():
            _core.init(ray_address) if ray_address else _core.init()
        if processes is None:
            processes = max(int(_core.cluster_resources().get("CPU", 1)), 1)
        if processes < 1:
            raise ValueError("Number of processes must be at least 1")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if maxtasksperchild is not None and (not isinstance(maxtasksperchild, int) or maxtasksperchild < 1):
            raise ValueError("maxtasksperchild must be a positive int or None")
        self._size, self._most = processes, maxtasksperchild
        self._start = (initializer, tuple(initargs))
        self._class = _core.remote(**ray_remote_args)(_Process) if ray_remote_args else _core.remote(_Process)
        self._events: "queue.SimpleQueue[Any]" = queue.SimpleQueue()
        self._state = "RUN"
        self._slots = [_Slot() for _ in range(processes)]
        for slot in self._slots:
            self._begin(slot)
        self._thread = threading.Thread(target=self._serve, name="launcher-pool", daemon=True)
        self._thread.start()

    # The thread: it alone knows of slots and batches.

    def _begin(self, slot: _Slot) -> None:
        slot.actor, slot.given = self._class.remote(*self._start), 0

    def _serve(self) -> None:
        waiting: Deque[_Batch] = collections.deque()
        open_ = 0
        closing = False
        while not (closing and not open_ and not waiting):
            event = self._events.get()
            if event is None:
                closing = True
            elif event == "terminate":
                break
            elif isinstance(event, _Batch):
                waiting.append(event)
            else:
                slot, batch, future = event
                open_ -= 1
                slot.open -= 1
                self._deliver(batch, future)
                if future.exception() is not None and not slot.open:  # a process that died is replaced
                    self._end(slot)
                    self._begin(slot)
            open_ += self._hand_out(waiting)
        for slot in self._slots:
            self._end(slot)
        while waiting:
            self._tell(waiting.popleft(), [(False, RuntimeError("the pool was terminated"))])

    def _hand_out(self, waiting: Deque[_Batch]) -> int:
        """Give batches to processes that have little; how many."""
        n = 0
        for depth in range(1, _AHEAD + 1):
            for slot in self._slots:
                if not waiting:
                    return n
                if slot.open >= depth:
                    continue
                if self._most is not None and slot.given >= self._most:
                    if slot.open:
                        continue
                    self._end(slot)
                    self._begin(slot)
                batch = waiting.popleft()
                try:
                    ref = slot.actor.run.remote(batch.function, batch.calls)
                    future = ref.future()
                except Exception as e:  # cannot be passed on
                    self._tell(batch, [(False, e)])
                    continue
                slot.open += 1
                slot.given += 1
                n += 1
                future.add_done_callback(lambda f, slot=slot, batch=batch: self._events.put((slot, batch, f)))
        return n

    def _deliver(self, batch: _Batch, future: Any) -> None:
        error = future.exception()
        self._tell(batch, [(False, error)] * len(batch.calls) if error is not None else future.result())

    def _tell(self, batch: _Batch, outcome: List[Tuple[bool, Any]]) -> None:
        try:
            batch.done(outcome)
        except Exception:  # a callback of the program's: the pool goes on
            import traceback

            traceback.print_exc()

    def _end(self, slot: _Slot) -> None:
        if slot.actor is not None:
            _core.kill(slot.actor)
            slot.actor = None

    def _give(self, batch: _Batch) -> None:
        if self._state != "RUN":
            raise ValueError("Pool not running")
        self._events.put(batch)

    # Calls.

    def apply(self, func: Callable[..., Any], args: Iterable[Any] = (), kwargs: Optional[Dict[str, Any]] = None) -> Any:
        """Call func in a process of the pool; its value."""
        return self.apply_async(func, args, kwargs).get()

    def apply_async(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] = (),
        kwargs: Optional[Dict[str, Any]] = None,
        callback: Optional[Callable[[Any], Any]] = None,
        error_callback: Optional[Callable[[BaseException], Any]] = None,
    ) -> AsyncResult:
        """Call func in a process of the pool; does not wait."""
        result = AsyncResult(1, True, callback, error_callback)
        self._give(_Batch(func, [(tuple(args), dict(kwargs or {}))], functools.partial(result._part, 0)))
        return result

    def _map(self, func: Any, calls: List[Tuple[Any, ...]], chunksize: Optional[int], callback: Any, error_callback: Any) -> AsyncResult:
        if chunksize is None:
            chunksize = max(-(-len(calls) // (self._size * 4)), 1)
        chunks = list(_chunks(calls, chunksize))
        if self._state != "RUN":
            raise ValueError("Pool not running")
        result = AsyncResult(len(chunks), False, callback, error_callback)
        for i, chunk in enumerate(chunks):
            self._give(_Batch(func, chunk, functools.partial(result._part, i)))
        return result

    def map(self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: Optional[int] = None) -> List[Any]:
        """Call func with each item; the values in order."""
        return list(self.map_async(func, iterable, chunksize).get())

    def map_async(self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: Optional[int] = None, callback: Any = None, error_callback: Any = None) -> AsyncResult:
        """map that does not wait."""
        return self._map(func, [(item,) for item in iterable], chunksize, callback, error_callback)

    def starmap(self, func: Callable[..., Any], iterable: Iterable[Iterable[Any]], chunksize: Optional[int] = None) -> List[Any]:
        """Call func with the arguments that each item has; the values in order."""
        return list(self.starmap_async(func, iterable, chunksize).get())

    def starmap_async(self, func: Callable[..., Any], iterable: Iterable[Iterable[Any]], chunksize: Optional[int] = None, callback: Any = None, error_callback: Any = None) -> AsyncResult:
        """starmap that does not wait."""
        return self._map(func, [tuple(item) for item in iterable], chunksize, callback, error_callback)

    def imap(self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int = 1) -> IMapIterator:
        """Call func with each item; an iterator over the values, in order."""
        return self._imap(func, iterable, chunksize, True)

    def imap_unordered(self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int = 1) -> IMapIterator:
        """Call func with each item; an iterator over the values as they come."""
        return self._imap(func, iterable, chunksize, False)

    def _imap(self, func: Any, iterable: Iterable[Any], chunksize: int, ordered: bool) -> IMapIterator:
        if self._state != "RUN":
            raise ValueError("Pool not running")
        return IMapIterator(self, func, iterable, chunksize, ordered)

    # The end.

    def close(self) -> None:
        """Take no more work; the processes end when what was given is done."""
        if self._state == "RUN":
            self._state = "CLOSE"
            self._events.put(None)

    def terminate(self) -> None:
        """End the processes now."""
        if self._state != "TERMINATE":
            self._state = "TERMINATE"
            self._events.put("terminate")

    def join(self) -> None:
        """Wait for the end, after close or terminate."""
        if self._state == "RUN":
            raise ValueError("Pool is still running")
        self._thread.join()

    def __enter__(self) -> "Pool":
        if self._state != "RUN":
            raise ValueError("Pool not running")
        return self

    def __exit__(self, *exc: Any) -> None:
        self.terminate()

    def __reduce__(self) -> Any:
        raise NotImplementedError("pool objects cannot be passed between processes or pickled")


__all__ = ["JoinableQueue", "Pool", "TimeoutError"]
