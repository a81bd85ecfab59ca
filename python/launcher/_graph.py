"""Compiled graphs: the loops that actors run, and what a program holds of them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import os
import threading
import time
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from . import _api, _client, _serial
from . import channel as c
from .dag import ClassMethodNode, DAGNode, Input, InputAttributeNode, InputNode, MultiOutputNode, OutputNode, replace
from .exceptions import ActorDiedError, ActorUnavailableError, RayActorError, RayCgraphCapacityExceeded, RayChannelError, RayChannelTimeoutError, RayError, from_wire

_END = 5.0  # seconds that loops have to end in


class From(NamedTuple):
    """In the arguments of a step: the value of another, or a part of what execute was given."""

    step: int
    key: Any = None
    part: bool = False


class Step(NamedTuple):
    """A node as its actor runs it; without a method it is a result of the step in args."""

    number: int
    name: str
    method: Optional[str]
    args: Tuple[Any, ...]
    kwargs: Dict[str, Any]
    out: Optional[c.Channel]


class Plan(NamedTuple):
    """What an actor does for a graph."""

    graph: bytes
    steps: List[Step]
    inputs: Dict[int, Tuple[c.Channel, int]]


class _Failed:
    """A value that is none."""

    __slots__ = ("encoded",)

    def __init__(self, data: bytes) -> None:
        self.encoded = _serial.Encoded(_serial.FORM_PLAIN, len(data), data, [], [])


# In an actor.

_loops: Dict[bytes, "_Loop"] = {}


def place(instance: Any) -> str:
    """Where an actor is, for those who want to share memory with it."""
    return c.machine() if c.usable() else ""


def start(instance: Any, plan: Plan) -> int:
    """Begin with a graph; gives the process that does."""
    try:
        loop: Optional[asyncio.AbstractEventLoop] = asyncio.get_running_loop()
    except RuntimeError:
        loop = None
    made = _Loop(instance, plan, loop)
    _loops[plan.graph] = made
    made.thread.start()
    return os.getpid()


async def _result(of: Any) -> Any:
    return await of


class _Loop:
    """Runs an actor's part of a graph, again and again."""

    def __init__(self, instance: Any, plan: Plan, loop: Optional[asyncio.AbstractEventLoop]) -> None:
        self.instance, self.plan, self.loop = instance, plan, loop
        self.methods = {s.number: getattr(instance, s.method) for s in plan.steps if s.method}
        self.inputs = {n: channel.reader(i) for n, (channel, i) in plan.inputs.items()}
        self.outputs = {s.number: s.out.writer() for s in plan.steps if s.out is not None}
        self.thread = threading.Thread(target=self.run, name="compiled-graph", daemon=True)

    def run(self) -> None:
        """Until a channel is closed, or the process at its other end is gone."""
        try:
            while True:
                values: Dict[int, Any] = {}
                for s in self.plan.steps:
                    self.step(s, values)
                values.clear()
                for r in self.inputs.values():
                    r.release()
        except RayChannelError:
            pass
        finally:
            for end in [*self.inputs.values(), *self.outputs.values()]:
                end.close()
            _loops.pop(self.plan.graph, None)

    def step(self, s: Step, values: Dict[int, Any]) -> None:
        """Run a step, unless what it needs failed: that is its result then."""
        broken: List[_Failed] = []

        def take(place: From) -> Any:
            if place.step not in values:
                kind, form, data = self.inputs[place.step].take()
                values[place.step] = _Failed(bytes(data)) if kind == c.ERROR else self.inputs[place.step].decode(form, data)
            value = values[place.step]
            if isinstance(value, _Failed):
                broken.append(value)
                return None
            return value[place.key] if place.part else value

        try:
            args, kwargs = _fill((s.args, s.kwargs), take)
            if broken:
                value: Any = broken[0]
            elif s.method is None:
                value = args[0]
            else:
                value = self.methods[s.number](*args, **kwargs)
                if inspect.isawaitable(value):
                    value = self.wait(value)
            out = self.outputs.get(s.number)
            encoded = _serial.encode(value) if out is not None and not isinstance(value, _Failed) else None
        except RayChannelError:
            raise
        except Exception as e:
            value = _Failed(_serial.task_failed(e, s.name, _client.connected().node, os.getpid(), 1))
            out, encoded = self.outputs.get(s.number), None
        values[s.number] = value
        if out is not None:
            if encoded is None:
                out.put(c.ERROR, value.encoded)
            else:
                out.put(c.VALUE, encoded)

    def wait(self, value: Any) -> Any:
        """The result of an async method, which runs in the actor's own loop."""
        if self.loop is None:
            return asyncio.run(_result(value))
        return asyncio.run_coroutine_threadsafe(_result(value), self.loop).result()


