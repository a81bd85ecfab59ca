"""A queue that tasks, actors and drivers share; an actor holds it."""

from __future__ import annotations

import asyncio
import queue
from typing import Any, Dict, Iterable, List, Optional

import launcher

_core: Any = launcher


class Empty(queue.Empty):
    """There is nothing in the queue."""


class Full(queue.Full):
    """There is no room in the queue."""


class Queue:
    """A first-in, first-out queue; a copy that is passed on is the same queue.

    maxsize: 0 is without bound. actor_options: of the actor that holds it.
    """

    def __init__(self, maxsize: int = 0, actor_options: Optional[Dict[str, Any]] = None) -> None:
        self.maxsize = maxsize
        options = {"max_concurrency": 1000, **(actor_options or {})}
        self.actor: Any = _core.remote(_Held).options(**options).remote(maxsize)

    def __len__(self) -> int:
        return self.size()

    def size(self) -> int:
        """How many items there are now."""
        return int(_core.get(self.actor.qsize.remote()))

    def qsize(self) -> int:
        """How many items there are now."""
        return self.size()

    def empty(self) -> bool:
        """Whether there is no item now."""
        return bool(_core.get(self.actor.empty.remote()))

    def full(self) -> bool:
        """Whether there is no room now."""
        return bool(_core.get(self.actor.full.remote()))

    def put(self, item: Any, block: bool = True, timeout: Optional[float] = None) -> None:
        """Add an item; waits for room, at most timeout seconds, then raises Full."""
        if not block:
            timeout = 0
        _core.get(self.actor.put.remote(item, _checked(timeout)))

    async def put_async(self, item: Any, block: bool = True, timeout: Optional[float] = None) -> None:
        """put, for asyncio."""
        if not block:
            timeout = 0
        await self.actor.put.remote(item, _checked(timeout))

    def get(self, block: bool = True, timeout: Optional[float] = None) -> Any:
        """Take the next item; waits for one, at most timeout seconds, then raises Empty."""
        if not block:
            timeout = 0
        return _core.get(self.actor.get.remote(_checked(timeout)))

    async def get_async(self, block: bool = True, timeout: Optional[float] = None) -> Any:
        """get, for asyncio."""
        if not block:
            timeout = 0
        return await self.actor.get.remote(_checked(timeout))

    def put_nowait(self, item: Any) -> None:
        """Add an item, or raise Full at once."""
        self.put(item, block=False)

    def put_nowait_batch(self, items: Iterable[Any]) -> None:
        """Add all items, or none and raise Full at once."""
        if not isinstance(items, Iterable):
            raise TypeError("put_nowait_batch takes something to iterate over")
        _core.get(self.actor.put_batch.remote(list(items)))

    def get_nowait(self) -> Any:
        """Take the next item, or raise Empty at once."""
        return self.get(block=False)

    def get_nowait_batch(self, num_items: int) -> List[Any]:
        """Take so many items, or none and raise Empty at once."""
        if not isinstance(num_items, int):
            raise TypeError("get_nowait_batch takes the number of items")
        if num_items < 0:
            raise ValueError(f"num_items is {num_items}; it must be 0 at least")
        return list(_core.get(self.actor.get_batch.remote(num_items)))

    def shutdown(self, force: bool = False, grace_period_s: int = 5) -> None:
        """End the actor that holds the queue; without force what was called before is
        waited for, grace_period_s seconds at most."""
        if self.actor is None:
            return
        if not force:
            _core.wait([self.actor.qsize.remote()], timeout=grace_period_s)
        _core.kill(self.actor, no_restart=True)
        self.actor = None


def _checked(timeout: Optional[float]) -> Optional[float]:
    if timeout is not None and timeout < 0:
        raise ValueError("'timeout' must be a non-negative number")
    return timeout


class _Held:
    """The actor: its methods run on one event loop."""

    def __init__(self, maxsize: int) -> None:
        self.maxsize = maxsize
        self.queue: "asyncio.Queue[Any]" = asyncio.Queue(maxsize)

    async def qsize(self) -> int:
        return self.queue.qsize()

    async def empty(self) -> bool:
        return self.queue.empty()

    async def full(self) -> bool:
        return self.queue.full()

    async def put(self, item: Any, timeout: Optional[float]) -> None:
        try:
            if timeout == 0:
                self.queue.put_nowait(item)
            else:
                await asyncio.wait_for(self.queue.put(item), timeout)
        except (asyncio.QueueFull, asyncio.TimeoutError):
            raise Full from None

    async def get(self, timeout: Optional[float]) -> Any:
        try:
            if timeout == 0:
                return self.queue.get_nowait()
            return await asyncio.wait_for(self.queue.get(), timeout)
        except (asyncio.QueueEmpty, asyncio.TimeoutError):
            raise Empty from None

    async def put_batch(self, items: List[Any]) -> None:
        if self.maxsize > 0 and self.queue.qsize() + len(items) > self.maxsize:
            raise Full(f"{len(items)} items cannot be added to {self.queue.qsize()}: maxsize is {self.maxsize}")
        for item in items:
            self.queue.put_nowait(item)

    async def get_batch(self, num_items: int) -> List[Any]:
        if num_items > self.queue.qsize():
            raise Empty(f"{num_items} items cannot be taken from {self.queue.qsize()}")
        return [self.queue.get_nowait() for _ in range(num_items)]


__all__ = ["Empty", "Full", "Queue"]
