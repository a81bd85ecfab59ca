"""Graphs of calls: built by bind, executed as often as wanted.

    with InputNode() as x:
        graph = second.work.bind(first.work.bind(x))
    get(graph.execute(1))                      # ordinary calls of tasks and actors

    compiled = graph.experimental_compile()    # of actors' methods only: a pipeline
    get(compiled.execute(1))                   # over shared memory
    compiled.teardown()
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

from ._actors import ActorClass, ActorHandle
from ._remote import RemoteFunction


class Input:
    """What an execution was given."""

    __slots__ = ("args", "kwargs")

    def __init__(self, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> None:
        self.args, self.kwargs = args, kwargs

    def whole(self) -> Any:
        """What InputNode itself stands for."""
        return self.args[0] if len(self.args) == 1 and not self.kwargs else self

    def __getitem__(self, key: Any) -> Any:
        return self.args[key] if isinstance(key, int) else self.kwargs[key]


def replace(value: Any, by: "Callable[[DAGNode], Any]") -> Any:
    """A bound argument with its nodes replaced, also those in lists, tuples and dicts."""
    if isinstance(value, DAGNode):
        return by(value)
    t = type(value)
    if t is list or t is tuple:
        return t(replace(v, by) for v in value)
    if t is dict:
        return {k: replace(v, by) for k, v in value.items()}
    return value


class DAGNode:
    """A node of a graph."""

    def __init__(self, args: Tuple[Any, ...], kwargs: Dict[str, Any], options: Optional[Dict[str, Any]] = None) -> None:
        self._args, self._kwargs, self._options = args, kwargs, options or {}

    def get_args(self) -> Tuple[Any, ...]:
        """The arguments that were bound."""
        return self._args

    def get_kwargs(self) -> Dict[str, Any]:
        """The named arguments that were bound."""
        return dict(self._kwargs)

    def get_options(self) -> Dict[str, Any]:
        """The options of the calls."""
        return dict(self._options)

    def children(self) -> "Iterator[DAGNode]":
        """The nodes that this one needs, as they come in its arguments."""
        found: List[DAGNode] = []
        replace((self._args, self._kwargs), found.append)
        return iter(found)

    def execute(self, *args: Any, _ray_cache_refs: bool = False, **kwargs: Any) -> Any:
        """Call all of the graph; does not wait. Gives the reference of the result, a list of
        them of a MultiOutputNode. Every node is called once, whoever needs it."""
        return self._value(Input(args, kwargs), {})

    def _value(self, given: Input, done: "Dict[DAGNode, Any]") -> Any:
        if self not in done:
            done[self] = self._call(given, done)
        return done[self]

    def _bound(self, given: Input, done: "Dict[DAGNode, Any]") -> Tuple[Any, Any]:
        made: Tuple[Any, Any] = replace((self._args, self._kwargs), lambda n: n._value(given, done))
        return made

    def _call(self, given: Input, done: "Dict[DAGNode, Any]") -> Any:
        raise NotImplementedError

    def with_tensor_transport(self, *args: Any, **kwargs: Any) -> "DAGNode":
        """The node itself: tensors go through shared memory, as all values do."""
        return self

    def experimental_compile(
        self,
        _submit_timeout: Optional[float] = None,
        _buffer_size_bytes: Optional[int] = None,
        enable_asyncio: bool = False,
        _max_inflight_executions: Optional[int] = None,
        _max_buffered_results: Optional[int] = None,
        **_: Any,
    ) -> Any:
        """Make a pipeline of it: each actor runs its part in a loop, values go through channels.

        Actors on another machine than the program are called in the ordinary way instead.
        """
        from . import _graph

        return _graph.CompiledDAG(self, _buffer_size_bytes or 1 << 20, enable_asyncio, _max_inflight_executions or 10, _max_buffered_results or 1000, _submit_timeout)

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    def __reduce__(self) -> Any:
        raise ValueError("a node of a graph stays in its process: pass what execute gives")

    def __str__(self) -> str:
        return type(self).__name__


class InputNode(DAGNode):
    """What execute is given: `with InputNode() as x`; x[0] and x.name are parts of it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__((), {})

    def __enter__(self) -> "InputNode":
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def __getitem__(self, key: Any) -> "InputAttributeNode":
        return InputAttributeNode(self, key, False)

    def __getattr__(self, name: str) -> "InputAttributeNode":
        if name.startswith("_"):
            raise AttributeError(name)
        return InputAttributeNode(self, name, True)

    def _call(self, given: Input, done: Dict[DAGNode, Any]) -> Any:
        return given.whole()


