"""An actor's process: what a worker is from the creation of an actor on (docs/actors.md)."""

from __future__ import annotations

import contextvars
import inspect
import os
import queue
import sys
import threading
import time
from collections import deque
from typing import Any, Deque, Dict, Optional, Set, Tuple, Type

from . import _frames as f
from . import _serial
from ._http import Error
from ._process import finish

current: "contextvars.ContextVar[Any]" = contextvars.ContextVar("launcher_call", default=None)

_CLEANUP = "__ray_shutdown__"
_LOOK_AFTER = 1_000_000  # ns


class Leave(SystemExit):
    """Raised by exit_actor."""


class Method:
    """A method as calls name it; what Worker._run takes for a function."""

    __slots__ = ("name", "call", "group", "waits", "yields")

    def __init__(self, name: str, call: Any, group: str) -> None:
        self.name, self.call, self.group = name, call, group
        self.waits = inspect.iscoroutinefunction(call)
        self.yields = inspect.isasyncgenfunction(call)

    def load(self) -> Any:
        """The bound method."""
        if isinstance(self.call, Exception):
            raise self.call
        return self.call


class Group:
    """A concurrency group: its calls that wait, and how many run."""

    __slots__ = ("limit", "running", "waiting", "todo", "threads")

    def __init__(self, limit: int) -> None:
        self.limit, self.running, self.threads = limit, 0, 0
        self.waiting: Deque[Any] = deque()
        self.todo: "queue.SimpleQueue[Any]" = queue.SimpleQueue()


