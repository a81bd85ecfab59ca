"""A worker: runs the tasks that the agent gives this process, one after the other."""

from __future__ import annotations

import ctypes
import faulthandler
import inspect
import os
import pickle
import signal
import socket
import struct
import sys
import threading
import time
from collections import deque
from typing import Any, Callable, Deque, Dict, List, Optional, Set, Tuple

from . import _frames as f
from . import _pack, _serial
from ._client import Client, made_of, use
from ._http import Error
from ._function import Function
from ._process import finish, hello
from .exceptions import RayError, TaskCancelledError

_FLUSH_AFTER = 1_000_000  # ns
_QUICK = 100_000  # ns
_LOOK_AFTER = 1_000_000  # ns
_MAKES_ACTOR = b"\xa5actor"
_IN_GROUP = b"\xa5group"
_FRAMES_PER_TASK = 200  # of Python's stack, for a task inside another


class Order:
    """A task to run."""

    __slots__ = ("task", "function", "attempt", "sequence", "returns", "flags", "deps", "about", "body", "cancelled", "thread", "taken", "inside", "info", "wake")

    def __init__(self, body: bytes) -> None:
        (self.task, self.function, self.attempt, self.sequence, self.returns, self.flags, self.deps, self.about) = f.EXEC_HEAD.unpack_from(body)
        self.body = body
        self.cancelled = False
        self.thread = 0
        self.taken = 0
        self.inside = False  # the user's code is running
        self.info: Any = None
        self.wake: Any = None

    def describe(self) -> Dict[str, Any]:
        """What the agent says of the task: name, resources, GPUs."""
        if self.info is None:
            text = self.body[56 : 56 + self.about]
            try:
                self.info = _pack.unpack(text) if text else {}
            except ValueError:
                self.info = {}
            if not isinstance(self.info, dict):
                self.info = {}
        described: Dict[str, Any] = self.info
        return described


    def strategy(self) -> Optional[List[Any]]:
        """How it was placed, if it is in a placement group."""
        if _IN_GROUP not in self.body[56 : 56 + self.about]:
            return None
        strategy: Optional[List[Any]] = self.describe().get("strategy")
        return strategy if strategy and strategy[0] == "group" else None

    def captured(self) -> Optional[List[Any]]:
        """The strategy of what it submits, if its placement group captures that."""
        s = self.strategy()
        return ["group", s[1], -1, True] if s is not None and len(s) > 3 and s[3] else None


