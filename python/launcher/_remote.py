"""Functions that run as tasks, and the options of a task."""

from __future__ import annotations

import functools
import inspect
import os
import pickle
import weakref
from typing import Any, Callable, Dict, Generic, List, Optional, Tuple, TypeVar, Union

from . import _client, _pack, _serial, scheduling
from . import _frames as f
from ._http import Error
from ._refs import ObjectRef, ObjectRefGenerator

R = TypeVar("R")

_UNIT = 10000  # resources are counted in ten-thousandths

_loaded: "weakref.WeakKeyDictionary[Any, Tuple[bytes, List[ObjectRef[Any]]]]" = weakref.WeakKeyDictionary()


def remember(function: Any, code: bytes, refs: List[ObjectRef[Any]]) -> None:
    """In a worker: the code that a function was loaded from, with the references in it, in
    case it calls itself."""
    try:
        _loaded[function] = code, refs
    except TypeError:  # not of a kind that can be remembered
        pass


class RemoteFunction(Generic[R]):
    """A function whose remote() runs it as a task. The decorator remote makes it."""

    def __init__(self, function: Callable[..., R], options: Dict[str, Any]) -> None:
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise ValueError(f"{_serial.name_of(function)} is an async function; a task is an ordinary one")
        self._function = function
        self._options = options
        self._prepared: Optional[_Prepared] = None
        functools.update_wrapper(self, function, updated=())
        check(options)

    def __call__(self, *args: Any, **kwargs: Any) -> R:
        name = _serial.name_of(self._function)
        raise TypeError(f"{name} is a remote function: call {name}.remote(...) to run it as a task")

    def options(self, **options: Any) -> "RemoteFunction[Any]":
        """The same function with other options for its tasks."""
        return RemoteFunction(self._function, merge(self._options, options))

    def remote(self, *args: Any, **kwargs: Any) -> "ObjectRef[R]":
        """Run it as a task; does not wait.

        Arguments that are ObjectRefs are replaced by their values when the task begins.
        Gives the reference of the result: a list of them with num_returns > 1, None with
        0, an ObjectRefGenerator of a generator.
        """
        client = _client._current or _client.connected()
        p = self._prepared
        if p is None or p.client is not client or p.captured != client.captured:
            p = self._prepared = _Prepared(client, self._function, self._options)
        made: ObjectRef[R] = p.submit(args, kwargs)
        return made

    def bind(self, *args: Any, **kwargs: Any) -> Any:
        """A node of a graph of calls: launcher.dag."""
        from . import dag

        return dag.FunctionNode(self, args, kwargs)

    def __reduce__(self) -> Any:
        return (_again, (), (self._function, self._options))

    def __setstate__(self, state: Any) -> None:
        self._function, self._options = state
        self._prepared = None
        functools.update_wrapper(self, self._function, updated=())

    def __repr__(self) -> str:
        return f"RemoteFunction({_serial.name_of(self._function)})"


def _again() -> "RemoteFunction[Any]":
    # Empty first: a function that calls itself refers to what refers to it.
    return RemoteFunction.__new__(RemoteFunction)


def _digest(data: bytes) -> bytes:
    """The id of a function."""
    import hashlib  # brings OpenSSL with it, which most workers have no need of

    return hashlib.sha256(data).digest()[:16]