class InputAttributeNode(DAGNode):
    """A part of what execute is given: an argument by its place or name, or an item or
    attribute of the only argument."""

    def __init__(self, of: InputNode, key: Any, attribute: bool) -> None:
        super().__init__((of,), {})
        self._key, self._attribute = key, attribute

    def _call(self, given: Input, done: Dict[DAGNode, Any]) -> Any:
        whole = given.whole()
        return getattr(whole, self._key) if self._attribute and whole is not given else whole[self._key]

    def __str__(self) -> str:
        return f"input.{self._key}" if self._attribute else f"input[{self._key!r}]"


class FunctionNode(DAGNode):
    """A call of a task."""

    def __init__(self, function: RemoteFunction[Any], args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> None:
        super().__init__(args, kwargs, function._options)
        self._function = function

    def _call(self, given: Input, done: Dict[DAGNode, Any]) -> Any:
        args, kwargs = self._bound(given, done)
        return self._function.remote(*args, **kwargs)

    def __str__(self) -> str:
        return str(self._function)


class ClassNode(DAGNode):
    """An actor that an execution makes."""

    def __init__(self, made: ActorClass, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> None:
        super().__init__(args, kwargs, made._options)
        self._class = made
        self._last: Optional[ClassMethodNode] = None

    def __getattr__(self, name: str) -> "_Unbound":
        if name.startswith("_"):
            raise AttributeError(name)
        getattr(self._class._class, name)
        return _Unbound(self, name, {})

    def _call(self, given: Input, done: Dict[DAGNode, Any]) -> Any:
        args, kwargs = self._bound(given, done)
        return self._class.remote(*args, **kwargs)

    def __str__(self) -> str:
        return self._class.__name__


class _Unbound:
    """A method of a ClassNode."""

    def __init__(self, of: ClassNode, name: str, options: Dict[str, Any]) -> None:
        self._of, self._name, self._options = of, name, options

    def options(self, **options: Any) -> "_Unbound":
        """The same method with other options."""
        return _Unbound(self._of, self._name, {**self._options, **options})

    def bind(self, *args: Any, **kwargs: Any) -> Any:
        """A call of it, after those that were bound before."""
        own = getattr(getattr(self._of._class._class, self._name), "__ray_method_options__", {})
        node = ClassMethodNode(self._of, self._name, self._options, args, kwargs, self._of._last)
        self._of._last = node
        return _parts(node, {**own, **self._options})


class ClassMethodNode(DAGNode):
    """A call of an actor's method."""

    def __init__(self, actor: Any, name: str, options: Dict[str, Any], args: Tuple[Any, ...], kwargs: Dict[str, Any], previous: "Optional[ClassMethodNode]" = None) -> None:
        super().__init__(args, kwargs, options)
        self._actor, self._name, self._previous = actor, name, previous

    def _call(self, given: Input, done: Dict[DAGNode, Any]) -> Any:
        if self._previous is not None:
            self._previous._value(given, done)
        handle: ActorHandle = self._actor._value(given, done) if isinstance(self._actor, ClassNode) else self._actor
        args, kwargs = self._bound(given, done)
        return handle._call(self._name, self._options or None, args, kwargs)

    def __str__(self) -> str:
        kind = self._actor if isinstance(self._actor, ClassNode) else self._actor._info.name
        return f"{kind}.{self._name}"


class OutputNode(DAGNode):
    """One of several results of a call."""

    def __init__(self, of: ClassMethodNode, index: int) -> None:
        super().__init__((of,), {})
        self._of, self._index = of, index

    def _call(self, given: Input, done: Dict[DAGNode, Any]) -> Any:
        return self._of._value(given, done)[self._index]

    def __str__(self) -> str:
        return f"{self._of}[{self._index}]"


class MultiOutputNode(DAGNode):
    """Several nodes as the outputs of a graph."""

    def __init__(self, args: Any, **_: Any) -> None:
        if not isinstance(args, (list, tuple)):
            raise ValueError(f"MultiOutputNode takes a list of nodes, not {type(args).__name__}")
        super().__init__(tuple(args), {})

    def _call(self, given: Input, done: Dict[DAGNode, Any]) -> Any:
        return list(self._bound(given, done)[0])


def method_node(handle: ActorHandle, name: str, options: Dict[str, Any], args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Any:
    """What bind of an actor's method gives: a node, or one for each of its results."""
    return _parts(ClassMethodNode(handle, name, options, args, kwargs), {**handle._info.methods.get(name, {}), **options})


def _parts(node: ClassMethodNode, options: Dict[str, Any]) -> Any:
    n = options.get("num_returns")
    return tuple(OutputNode(node, i) for i in range(n)) if type(n) is int and n > 1 else node