class Actor:
    """The instance, and the loop that runs calls of it."""

    def __init__(self, worker: Any, order: Any) -> None:
        self.worker, self.client, self.order = worker, worker.client, order
        options = order.describe()["actor"]
        self.concurrency = max(1, int(options.get("concurrency") or 1))
        self.groups: Dict[str, Group] = {str(k): Group(int(v)) for k, v in (options.get("groups") or {}).items()}
        self.single = self.concurrency == 1 and not self.groups
        self.instance: Any = None
        self.is_async = False
        self.methods: Dict[bytes, Method] = {}
        self.held: Set[Tuple[bytes, int]] = {(order.task, order.attempt)}  # taken from the queue and not ended
        self.live: Dict[bytes, Any] = {}  # calls that run, or wait for a thread
        self.tasks: Dict[bytes, Any] = {}  # those that are async: their tasks
        self.loop: Any = None
        self.asyncio: Any = None  # the module, for those that are async
        self.thread = threading.get_ident()
        self.due = self.flush_due = False
        self.now = 0  # when the last call ended

    @property
    def blocks(self) -> bool:
        """Whether the actor does nothing else while a call of it waits."""
        return self.single and not self.is_async

    def construct(self, function: Any) -> Optional[Tuple[int, int, bytes, Any]]:
        """Make the instance; the end of the creation if that fails."""
        o, worker = self.order, self.worker
        name = function.name if function is not None else "?"
        current.set(o)
        try:
            if function is None:
                raise Error("corrupt", "an actor whose class the agent did not tell")
            made = function.load()
            args, kwargs, _, _ = worker._arguments(o)
            self.is_async = is_async(made)
            self.groups[""] = Group(self.concurrency)
            if self.is_async:
                import asyncio

                self.asyncio = asyncio
                self.loop = asyncio.new_event_loop()
                asyncio.set_event_loop(self.loop)
                if sys.version_info >= (3, 12):
                    self.loop.set_task_factory(asyncio.eager_task_factory)
            o.inside = True
            self.instance = made(*args, **kwargs)
        except worker.passed as e:
            return f.FAIL, 1, e.value, None
        except SystemExit as e:
            if e.code:
                raise
            return f.OK, 0, b"", None
        except BaseException as e:
            return worker._failed(o, e, name, None)  # type: ignore[no-any-return]
        finally:
            o.inside = False
        return None

    def method(self, o: Any) -> Method:
        """What a call is of."""
        about = o.body[56 : 56 + o.about]
        m = self.methods.get(about)
        if m is None:
            text = o.describe()
            name, group = str(text.get("method") or ""), str(text.get("group") or "")
            call = self._find(name)
            if group not in self.groups:
                call, group = ValueError(f"the actor has no concurrency group {group!r}; there are: {', '.join(sorted(g for g in self.groups if g)) or 'none'}"), ""
            m = self.methods[about] = Method(str(text.get("name") or name), call, group)
        return m

    def _find(self, name: str) -> Any:
        if name == "__ray_terminate__":
            return leave
        if name == "__ray_ready__":
            return lambda: True
        if name == "__ray_call__":
            return lambda function, *args, **kwargs: function(self.instance, *args, **kwargs)
        try:
            return getattr(self.instance, name)
        except AttributeError as e:
            return e

    # One call after the other, or several in threads.

    def serve(self) -> None:
        """Run calls until the agent says that it is enough."""
        if self.is_async:
            self._serve_async()
        elif self.blocks:
            self._serve_plain()
        else:
            self._serve_threads()

    def _serve_plain(self) -> None:
        client, worker, todo = self.client, self.worker, self.worker.queue
        looked = 0

        def come() -> bool:
            return bool(todo) or worker.ending

        while True:
            if todo:
                with client.lock:
                    if self.now - looked > _LOOK_AFTER:  # what waits may have been cancelled
                        looked = self.now
                        try:
                            client.poll()
                        except Error:
                            break
                        if not todo:
                            continue
                    o = todo.popleft()
                    self.held.add((o.task, o.attempt))
                worker.stack.append(o)
                try:
                    self._run(o, self.method(o))
                finally:
                    worker.stack.pop()
                continue
            with client.lock:
                client.flush()
                worker.flushed = time.time_ns()
                if worker.ending or client.closed:
                    break
                try:
                    client.wait_for(come, None)
                except Error:
                    break
                looked = self.now = time.time_ns()
        self._cleanup()

    def _run(self, o: Any, m: Method) -> None:
        """Run a call of an ordinary method, and write how it ended."""
        o.thread = threading.get_ident()
        self.live[o.task] = o
        token = current.set(o)
        start = time.time_ns()
        try:
            if o.cancelled:
                end = f.CANCELLED, 1, _cancelled(self.client, m), None
            else:
                end = self.worker._run(o, m)
        except SystemExit as e:
            if e.code:
                raise
            self.leave()
        finally:
            current.reset(token)
            self.live.pop(o.task, None)
        self._ended(o, start, *end)

    def _ended(self, o: Any, start: int, status: int, count: int, values: bytes, keep: Any) -> None:
        client = self.client
        self.now = now = time.time_ns()
        with client.lock:
            client.found()
            out = self.worker.put_result(o, status, count, values, start, now)
            self.held.discard((o.task, o.attempt))
            if self.loop is not None and self.thread == threading.get_ident():
                if len(out) > 32 << 10:
                    client.flush()
                elif not self.flush_due:
                    self.flush_due = True
                    self.loop.call_soon(self._flush)
            elif not self.worker.queue or not self.blocks or len(out) > 32 << 10 or now - self.worker.flushed > 1_000_000:
                client.flush()
                self.worker.flushed = now
        del keep

    def _flush(self) -> None:
        self.flush_due = False
        with self.client.lock:
            self.client.flush()

    def _serve_threads(self) -> None:
        client, worker, todo = self.client, self.worker, self.worker.queue
        while True:
            with client.lock:
                try:
                    client.wait_for(lambda: bool(todo) or worker.ending, None)
                except Error:
                    break
                if worker.ending or client.closed:
                    break
                orders = list(todo)
                todo.clear()
                for o in orders:
                    self.held.add((o.task, o.attempt))
            for o in orders:
                m = self.method(o)
                g = self.groups[m.group]
                with client.lock:
                    g.running += 1
                    start = g.running > g.threads and g.threads < g.limit
                    g.threads += start
                    self.live[o.task] = o  # until it has run, it may be cancelled
                g.todo.put((o, m))
                if start:
                    threading.Thread(target=self._thread, args=(g,), name=f"call-{m.group or 'default'}-{g.threads}", daemon=True).start()
        self._cleanup()

    def _thread(self, g: Group) -> None:
        while True:
            o, m = g.todo.get()
            try:
                self._run(o, m)
            except SystemExit as e:
                finish(e.code if isinstance(e.code, int) else 1)
            with self.client.lock:
                g.running -= 1

    # Async.

    def _serve_async(self) -> None:
        client, worker, loop = self.client, self.worker, self.loop
        client.aio.enter(loop)
        worker.arrived = self.arrived
        self.arrived()
        try:
            loop.run_forever()
        finally:
            self._cleanup()

    def arrived(self) -> None:
        """Frames have come; whoever read them says so, with the client's lock."""
        if self.due:
            return
        self.due = True
        if threading.get_ident() == self.thread:
            self.loop.call_soon(self._dispatch)
        else:
            self.loop.call_soon_threadsafe(self._dispatch)

    def _dispatch(self) -> None:
        self.due = False
        todo = self.worker.queue
        while todo:
            with self.client.lock:
                o = todo.popleft()
                self.held.add((o.task, o.attempt))
            m = self.method(o)
            g = self.groups[m.group]
            if g.running < g.limit:
                self._start(o, m, g)
            else:
                g.waiting.append((o, m))
        if self.worker.ending or self.client.closed:
            self.loop.stop()

    def _start(self, o: Any, m: Method, g: Group) -> None:
        g.running += 1
        if m.waits or m.yields:
            if o.cancelled:
                self._ended(o, time.time_ns(), f.CANCELLED, 1, _cancelled(self.client, m), None)
                self._done(g)
                return
            self.live[o.task] = o
            task = self.loop.create_task(self._run_async(o, m, g))
            if not task.done():
                self.tasks[o.task] = task
        else:
            self._run(o, m)
            self._done(g)

    def _done(self, g: Group) -> None:
        g.running -= 1
        if g.waiting and g.running < g.limit:
            self.loop.call_soon(self._next, g)

    def _next(self, g: Group) -> None:
        while g.waiting and g.running < g.limit:
            o, m = g.waiting.popleft()
            self._start(o, m, g)

    async def _run_async(self, o: Any, m: Method, g: Group) -> None:
        worker = self.worker
        current.set(o)
        start = time.time_ns()
        retry: Any = None
        try:
            args, kwargs, retry, _ = worker._arguments(o)
            if m.yields:
                await self._stream(o, m.call(*args, **kwargs))
                end = f.OK, 0, b"", None
            else:
                end = worker._results(o, await m.call(*args, **kwargs))
        except worker.passed as e:
            end = f.FAIL, 1, e.value, None
        except SystemExit as e:
            if e.code:
                finish(e.code if isinstance(e.code, int) else 1)
            self.leave()
        except self.asyncio.CancelledError as e:
            if o.cancelled:
                end = f.CANCELLED, 1, _cancelled(self.client, m), None
            else:
                end = worker._failed(o, e, m.name, retry)
        except BaseException as e:
            end = worker._failed(o, e, m.name, retry)
        self.tasks.pop(o.task, None)
        self.live.pop(o.task, None)
        self._ended(o, start, *end)
        self._done(g)

    async def _stream(self, o: Any, items: Any) -> None:
        client = self.client
        encode = _serial.encode_plain if o.flags & f.SUBMIT_NAMED else _serial.encode
        pressure = int(o.describe().get("backpressure") or 0)
        index = 0
        async for item in items:
            value = client.value(encode(item))
            with client.lock:
                self.worker.put_item(o, index, value)
            index += 1
            while pressure and index - o.taken >= pressure and not o.cancelled:
                o.wake = self.asyncio.Event()
                if index - o.taken >= pressure:
                    await o.wake.wait()

    # Ends.

    def cancel(self, task: bytes, attempt: int) -> None:
        """The agent was asked to cancel a call. The client's lock is held."""
        for o in [*self.worker.queue, *[o for g in self.groups.values() for o, _ in list(g.waiting)], *list(self.live.values())]:
            if o.task == task and o.attempt == attempt:
                o.cancelled = True
        running = self.tasks.get(task)
        if running is not None:
            self.loop.call_soon_threadsafe(running.cancel)

    def consumed(self, task: bytes, items: int) -> None:
        """A reader of a stream has taken so many. The client's lock is held."""
        o = self.live.get(task)
        if o is not None:
            o.taken = max(o.taken, items)
            if o.wake is not None:
                self.loop.call_soon_threadsafe(o.wake.set)

    def handle(self) -> Any:
        """A handle of this very actor."""
        from . import _actors

        o = self.order
        return _actors._named(self.client, [o.task, o.describe()["actor"]["meta"]])

    def leave(self) -> None:
        """End the actor by its own will; does not return."""
        client, o = self.client, self.order
        now = time.time_ns()
        self._cleanup()
        with client.lock:
            self.worker.put_result(o, f.OK, 0, b"", now, now)
            client.flush()
        finish(0)

    def _cleanup(self) -> None:
        ends = getattr(self.instance, _CLEANUP, None)
        self.instance = None
        if callable(ends):
            try:
                ends()
            except Exception as e:
                print(f"launcher: {_CLEANUP} of an actor failed: {type(e).__name__}: {e}", file=sys.stderr)


def _cancelled(client: Any, m: Method) -> bytes:
    data = _serial.error_value("cancelled", "the call was cancelled", name=m.name, node=client.node, pid=os.getpid())
    return f.VALUE.pack(f.FAILED, 1, 0, len(data)) + data


def is_async(made: Type[Any]) -> bool:
    """Whether a class makes async actors: those with async methods."""
    return any(inspect.iscoroutinefunction(m) or inspect.isasyncgenfunction(m) for _, m in inspect.getmembers(made, inspect.isfunction))


def leave(*_: Any) -> None:
    """Have the actor end by its own will."""
    raise Leave(0)


def exit_actor() -> None:
    """End the actor whose method calls it, by its own will; does not return."""
    from . import _client

    worker = _client._current.worker if _client._current is not None else None
    if worker is None or worker.actor is None and current.get() is None:
        raise TypeError("exit_actor is for methods of actors")
    leave()