class Worker:
    """The loop and its state. queue, functions and begun are guarded by the client's lock."""

    def __init__(self) -> None:
        self.client: Any = None
        self.queue: Deque[Order] = deque()
        self.stack: List[Order] = []
        self.functions: Dict[bytes, Function] = {}
        self.resumed: Set[Tuple[bytes, int]] = set()  # attempts that are not to be run again
        self.wary = False  # what is given may be what it handed back before the agent's restart
        self.begun, self.began = 0, False
        self.ending = False
        self.actor: Any = None  # the Actor that this worker is
        self.arrived: Optional[Callable[[], None]] = None  # to be told that frames have come
        self.passed = _Passed
        self.signalled = False  # while frames were being read
        self.words: Any = memoryview(bytearray(4096)).cast("I")
        self.flushed = 0

    def handlers(self) -> Dict[int, Callable[[memoryview, int], None]]:
        """What handles the frames that only workers get."""
        return {f.EXEC: self._on_exec, f.GIVEN_FUNC: self._on_function, f.CANCEL_TASK: self._on_cancel, f.CONSUMED: self._on_consumed, f.EXIT: self._on_exit}

    def control(self, fd: int) -> None:
        """Map the control page; takes the descriptor over."""
        import mmap

        try:
            self.words = memoryview(mmap.mmap(fd, 4096)).cast("I")
        finally:
            os.close(fd)

    def _on_exec(self, body: memoryview, flags: int) -> None:
        if self.client.void:  # was on its way when it was handed back
            return
        o = Order(bytes(body))
        if (o.task, o.attempt) in self.resumed:
            return
        if self.wary and self.client.waiting:
            self.hand_back(o.sequence)
            return
        self.queue.append(o)
        if self.arrived is not None:
            self.arrived()

    def hand_back(self, sequence: int) -> None:
        """Give back what was given with this sequence number or after it, to wait."""
        self.queue.clear()
        self.wary, self.client.due_now = False, True
        self.client.out += f.frame(f.HAND_BACK, f.U32.pack(sequence))
        self.client.void = self.client._call("sync")

    def resume(self, frames: bytes) -> None:
        """A new agent gives again, with new numbers, what has not ended to its knowledge."""
        self.queue.clear()
        self.client.void, self.wary = 0, self.actor is None  # an actor hands nothing back
        held = self.actor.held if self.actor is not None else ()
        self.resumed = {(o.task, o.attempt) for o in self.stack} | set(f.results(frames)) | set(held)

    def told(self, id: bytes, name: str, code: bytes) -> None:
        """The agent was told of a function by this worker, and so will not tell it."""
        if id not in self.functions:
            self.functions[id] = Function(name, code)

    def _on_function(self, body: memoryview, flags: int) -> None:
        id = bytes(body[:16])
        (n,) = f.U32.unpack_from(body, 16)
        if id not in self.functions:
            self.functions[id] = Function(bytes(body[20 : 20 + n]).decode("utf-8", "replace"), bytes(body[20 + n :]))

    def _on_cancel(self, body: memoryview, flags: int) -> None:
        task, (attempt,) = bytes(body[:16]), f.U32.unpack_from(body, 16)
        if self.actor is not None:
            self.actor.cancel(task, attempt)
            return
        for o in [*self.queue, *self.stack]:
            if o.task == task and o.attempt == attempt:
                o.cancelled = True
                self._interrupt(o)

    def _on_consumed(self, body: memoryview, flags: int) -> None:
        task, (items,) = bytes(body[:16]), f.U32.unpack_from(body, 16)
        if self.actor is not None:
            self.actor.consumed(task, items)
            return
        for o in self.stack:
            if o.task == task:
                o.taken = max(o.taken, items)

    def _on_exit(self, body: memoryview, flags: int) -> None:
        self.ending = True
        if self.arrived is not None:
            self.arrived()

    # Cancelling. A task is interrupted only in the user's own code: the agent sends SIGINT,
    # whose handler reads what is to be cancelled and raises there.

    def _interrupt(self, o: Order) -> None:
        """Raise in the task if another thread runs it; the main thread looks by itself."""
        main = threading.main_thread().ident
        if o.inside and o.thread == main != threading.get_ident():
            os.kill(os.getpid(), signal.SIGINT)  # read by another thread than its own
        elif o.inside and o.thread and o.thread != main:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(o.thread), ctypes.py_object(KeyboardInterrupt))

    def interrupted(self, number: int, frame: Any) -> None:
        """The handler of SIGINT."""
        client = self.client
        if client.reading:  # whoever reads sees what it is about, if it has not already
            self.signalled = True
            self.check_cancelled()
            return
        if not client.lock.acquire(blocking=False):
            # In the middle of something of the SDK's own; it is over soon.
            again = threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGINT))
            again.daemon = True
            again.start()
            return
        try:
            client.drain()
            if client.due_now:
                client.due_now = False
                client.flush(False)
        finally:
            client.lock.release()
        self.check_cancelled()

    def check_cancelled(self) -> None:
        """Raise if the task that runs here was cancelled; calls of actors run on."""
        if self.stack and self.actor is None:
            o = self.stack[-1]
            if o.cancelled and o.inside and o.thread == threading.get_ident():
                o.inside = False
                raise KeyboardInterrupt("the task was cancelled")

    # The loop.

    def serve(self) -> None:
        """Run tasks until the agent says that it is enough."""
        client = self.client
        queue = self.queue
        while True:
            if queue:
                self.run_next()
                if self.actor is not None:
                    self.actor.serve()
                    return
                continue
            with client.lock:
                if self.ending or client.closed:
                    client.flush()
                    return
                client.flush()
                self.flushed = time.time_ns()
                try:
                    client.wait_for(lambda: bool(queue) or self.ending, None)
                except Error:
                    return

    def run_next(self) -> None:
        """Take the next task of the queue and run it."""
        client = self.client
        with client.lock:
            if not self.queue:
                return
            o = self.queue.popleft()
            words = self.words
            self.begun = words[0] = o.sequence
            end = words[17]
            if end > o.sequence >= words[16] > 0:
                words[2] = o.sequence
                return
            words[1] = o.sequence
            function = self.functions.get(o.function)
            if not self.began:
                self._begin(o)
        o.thread = threading.get_ident()
        if _MAKES_ACTOR in o.body[56 : 56 + o.about] and "actor" in o.describe():
            self._become(o, function)
            return
        depth = len(self.stack)
        if depth:
            sys.setrecursionlimit(max(sys.getrecursionlimit(), 1000 + _FRAMES_PER_TASK * (depth + 1)))
        self.stack.append(o)
        outer, client.captured = client.captured, o.captured()
        start = time.time_ns()
        try:
            status, count, values, keep = self._run(o, function)
        finally:
            self.stack.pop()
            client.captured = outer
        end = time.time_ns()
        with client.lock:
            client.found()
            out = self.put_result(o, status, count, values, start, end)
            del keep
            # The result of a function that never takes long may wait for the next one's.
            quick = function is not None and function.slow < _QUICK and self.queue and self.queue[0].function == o.function
            if not quick or len(out) > 32 << 10 or end - self.flushed > _FLUSH_AFTER:
                client.flush()
                self.flushed = end
        if function is not None:
            took = end - start
            function.slow = took if took > function.slow else function.slow * 0.9 + took * 0.1

    def _become(self, o: Order, function: Optional[Function]) -> None:
        """Make an actor: this worker is nothing else from now on."""
        from ._actor_worker import Actor

        client = self.client
        self.stack.append(o)
        client.captured = o.captured()
        actor = Actor(self, o)
        start = time.time_ns()
        failed = actor.construct(function)
        with client.lock:
            if failed is None:
                self.actor = actor
                client.out += f.frame(f.UP, o.task + f.U32.pack(o.attempt))
            else:
                self.stack.pop()
                status, count, values, _ = failed
                self.put_result(o, status, count, values, start, time.time_ns())
            client.flush()

    def put_result(self, o: Order, status: int, count: int, values: bytes, start: int, end: int) -> bytearray:
        """Buffer the end of a task or call; what is buffered. The client's lock is held."""
        out: bytearray = self.client.out
        out += f.RESULT_HEAD.pack(48 + len(values), f.RESULT, 0, o.task, o.attempt, status, start, end, count)
        out += values
        return out

    def put_item(self, o: Order, index: int, value: bytes) -> None:
        """Write an item of a stream. The client's lock is held."""
        self.client.out += f.YIELD_HEAD.pack(28 + len(value), f.YIELD, 0, o.task, o.attempt, index)
        self.client.out += value
        self.client.flush()

    def current(self) -> Optional[Order]:
        """What the code that asks belongs to."""
        if self.actor is not None:
            from ._actor_worker import current

            return current.get() or self.actor.order  # type: ignore[no-any-return]
        return self.stack[-1] if self.stack else None

    def _begin(self, o: Order) -> None:
        """At the first task: all tasks of a worker have the same environment."""
        self.began = True
        about = o.describe()
        if about.get("env"):
            self.client.environment["env_vars"] = about["env"]
        if about.get("working_dir"):
            self.client.environment["working_dir"] = about["working_dir"]

    def _run(self, o: Order, function: Optional[Function]) -> Tuple[int, int, bytes, Any]:
        """Run a task: status, number of values, their bytes, and what must live until they are written."""
        client = self.client
        name = function.name if function is not None else "?"
        retry: Any = None
        try:
            if o.cancelled:
                raise KeyboardInterrupt
            if function is None:
                raise Error("corrupt", "a task whose function the agent did not tell")
            call = function.load()
            args, kwargs, retry, how = self._arguments(o)
            o.inside = True
            if o.cancelled:
                self.check_cancelled()
            result = call(*args, **kwargs)
            if o.returns == f.STREAM:
                try:
                    self._stream(o, result)
                finally:
                    o.inside = False
                    if inspect.isgenerator(result):
                        result.close()  # before the end is told, also when it waits at a yield
                return f.OK, 0, b"", None
            if how == "dynamic":
                result = [client.put(x) for x in result]
            o.inside = False
            return self._results(o, result)
        except _Passed as e:
            return f.FAIL, 1, e.value, None
        except (SystemExit, GeneratorExit):
            raise
        except BaseException as e:
            o.inside = False
            return self._failed(o, e, name, retry)
        finally:
            o.inside = False

    def _failed(self, o: Order, e: BaseException, name: str, retry: Any) -> Tuple[int, int, bytes, Any]:
        status = f.FAIL
        if isinstance(e, (KeyboardInterrupt, TaskCancelledError)) and o.cancelled:
            status, data = f.CANCELLED, _serial.error_value("cancelled", "the task was cancelled", name=name, node=self.client.node, pid=os.getpid())
        else:
            if retry is True or isinstance(retry, tuple) and isinstance(e, retry):
                status = f.RETRY
            code = "full" if type(e).__name__ == "ObjectStoreFullError" else "task"
            if code == "task":
                data = _serial.task_failed(e, self._name(o, name), self.client.node, os.getpid(), 1)
            else:
                data = _serial.error_value(code, str(e), name=name, node=self.client.node, pid=os.getpid())
        return status, 1, f.VALUE.pack(f.FAILED, 1, 0, len(data)) + data, None

    def _name(self, o: Order, name: str) -> str:
        return str(o.describe().get("name") or name)

    def _arguments(self, o: Order) -> Tuple[Any, Any, Any, Any]:
        """args, kwargs, the exceptions to retry on, how results are given."""
        body = o.body
        at = 56 + o.about
        deps: List[Tuple[bytes, int, int, Any]] = []
        for _ in range(o.deps):
            id = body[at : at + 16]
            kind, form, refs, size = f.VALUE.unpack_from(body, at + 16)
            at += 32 + 16 * refs
            data: Any = None
            if kind in (f.INLINE, f.FAILED):
                data = body[at : at + size]
                at += size
                if kind == f.FAILED:
                    raise _Passed(f.VALUE.pack(f.FAILED, form, 0, size) + data)
            deps.append((id, kind, form, data))
        self._given_apart(deps)
        payload: Any = body[at:]
        form = _serial.FORM_PYTHON
        if o.flags & f.SUBMIT_LARGE:
            form, payload = self._dep(deps.pop(0))
        if o.flags & f.SUBMIT_NAMED:
            return self._plain(payload, deps), {}, None, "plain"
        if not len(payload):
            return (), {}, None, None
        args, kwargs, where, retry, how = _serial.decode(form, payload)
        if where:
            args = list(args)
            kwargs = dict(kwargs or {})
            values = [_serial.decode(*self._dep(d)) for d in deps]
            for key, i in where:
                if type(key) is int:
                    args[key] = values[i]
                else:
                    kwargs[key] = values[i]
        return args, kwargs or {}, pickle.loads(retry) if isinstance(retry, bytes) else retry, how

    def _given_apart(self, deps: List[Tuple[bytes, int, int, Any]]) -> None:
        """Ask for the deps that did not fit the frame, all at once."""
        ids = list({d[0] for d in deps if d[1] == f.APART})
        if not ids:
            return
        client = self.client
        refs = [client.item(id) for id in ids]
        client.fetch(ids, None)
        got = {id: client.values[id] for id in ids}
        for i, (id, kind, _, _) in enumerate(deps):
            if kind == f.APART:
                kind, form, data = got[id]
                if kind == f.FAILED:
                    raise _Passed(f.VALUE.pack(f.FAILED, form, 0, len(data)) + data)
                deps[i] = (id, kind, form, data)
        del refs

    def _dep(self, dep: Tuple[bytes, int, int, Any]) -> Tuple[int, Any]:
        """Form and bytes of a dep."""
        id, kind, form, data = dep
        if kind == f.INLINE:
            return form, data
        client = self.client
        got = client.shared(id)
        if got is None:  # moved since; the agent brings it back, or says what became of it
            ref = client.item(id)
            while got is None:
                client.fetch([id], None)
                kind, form, data = client.values.pop(id)
                if kind == f.FAILED:
                    raise _Passed(f.VALUE.pack(f.FAILED, form, 0, len(data)) + data)
                got = (form, data) if kind == f.INLINE else client.shared(id)
            del ref
        return got  # type: ignore[no-any-return]

    def _plain(self, payload: Any, deps: List[Tuple[bytes, int, int, Any]]) -> List[Any]:
        """The arguments of a call by name."""
        values: Dict[int, Any] = {}

        def extension(code: int, data: bytes) -> Any:
            if code == 1:
                (i,) = struct.unpack("<I", data)
                if i not in values:
                    values[i] = _serial.decode(*self._dep(deps[i]))
                return values[i]
            return _serial._extension(code, data)

        args = _pack.unpack(payload, extension)
        if not isinstance(args, list):
            raise TypeError("the arguments of a call by name are no list")
        return args

    def _results(self, o: Order, result: Any) -> Tuple[int, int, bytes, Any]:
        encode = _serial.encode_plain if o.flags & f.SUBMIT_NAMED else _serial.encode
        if o.returns == 1:
            made = None if o.flags & f.SUBMIT_NAMED else made_of(result)
            if made is not None:
                size, place = made.value()
                return f.OK, 1, f.VALUE.pack(f.SHARED, _serial.FORM_PYTHON, 0, size) + place, None
            e = encode(result)
            if e.size <= 4096 and not e.refs and not e.buffers:
                return f.OK, 1, f.VALUE.pack(f.INLINE, e.form, 0, e.size) + e.head, None
            return f.OK, 1, self.client.value(e), e
        if o.returns == 0:
            return f.OK, 0, b"", None
        try:
            items = list(result)
        except TypeError:
            items = []
        if len(items) != o.returns:
            what = f"{len(items)} values" if items else f"a {type(result).__name__}"
            raise ValueError(f"the task was to give {o.returns} values (num_returns) and gave {what}")
        keep = [encode(x) for x in items]
        return f.OK, o.returns, b"".join(self.client.several(keep)), keep

    def _stream(self, o: Order, items: Any) -> None:
        """Hand over what a generator yields."""
        client = self.client
        encode = _serial.encode_plain if o.flags & f.SUBMIT_NAMED else _serial.encode
        pressure = int(o.describe().get("backpressure") or 0)
        if inspect.isasyncgen(items):
            raise TypeError("an async generator cannot be a task: use an ordinary one")
        index, looked = 0, time.time_ns()
        for item in items:
            o.inside = False
            e = encode(item)
            value = client.value(e)
            with client.lock:
                self.put_item(o, index, value)
                index += 1
                if pressure and index - o.taken >= pressure:
                    o.inside = True  # nothing else ends this wait when the task is cancelled
                    client.wait_for(lambda: index - o.taken < pressure or o.cancelled, None)
                if self.actor is not None and time.time_ns() - looked > _LOOK_AFTER:  # nothing else tells it
                    client.poll()
                    looked = time.time_ns()
            if self.actor is not None and o.cancelled:
                raise KeyboardInterrupt("the call was cancelled")
            o.inside = True
            if o.cancelled:
                self.check_cancelled()


class _Passed(RayError):
    """An argument has failed: so has the task, in the same way."""

    def __init__(self, value: bytes) -> None:
        super().__init__("an argument has failed")
        self.value = value


def main(token: str = "") -> None:
    """Serve on descriptor 3; does not return."""
    token = token or os.environ.get("LAUNCHER_WORKER", "")
    code = 0
    try:
        faulthandler.enable()
    except (OSError, ValueError, RuntimeError):  # there is no standard error
        pass
    try:
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
        _serial._cloudpickle()
        worker = Worker()
        try:
            sock = socket.socket(fileno=3)
            os.set_inheritable(3, False)
            client = Client(sock, os.environ.get("LAUNCHER_SOCKET", ""), hello(2, token), worker, False)
        except (OSError, Error) as e:
            print(f"launcher: this worker was not taken by its node's agent: {e}", file=sys.stderr)
            os._exit(1)
        use(client)
        signal.signal(signal.SIGINT, worker.interrupted)
        worker.serve()
        client.close()
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 1 if e.code else 0
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    finish(code)


if __name__ == "__main__":
    from launcher import _process, _worker

    _process.clean_path()
    _worker.main()