def stop(instance: Any, graph: bytes) -> None:
    """Return when a loop has ended."""
    loop = _loops.get(graph)
    if loop is not None:
        loop.thread.join(_END)


def _fill(value: Any, take: Any) -> Any:
    t = type(value)
    if t is From:
        return take(value)
    if t is list or t is tuple:
        return t([_fill(v, take) for v in value])
    if t is dict:
        return {k: _fill(v, take) for k, v in value.items()}
    return value


# In the program.


class CompiledDAG:
    """A graph whose actors wait for executions of it."""

    def __init__(self, root: DAGNode, size: int, asynchronous: bool, most: int, buffered: int, submit: Optional[float]) -> None:
        self._root, self._async, self._most, self._buffered = root, asynchronous, most, buffered
        self._submit = submit if submit is not None and submit >= 0 else None
        self._writing, self._reading = threading.Lock(), threading.Lock()  # held while one waits
        self._lock = threading.RLock()  # of the tables; a collection of garbage may take it again
        self._next = self._read = 0  # executions: begun, and whose results were read
        self._partial: List[Any] = []
        self._results: Dict[int, List[Any]] = {}
        self._unwanted: Dict[int, int] = {}
        self._over = False
        self._broken: Optional[RayError] = None  # why its channels are closed
        self._lost: Tuple[int, Optional[RayError]] = (0, None)  # executions before are, if they were not read
        self._processes: List[Tuple[int, int]] = []  # of the actors, and when they began
        self._channels: List[c.Channel] = []
        self._pool: Optional[concurrent.futures.ThreadPoolExecutor] = None
        self._outputs = outputs = list(root._args) if isinstance(root, MultiOutputNode) else [root]
        self._order, self._size = _sorted(outputs), size
        self._actors = _check(self._order, outputs)
        self._count = len(outputs)
        self._parts = [n._key for n in self._order if isinstance(n, InputAttributeNode)]
        self._begin_loops()

    def _begin_loops(self) -> None:
        """Where the actors are decides how they are called; channels are made, and loops begun."""
        self._id = os.urandom(8)
        places = _api.get([a.__ray_call__.remote(place) for a in self._actors])
        self._shared = c.usable() and all(p == c.machine() for p in places)
        if self._shared:
            try:
                self._connect(self._outputs, self._size)
            except BaseException:
                for channel in self._channels:
                    channel.close()
                raise

    def _again(self) -> None:
        """After the death of an actor that lives again: what was under way is lost."""
        if isinstance(self._broken, ActorDiedError):
            raise self._broken
        with self._reading:
            self._stop()
            self._begin_loops()
            with self._lock:
                self._lost, self._broken = (self._next, self._broken), None
                self._read, self._partial = self._next, []

    def _connect(self, outputs: List[DAGNode], size: int) -> None:
        """Make the channels, and have the actors begin."""
        order = self._order
        number = {n: i + 1 for i, n in enumerate(n for n in order if not isinstance(n, (InputNode, InputAttributeNode)))}

        def place(n: DAGNode) -> From:
            if isinstance(n, InputAttributeNode):
                return From(0, n._key, True)
            return From(0, 0, bool(self._parts)) if isinstance(n, InputNode) else From(number[n])

        readers: Dict[int, List[Any]] = {}  # of each channel: actors, None for the program
        for n in number:
            for child in n.children():
                of = place(child).step
                if of == 0 or _actor(child) != _actor(n):
                    readers.setdefault(of, [])
                    if _actor(n) not in readers[of]:
                        readers[of].append(_actor(n))
        for o in outputs:
            at = readers.setdefault(number[o], [])
            if None not in at:
                at.append(None)
        made = {of: c.create(len(who), self._most, size) for of, who in readers.items()}
        self._channels = list(made.values())
        begun = []
        for a in self._actors:
            steps = []
            for n, i in number.items():
                if _actor(n) == a:
                    args, kwargs = replace((n._args, n._kwargs), place)
                    if isinstance(n, OutputNode):
                        steps.append(Step(i, str(n), None, (From(number[n._of], n._index, True),), {}, made.get(i)))
                    elif isinstance(n, ClassMethodNode):
                        steps.append(Step(i, str(n), n._name, args, kwargs, made.get(i)))
            inputs = {of: (made[of], who.index(a)) for of, who in readers.items() if a in who}
            begun.append(a.__ray_call__.remote(start, Plan(self._id, steps, inputs)))
        self._processes = [(pid, c._began(pid)) for pid in _api.get(begun)]
        self._input = made[0].writer()
        place_of = [number[o] for o in outputs]
        ends = {i: made[i].reader(readers[i].index(None)) for i in set(place_of)}
        self._ends = list(ends.values())
        self._where = [list(ends).index(i) for i in place_of]

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        """Begin an execution; get of what it gives waits for the result. RayCgraphCapacityExceeded
        when too many are under way."""
        return self._refs(self._begin(args, kwargs))

    def _refs(self, made: Tuple[int, Any]) -> Any:
        if not isinstance(self._root, MultiOutputNode):
            return CompiledDAGRef(self, made[0], 0, made[1])
        return [CompiledDAGRef(self, made[0], i, made[1][i] if made[1] else None) for i in range(self._count)]

    def _begin(self, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Tuple[int, Any]:
        with self._writing:
            if self._over:
                raise RayChannelError("the compiled graph was torn down")
            self._fits(args, kwargs)
            if self._broken is not None:
                self._again()
            if self._next - self._read >= self._most:
                raise RayCgraphCapacityExceeded(f"{self._most} executions are under way: get the results of some, or give experimental_compile _max_inflight_executions")
            if len(self._results) >= self._buffered:
                raise RayCgraphCapacityExceeded(f"{self._buffered} results were read and not got: get them, or give experimental_compile _max_buffered_results")
            refs: Any = None
            if not self._shared:
                refs = self._root.execute(*args, **kwargs) if not self._parts else self._root._value(_Parts(args, kwargs), {})
            else:
                try:
                    self._input.write(_Parts(args, kwargs) if self._parts else args[0], self._submit)
                except RayChannelTimeoutError:
                    raise
                except RayChannelError as e:
                    raise self._why(e) from None
            self._next += 1
            return self._next - 1, refs

    def _fits(self, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> None:
        places = [k for k in self._parts if isinstance(k, int)]
        wanted = max(places) + 1 if places else 0 if self._parts else 1
        if len(args) != wanted:
            raise ValueError(f"execute takes {wanted} positional arguments, as the graph uses its input, not {len(args)}")
        for k in self._parts:
            if not isinstance(k, int) and k not in kwargs:
                raise ValueError(f"execute lacks the argument {k!r}, which the graph uses")

    async def execute_async(self, *args: Any, **kwargs: Any) -> Any:
        """execute, of a graph compiled with enable_asyncio: what it gives is awaited."""
        if not self._async:
            raise ValueError("execute_async needs experimental_compile(enable_asyncio=True)")
        refs = self.execute(*args, **kwargs)
        return [CompiledDAGFuture(r) for r in refs] if isinstance(refs, list) else CompiledDAGFuture(refs)

    def _get(self, index: int, output: int, timeout: Optional[float]) -> Any:
        """The result of an execution; those before it are read and kept."""
        end = None if timeout is None else time.monotonic() + timeout
        with self._reading:
            while self._read <= index:
                self._read_next(end)
        with self._lock:
            if index not in self._results and index < self._lost[0]:
                raise self._lost[1] or RayChannelError("the channel is closed")
            kind, form, data = self._results[index][output]
            self._drop(index)
        value = _serial.decode(form, data)
        if kind == c.ERROR:
            raise from_wire(value)
        return value

    def _read_next(self, end: Optional[float]) -> None:
        try:
            if self._over:
                raise RayChannelError("the compiled graph was torn down")
            if self._broken is not None:
                raise self._broken
            while len(self._partial) < len(self._ends):
                r = self._ends[len(self._partial)]
                kind, form, data = r.take(None if end is None else max(end - time.monotonic(), 0))
                self._partial.append((kind, form, bytes(data)))
                r.release()
        except RayChannelTimeoutError:
            raise
        except RayChannelError as e:
            raise self._why(e) from None
        got, self._partial = self._partial, []
        with self._lock:
            index = self._read
            self._read += 1
            if self._unwanted.get(index, 0) < self._count:
                self._results[index] = [got[i] for i in self._where]
            else:
                del self._unwanted[index]

    def _drop(self, index: int) -> None:
        """One more output of an execution is got, or nobody wants it."""
        with self._lock:
            n = self._unwanted[index] = self._unwanted.get(index, 0) + 1
            if n >= self._count and index < self._read:
                self._results.pop(index, None)
                del self._unwanted[index]

    def _why(self, e: RayError) -> RayError:
        """What a broken channel comes from: an actor's death, if there is one."""
        if self._over or self._broken is not None:
            return self._broken or e
        for channel in self._channels:
            channel.close()
        for a, (pid, began) in zip(self._actors, self._processes):
            if c._began(pid) == began:
                continue
            now = "is not there again yet"
            try:
                _api.get(a.__ray_ready__.remote(), timeout=_END)
                now = "lives again"
            except RayActorError as died:
                e = died
            except RayError:  # it takes its time
                pass
            if not isinstance(e, RayActorError):
                e = ActorUnavailableError(f"{a} died in an execution of a compiled graph: its process {pid} is gone; it {now}. What was under way is lost; the next execute begins anew")
                e.actor_id = str(a._actor_id)
            break
        self._broken = e
        return e

    def _close(self) -> None:
        self._over = True
        for channel in self._channels:
            channel.close()

    def _stop(self) -> None:
        """Wait until the loops of actors have ended; their channels are closed."""
        if self._shared and _api.is_initialized():
            try:
                _api.get([a.__ray_call__.remote(stop, self._id) for a in self._actors], timeout=_END)
            except RayError:  # it died, or runs on for too long
                pass

    def teardown(self, kill_actors: bool = False) -> None:
        """End it; its actors are free again. Results that were not got are lost."""
        if not self._over:
            self._close()
            self._stop()
        if kill_actors:
            from ._actors import kill

            for a in self._actors:
                kill(a)

    def visualize(self, *args: Any, **kwargs: Any) -> str:
        """The graph as text: a line per node, with what it takes."""
        lines = []
        for n in self._order:
            takes = ", ".join(str(m) for m in n.children())
            lines.append(f"{n} <- {takes}" if takes else str(n))
        return "\n".join(lines)

    def get_id(self) -> str:
        """In hexadecimal."""
        return self._id.hex()

    @property
    def is_teardown(self) -> bool:
        """Whether it was torn down."""
        return self._over

    def __del__(self) -> None:
        for channel in getattr(self, "_channels", ()):
            channel.close()


class _Parts(Input):
    """An input whose arguments are used one by one."""

    __slots__ = ()

    def whole(self) -> Any:
        return self

    def __reduce__(self) -> Any:
        return (_Parts, (self.args, self.kwargs))


def _actor(n: DAGNode) -> Any:
    if isinstance(n, OutputNode):
        n = n._of
    return n._actor if isinstance(n, ClassMethodNode) else None


def _sorted(outputs: Sequence[DAGNode]) -> List[DAGNode]:
    """All nodes of a graph, each after those that it needs."""
    order: Dict[DAGNode, None] = {}
    todo: List[Tuple[DAGNode, bool]] = [(o, False) for o in reversed(outputs)]
    while todo:
        n, ready = todo.pop()
        if n in order:
            continue
        if ready:
            order[n] = None
        else:
            todo.append((n, True))
            todo += [(child, False) for child in n.children() if child not in order]
    return list(order)


def _check(order: Sequence[DAGNode], outputs: Sequence[DAGNode]) -> List[Any]:
    """The actors of a graph that can be compiled."""
    actors: List[Any] = []
    inputs = set()
    for n in order:
        if isinstance(n, (InputNode, InputAttributeNode)):
            if isinstance(n, InputNode):
                inputs.add(n)
            if n in outputs:
                raise ValueError("the input of a graph cannot be its output")
        elif isinstance(n, OutputNode) or isinstance(n, ClassMethodNode) and not isinstance(n._actor, DAGNode):
            if not any(True for _ in n.children()):
                raise ValueError(f"{n}: each call of a compiled graph takes the input, or the result of another")
            if _actor(n) not in actors:
                actors.append(_actor(n))
        else:
            raise NotImplementedError(f"{n}: a compiled graph has methods of actors that are there already (Class.remote) only")
    if len(inputs) != 1:
        raise ValueError(f"a compiled graph has one InputNode, not {len(inputs)}")
    return actors


class CompiledDAGRef:
    """The result of an execution, for get; it can be got once."""

    def __init__(self, graph: CompiledDAG, index: int, output: int, ref: Any) -> None:
        self._graph, self._index, self._output, self._ref = graph, index, output, ref
        self._got = False

    def get(self, timeout: Optional[float] = None) -> Any:
        """Wait for it."""
        if self._got:
            raise ValueError("the result of an execution of a compiled graph can be got once")
        if self._ref is not None:
            try:
                return _api.get(self._ref, timeout=timeout)
            finally:
                self._got = True
                self._graph._read = max(self._graph._read, self._index + 1)
        try:
            value = self._graph._get(self._index, self._output, timeout)
        except RayChannelTimeoutError:
            raise
        except BaseException:
            self._got = True
            raise
        self._got = True
        return value

    def __del__(self) -> None:
        if not self._got and self._ref is None and not self._graph._over:
            self._graph._drop(self._index)

    def __copy__(self) -> Any:
        raise ValueError("a CompiledDAGRef cannot be copied")

    def __reduce__(self) -> Any:
        raise ValueError("a CompiledDAGRef stays in its process: get it, and pass the value on")

    def __str__(self) -> str:
        return f"CompiledDAGRef({self._graph.get_id()}, execution_index={self._index}, channel_index={self._output})"


class CompiledDAGFuture:
    """The result of an execution, to be awaited, once."""

    def __init__(self, ref: CompiledDAGRef) -> None:
        self._ref = ref

    def __await__(self) -> Any:
        graph = self._ref._graph
        if graph._pool is None:
            graph._pool = concurrent.futures.ThreadPoolExecutor(1, "compiled-graph")
        return asyncio.get_running_loop().run_in_executor(graph._pool, self._ref.get).__await__()


def get_all(refs: Sequence[Any], timeout: Optional[float]) -> List[Any]:
    """get of a list with results of executions in it."""
    end = None if timeout is None else time.monotonic() + timeout
    return [_api.get(r, timeout=None if end is None else max(end - time.monotonic(), 0)) for r in refs]