class _Prepared:
    """A function with its options as a client's frames have them."""

    __slots__ = ("client", "function", "name", "id", "shape", "returns", "how", "retry", "empty", "ahead", "captured", "outside", "held")

    def __init__(self, client: _client.Client, function: Any, options: Dict[str, Any]) -> None:
        self.client, self.function, self.captured = client, function, client.captured
        self.name = options.get("name") or _serial.name_of(function)
        try:
            loaded = _loaded.get(function)
        except TypeError:
            loaded = None
        code, outside = loaded or _serial.dump_function(function)
        self.outside = outside  # they live as long as what can be called
        self.held = [own(client, r) for r in outside]
        self.id = _digest(b"python\0" + code)
        client.function(self.id, _serial.name_of(function), code)
        self.shape = client.shape(encode(inherit(client, options), self.name))
        self.returns, self.how = returns_of(options, function)
        self.retry = retry_of(options)
        self.ahead = look_ahead(options)
        self.empty = b"" if self.retry is None and self.how is None else self._payload((), {}, []).joined()

    def _payload(self, args: Any, kwargs: Any, where: List[Tuple[Any, int]]) -> _serial.Encoded:
        return _serial.encode((args, kwargs or None, where or None, self.retry, self.how))

    def submit(self, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Any:
        """Write the task; its reference, or what stands for several."""
        return self.call(self.id, 0, args, kwargs)

    def call(self, id: bytes, flags: int, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Any:
        """submit, of another function id: an actor's."""
        client = self.client
        if not args and not kwargs:
            task, refs = client.submit(id, self.shape, self.returns, flags, _NONE, self.held, self.empty)
        else:
            task, refs = self.with_arguments(id, flags, args, kwargs)
        if self.returns == 1:
            return refs[0]
        if self.returns == f.STREAM:
            return ObjectRefGenerator(task, client, self.ahead)
        return refs or None

    def with_arguments(self, id: bytes, flags: int, args: Tuple[Any, ...], kwargs: Dict[str, Any], number: int = 0) -> Any:
        """Write a task with arguments: its id and its results."""
        client = self.client
        deps: List[bytes] = []
        where: List[Tuple[Any, int]] = []
        given: Any = args
        for i, a in enumerate(args):
            if type(a) is ObjectRef:
                if given is args:
                    given = list(args)
                given[i] = None
                where.append((i, len(deps)))
                deps.append(own(client, a))
        named = kwargs
        for k, a in kwargs.items():
            if type(a) is ObjectRef:
                if named is kwargs:
                    named = dict(kwargs)
                named[k] = None
                where.append((k, len(deps)))
                deps.append(own(client, a))
        try:
            e = self._payload(tuple(given), named, where)
        except ImportError:
            raise
        except Exception as error:
            raise _serial.unpicklable(_names(self.function, args, kwargs), self.name, error) from error
        held = [*self.held, *(own(client, r) for r in e.refs)] if e.refs else self.held
        if e.size <= client.inline:
            return client.submit(id, self.shape, self.returns, flags, deps, held, e.joined() if e.buffers else e.head, number)
        whole = client.put_encoded(e)
        return client.submit(id, self.shape, self.returns, flags | f.SUBMIT_LARGE, [whole.binary(), *deps], held, b"", number)


_NONE: List[bytes] = []


def own(client: _client.Client, ref: ObjectRef[Any]) -> bytes:
    """The id of a reference, which must be one of this connection."""
    if ref._home is not client:
        ref._home.check()
        raise ValueError(f"{ref!r} belongs to another cluster, or to a connection that has ended")
    return ref._id


def _names(function: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Dict[str, Any]:
    """Arguments by their names."""
    try:
        return dict(inspect.signature(function).bind(*args, **kwargs).arguments)
    except (TypeError, ValueError):
        return {**{f"number {i + 1}": a for i, a in enumerate(args)}, **kwargs}


class NamedFunction:
    """A function of a program in another language, or one that is known by its name.

    It takes positional arguments and gives plain data: None, bool, int, float, str,
    bytes, lists, dicts, Arrow tables.
    """

    def __init__(self, language: str, name: str, options: Dict[str, Any]) -> None:
        self._name, self._language, self._options = name, language, options
        check(options)

    def options(self, **options: Any) -> "NamedFunction":
        """The same function with other options for its tasks."""
        return NamedFunction(self._language, self._name, merge(self._options, options))

    def remote(self, *args: Any) -> Any:
        """Run it as a task; does not wait. ObjectRefs are replaced by their values."""
        client = _client.connected()
        id = _digest(b"named\0" + self._name.encode())
        client.function(id, self._name, b"")
        options = {"language": self._language, **inherit(client, self._options)}
        shape = client.shape(encode(options, options.get("name") or self._name))
        returns, _ = returns_of(options, None)
        return call_plain(client, self._name, id, shape, returns, 0, args, look_ahead(options))

    def __repr__(self) -> str:
        return f"NamedFunction({self._language}, {self._name})"


def call_plain(client: _client.Client, name: str, id: bytes, shape: int, returns: int, flags: int, args: Tuple[Any, ...], ahead: int) -> Any:
    """Write a call of another language's function, or of an actor's method: plain data."""
    deps: List[bytes] = []
    kept: List[Any] = []

    def convert(v: Any) -> Any:
        if type(v) is ObjectRef:
            id = own(client, v)
            known = client.values.get(id)
            if known is not None and known[0] == f.INLINE and known[1] == _serial.FORM_PYTHON:
                return _serial.decode(known[1], known[2])  # other languages cannot read it
            deps.append(id)
            return _pack.Ext(1, f.U32.pack(len(deps) - 1))
        if isinstance(v, (list, tuple)) and any(type(x) is ObjectRef for x in v):
            return [convert(x) if type(x) is ObjectRef else x for x in v]
        return v

    try:
        e = _serial.encode_plain([convert(a) for a in args])
    except (TypeError, ValueError) as error:
        raise TypeError(f"an argument of {name} cannot be passed on: {error}") from error
    if e.size > client.inline:
        whole = client.put_encoded(e)
        kept.append(whole)
        deps.insert(0, whole.binary())
    flags |= f.SUBMIT_NAMED | (f.SUBMIT_LARGE if kept else 0)
    task, refs = client.submit(id, shape, returns, flags, deps, [own(client, r) for r in e.refs], b"" if kept else e.joined())
    if returns == f.STREAM:
        return ObjectRefGenerator(task, client, ahead)
    return refs[0] if returns == 1 else refs or None


# Options.

_KNOWN = {
    "num_cpus", "num_gpus", "memory", "resources", "accelerator_type", "num_returns", "max_retries", "retry_exceptions", "max_calls",
    "name", "runtime_env", "scheduling_strategy", "label_selector", "priority", "time", "program", "_generator_backpressure_num_objects",
    "enable_task_events", "_metadata", "object_store_memory",
}  # fmt: skip


def merge(old: Dict[str, Any], new: Dict[str, Any]) -> Dict[str, Any]:
    """Options with others on top."""
    return {**old, **new}


def inherit(client: _client.Client, options: Dict[str, Any]) -> Dict[str, Any]:
    """Options on top of the program's runtime_env, or that of the task that submits, in the
    placement group that captures what it submits."""
    if client.captured is not None and options.get("scheduling_strategy") is None and not options.get("label_selector"):
        options = {**options, "scheduling_strategy": client.captured}
    base = client.environment
    if not base:
        return options
    env = {**base, **(options.get("runtime_env") or {})}
    if client.worker is not None and env.get("working_dir") == base.get("working_dir"):
        env.pop("working_dir", None)  # its workers start as this one, where that directory may have another place
    if "env_vars" in base:
        env["env_vars"] = {**base["env_vars"], **(env.get("env_vars") or {})}
    return {**options, "runtime_env": env}


def check(options: Dict[str, Any]) -> None:
    """Raise for options that there are not, or that cannot be."""
    for name in options:
        if name not in _KNOWN:
            raise ValueError(f"there is no option {name!r} for tasks; there are: {', '.join(sorted(n for n in _KNOWN if n[0] != '_'))}")
    encode(options, "")
    returns_of(options, None)
    retry_of(options)


def _number(options: Dict[str, Any], name: str, low: float = 0, whole: bool = False) -> Any:
    v = options.get(name)
    if v is None:
        return None
    if isinstance(v, bool) or not isinstance(v, (int, float)) or whole and int(v) != v or not low <= v < 1e15:
        limits = f"at least {low:g}" if not isinstance(v, (int, float)) or v < 1e15 else f"below {1e15:g}"
        raise ValueError(f"{name} is {v!r}; it must be a {'whole ' if whole else ''}number, {limits}")
    return v


def encode(options: Dict[str, Any], name: str) -> bytes:
    """Options as frames have them: docs/tasks.md section 5."""
    out: Dict[str, Any] = {}
    if name:
        out["name"] = name
    for key, what in (("num_cpus", "cpu"), ("num_gpus", "gpu")):
        v = _number(options, key)
        if v is not None:
            out[what] = round(v * _UNIT)
    for key, what, low in (("memory", "memory", 0), ("max_retries", "max_retries", -1), ("priority", "priority", -1e9), ("max_calls", "max_calls", 0), ("_generator_backpressure_num_objects", "backpressure", -1)):
        v = _number(options, key, low, True)
        if v is not None and (v > 0 or key in ("max_retries", "priority")):
            out[what] = int(v)
    resources = dict(options.get("resources") or {})
    if options.get("accelerator_type"):
        resources["accelerator_type:" + options["accelerator_type"]] = 0.001
    for k in resources:
        if k in ("CPU", "GPU", "cpu", "gpu", "memory"):
            raise ValueError(f"resources has {k}: give it as num_cpus, num_gpus or memory")
    if resources:
        out["resources"] = {str(k): round(_number(resources, k) * _UNIT) for k in sorted(resources)}
    strategy = scheduling.encode(options.get("scheduling_strategy"), options.get("label_selector"))
    if strategy is not None:
        out["strategy"] = strategy
        if strategy[0] == "group" and name and isinstance(options["scheduling_strategy"], scheduling.PlacementGroupSchedulingStrategy):
            options["scheduling_strategy"].check(out)
    out.update(environment(options.get("runtime_env")))
    seconds = _number(options, "time")
    if seconds:
        out["time"] = int(seconds * 1e9)
    for key in ("language", "program"):
        if options.get(key):
            out[key] = str(options[key])
    return _pack.pack(out)


def environment(env: Any) -> Dict[str, Any]:
    """A runtime_env as frames have it."""
    out: Dict[str, Any] = {}
    if not env:
        return out
    if not isinstance(env, dict):
        raise ValueError(f"runtime_env is {env!r}, not a dict")
    for key, v in env.items():
        if key == "env_vars":
            if not isinstance(v, dict) or not all(isinstance(a, str) and isinstance(b, str) for a, b in v.items()):
                raise ValueError("runtime_env: env_vars must be a dict of strings")
            out["env"] = dict(sorted(v.items()))
        elif key == "working_dir":
            path = os.path.abspath(os.fspath(v))
            if not os.path.isdir(path):
                raise ValueError(f"runtime_env: the working_dir {os.fspath(v)!r} is not a directory")
            out["working_dir"] = path
        elif key in ("config", "_ray_release", "_ray_commit"):
            continue
        else:
            raise Error("unbuilt", f"runtime_env: {key}: not in this version", ["there are env_vars and working_dir; install packages where the workers run"])
    return out


def returns_of(options: Dict[str, Any], function: Any) -> Tuple[int, Optional[str]]:
    """How many results a task has, and how they are given."""
    n = options.get("num_returns")
    if n is None:
        n = "streaming" if inspect.isgeneratorfunction(function) else 1
    if n == "streaming":
        return f.STREAM, None
    if n == "dynamic":
        return 1, "dynamic"
    if isinstance(n, bool) or not isinstance(n, int) or not 0 <= n <= f.MANY_MAX:
        raise ValueError(f"num_returns is {n!r}; it must be a number up to {f.MANY_MAX}, 'streaming' or 'dynamic'")
    return n, None


def look_ahead(options: Dict[str, Any]) -> int:
    """How many results of a stream are asked for before they are taken: what is asked for
    does not count as waiting to be taken."""
    return 1 if (options.get("_generator_backpressure_num_objects") or 0) > 0 else 8


def retry_of(options: Dict[str, Any]) -> Union[None, bool, bytes]:
    """Which exceptions a worker is to have the task run again for."""
    r = options.get("retry_exceptions")
    if r is None or r is False:
        return None
    if r is True:
        return True
    kinds = tuple(r) if isinstance(r, (list, tuple)) else ()
    if not kinds or not all(isinstance(k, type) and issubclass(k, BaseException) for k in kinds):
        raise ValueError(f"retry_exceptions is {r!r}; it must be True, False or a list of exception classes")
    data: bytes = _serial._cloudpickle().dumps(kinds, 5)
    pickle.loads(data)
    return data
