"""Futures of objects: asyncio's, without a thread, and concurrent ones, with one."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from typing import Any, Dict, Optional

from ._refs import ObjectRef


class Asyncio:
    """Lets event loops read the connection while they wait for objects."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.open: Dict[asyncio.AbstractEventLoop, int] = {}  # waiting, by loop

    def future(self, ref: ObjectRef[Any]) -> "asyncio.Future[Any]":
        """A Future of the value."""
        return self._future(ref, True)

    async def ready(self, ref: ObjectRef[Any]) -> None:
        """Wait until the object is there, or has failed."""
        await self._future(ref, False)

    def _future(self, ref: ObjectRef[Any], values: bool) -> "asyncio.Future[Any]":
        loop = asyncio.get_running_loop()
        made: "asyncio.Future[Any]" = loop.create_future()
        self.enter(loop)

        def settle() -> None:
            self.leave(loop)
            if made.done():
                return
            try:
                made.set_result(self.client.get(ref, None) if values else None)
            except BaseException as e:
                made.set_exception(e)

        def there() -> None:
            try:
                loop.call_soon_threadsafe(settle)
            except RuntimeError:  # the loop is closed
                pass

        try:
            self.client.watch(ref._id, there)
        except BaseException:
            self.leave(loop)
            raise
        return made

    def enter(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have a loop read the connection."""
        n = self.open.get(loop, 0)
        self.open[loop] = n + 1
        if n == 0:
            loop.add_reader(self.client.sock.fileno(), self._readable, loop, self.client.sock)

    def leave(self, loop: asyncio.AbstractEventLoop) -> None:
        """The counterpart of enter."""
        n = self.open.get(loop, 0) - 1
        if n > 0:
            self.open[loop] = n
        else:
            self.open.pop(loop, None)
            fd = self.client.sock.fileno()
            if fd >= 0:
                loop.remove_reader(fd)

    def _readable(self, loop: asyncio.AbstractEventLoop, sock: Any) -> None:
        client = self.client
        fd = sock.fileno()
        with client.lock:
            client.poll()
        if client.sock is not sock and loop in self.open:  # it was made anew
            if fd >= 0:
                loop.remove_reader(fd)
            loop.add_reader(client.sock.fileno(), self._readable, loop, client.sock)


class Futures:
    """A thread that reads while concurrent Futures are open; there is none before."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.open = 0
        self.thread: Optional[threading.Thread] = None

    def future(self, ref: ObjectRef[Any]) -> "concurrent.futures.Future[Any]":
        """A Future of the value."""
        made: "concurrent.futures.Future[Any]" = concurrent.futures.Future()

        def there() -> None:
            with self.client.lock:
                self.open -= 1
            if not made.set_running_or_notify_cancel():
                return
            try:
                made.set_result(self.client.get(ref, None))
            except BaseException as e:
                made.set_exception(e)

        with self.client.lock:
            self.open += 1
            if self.thread is None:
                self.thread = threading.Thread(target=self._read, name="launcher-futures", daemon=True)
                self.thread.start()
        self.client.watch(ref._id, there)
        return made

    def _read(self) -> None:
        client = self.client
        with client.lock:
            try:
                client.wait_for(lambda: self.open == 0, None)
            except Exception as e:
                client.printer.lines.append((2, f"launcher: {e}".encode()))
            self.thread = None
