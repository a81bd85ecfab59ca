"""Actors: classes whose instances live in processes of their own, and handles of them."""

from __future__ import annotations

import hashlib
import inspect
import os
import pickle
import time
from typing import Any, Callable, Dict, List, Optional, Tuple, Type, TypeVar

from . import _client, _pack, _remote, _serial
from . import _frames as f
from ._actor_worker import exit_actor as exit_actor
from ._actor_worker import is_async
from ._refs import ObjectRef, ObjectRefGenerator, with_index
from .exceptions import ActorAlreadyExistsError, PendingCallsLimitExceeded

C = TypeVar("C", bound=Callable[..., Any])

_ASYNC_CONCURRENCY = 1000
_MOMENT = 10.0
_MOST = {True: 1 << 24, False: (1 << 31) - 1}  # of calls at a time; of everything else

# Options of an actor that are no options of a task.
_OWN = {
    "name", "namespace", "lifetime", "get_if_exists", "max_restarts", "max_task_retries", "max_concurrency", "max_pending_calls",
    "concurrency_groups", "allow_out_of_order_execution",
}  # fmt: skip
_NOT = {"max_retries", "retry_exceptions", "max_calls", "num_returns", "_generator_backpressure_num_objects"}
_OF_METHODS = {
    "num_returns", "concurrency_group", "max_task_retries", "retry_exceptions", "_generator_backpressure_num_objects",
    "enable_task_events", "tensor_transport", "name",
}  # fmt: skip


def method(*args: Any, **options: Any) -> Any:
    """Options of an actor's method: @method(num_returns=2).

    num_returns, concurrency_group, max_task_retries, retry_exceptions.
    """
    if args or not options:
        raise TypeError("method is used as @method(option=value, ...)")
    _check_method(options)

    def mark(function: C) -> C:
        function.__ray_method_options__ = options  # type: ignore[attr-defined]
        return function

    return mark


def _check_method(options: Dict[str, Any]) -> None:
    for name in options:
        if name not in _OF_METHODS:
            raise ValueError(f"there is no option {name!r} for methods of actors; there are: {', '.join(sorted(n for n in _OF_METHODS if n[0] != '_'))}")
    _remote.returns_of(options, None)
    _remote.retry_of(options)


class _Info:
    """What is known of a class by its handles, in every process that has one."""

    def __init__(self, name: str, methods: Dict[str, Dict[str, Any]], options: Dict[str, Any]) -> None:
        self.name, self.methods, self.options = name, methods, options
        self.prepared: Dict[Any, "_Call"] = {}
        self.plain = False  # of another language: it is called with plain data

    def dump(self) -> bytes:
        """For other processes."""
        return _pickle((self.name, self.methods, self.options))

    @staticmethod
    def load(data: bytes) -> "_Info":
        """The counterpart of dump."""
        info = _known.get(data)
        if info is None:
            info = _known[data] = _Info(*pickle.loads(data)) if data[:1] == b"\x80" else _foreign(data)
        return info


_known: Dict[bytes, _Info] = {}


def _foreign(data: bytes) -> _Info:
    """What a program in another language says of its class: docs/actors.md section 2."""
    told = _pack.unpack(data)
    methods: Dict[str, Dict[str, Any]] = {}
    for name, m in told["methods"].items():
        methods[name] = {**({"num_returns": "streaming"} if m["stream"] else {}), **({"concurrency_group": m["group"]} if m["group"] else {})}
    info = _Info(str(told["class"]).lstrip("*"), methods, {})
    info.plain = True
    return info


def _pickle(value: Any) -> bytes:
    data: bytes = _serial._cloudpickle().dumps(value, 5)
    return data


class _Call(_remote._Prepared):
    """A method with its options as a client's frames have them."""

    __slots__ = ()

    def __init__(self, client: _client.Client, info: _Info, name: str, options: Dict[str, Any]) -> None:
        all_options = {**info.methods.get(name, {}), **options}
        retries = all_options.pop("max_task_retries", None)
        if retries is None:
            retries = info.options.get("max_task_retries") or 0
        text: Dict[str, Any] = {"name": all_options.get("name") or f"{info.name}.{name}", "method": name, "max_retries": int(retries), "cpu": 0}
        if all_options.get("concurrency_group"):
            text["group"] = str(all_options["concurrency_group"])
        if info.plain:
            text["plain"] = True
        window = all_options.get("_generator_backpressure_num_objects") or 0
        if window > 0:
            text["backpressure"] = int(window)
        self.client, self.function, self.name, self.id, self.held = client, None, str(text["name"]), b"", []
        self.shape = client.shape(_pack.pack(text))
        stream = info.methods.get(name, {}).get("num_returns") == "streaming"
        self.returns, self.how = _remote.returns_of({"num_returns": "streaming" if stream else 1, **all_options}, None)
        self.retry = _remote.retry_of(all_options)
        self.ahead = _remote.look_ahead(all_options)
        self.empty = b"" if self.retry is None and self.how is None else self._payload((), {}, []).joined()


class ActorMethod:
    """A method of an actor: remote() calls it."""

    __slots__ = ("_handle", "_name", "_options")

    def __init__(self, handle: "ActorHandle", name: str, options: Optional[Dict[str, Any]] = None) -> None:
        self._handle, self._name, self._options = handle, name, options

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"{self._name} is a method of an actor: call {self._name}.remote(...)")

    def options(self, **options: Any) -> "ActorMethod":
        """The same method with other options for its calls."""
        _check_method(options)
        return ActorMethod(self._handle, self._name, {**(self._options or {}), **options})

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Call it; does not wait. What it gives is a reference, as of a task."""
        return self._handle._call(self._name, self._options, args, kwargs)

    def bind(self, *args: Any, **kwargs: Any) -> Any:
        """A node of a graph of calls: launcher.dag."""
        from . import dag

        return dag.method_node(self._handle, self._name, self._options or {}, args, kwargs)

    def __repr__(self) -> str:
        return f"ActorMethod({self._handle._info.name}.{self._name})"


class ActorHandle:
    """A handle of an actor. It can be passed to tasks and actors; the actor ends when
    there is none any more, unless it is detached."""

    def __init__(self, ref: ObjectRef[Any], info: _Info, meta: bytes) -> None:
        self._ref, self._info, self._meta = ref, info, meta
        self._id = with_index(ref._id, 0)
        self._open: Optional[List[ObjectRef[Any]]] = [] if (info.options.get("max_pending_calls") or -1) > 0 else None

    @property
    def _actor_id(self) -> "ActorID":
        return ActorID(self._id)

    @property
    def _ray_actor_id(self) -> "ActorID":
        return ActorID(self._id)

    def __getattr__(self, name: str) -> ActorMethod:
        if name in self._info.methods or name in ("__ray_terminate__", "__ray_ready__", "__ray_call__"):
            return ActorMethod(self, name)
        raise AttributeError(f"actor {self._info.name} has no method {name!r}")

    def __dir__(self) -> List[str]:
        return list(self._info.methods)

    def _call(self, name: str, options: Optional[Dict[str, Any]], args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Any:
        client = _client._current or _client.connected()
        if self._ref._home is not client:
            _remote.own(client, self._ref)
        if options is None:
            p = self._info.prepared.get(name)
            if p is None or p.client is not client:
                p = self._info.prepared[name] = _Call(client, self._info, name, {})
        else:
            p = _Call(client, self._info, name, options)
        if self._open is not None:
            self._make_room(client)
        if kwargs or args and self._info.methods.get(name, {}).get("signature"):
            _bind(self._info, name, args, kwargs)
        if self._info.plain:
            if kwargs:
                raise TypeError(f"{self._info.name}.{name} is a method of an actor in another language: it takes positional arguments only")
            made = _remote.call_plain(client, p.name, self._id, p.shape, p.returns, f.SUBMIT_CALL, args, p.ahead)
        else:
            made = p.call(self._id, f.SUBMIT_CALL, args, kwargs)
        if self._open is not None and type(made) is ObjectRef:
            self._open.append(made)
        return made

    def _make_room(self, client: _client.Client) -> None:
        most = int(self._info.options["max_pending_calls"])
        pending = self._open or []
        if len(pending) >= most:
            client.wait(pending, len(pending), 0, False, False)
            pending = self._open = [r for r in pending if r._id not in client.values]
        if len(pending) >= most:
            raise PendingCallsLimitExceeded(f"{len(pending)} calls of this handle of {self._info.name} are open, as many as max_pending_calls allows")

    def __reduce__(self) -> Any:
        return (_load, (self._ref, self._meta))

    def __hash__(self) -> int:
        return hash(self._id)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActorHandle) and other._id == self._id

    def __repr__(self) -> str:
        return f"Actor({self._info.name}, {self._id.hex()})"


class ActorID:
    """The id of an actor."""

    __slots__ = ("_id",)

    def __init__(self, id: bytes) -> None:
        self._id = id

    def hex(self) -> str:
        """In hexadecimal."""
        return self._id.hex()

    def binary(self) -> bytes:
        """16 bytes."""
        return self._id

    def is_nil(self) -> bool:
        """Whether it is of no actor; it never is."""
        return False

    def __hash__(self) -> int:
        return hash(self._id)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActorID) and other._id == self._id

    def __repr__(self) -> str:
        return f"ActorID({self._id.hex()})"


def _load(ref: ObjectRef[Any], meta: bytes) -> ActorHandle:
    return ActorHandle(ref, _Info.load(meta), meta)


def _bind(info: _Info, name: str, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> None:
    """Raise TypeError for arguments that the method does not take."""
    signature = info.methods[name].get("signature") if name in info.methods else None
    if signature is not None:
        try:
            signature.bind(*args, **kwargs)
        except TypeError as e:
            raise TypeError(f"{info.name}.{name}: {e}") from None


def _methods(made: Type[Any]) -> Dict[str, Dict[str, Any]]:
    """The methods of a class with their options."""
    out: Dict[str, Dict[str, Any]] = {}
    for name, m in inspect.getmembers(made, callable):
        if name.startswith("__") and name != "__call__" or inspect.isclass(m):
            continue
        if name == "__call__" and "__call__" not in {k for c in made.__mro__[:-1] for k in vars(c)}:
            continue
        options = dict(getattr(m, "__ray_method_options__", {}))
        if (inspect.isgeneratorfunction(m) or inspect.isasyncgenfunction(m)) and "num_returns" not in options:
            options["num_returns"] = "streaming"
        out[name] = options
    return out


class ActorClass:
    """A class whose remote() makes an actor. The decorator remote makes it."""

    def __init__(self, made: Type[Any], options: Dict[str, Any]) -> None:
        self._class, self._options = made, options
        self.__name__, self.__qualname__, self.__module__, self.__doc__ = made.__name__, made.__qualname__, made.__module__, made.__doc__
        self._code: Optional[Tuple[bytes, List[ObjectRef[Any]]]] = None
        _check(options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"{self.__name__} is an actor class: call {self.__name__}.remote(...) to make an actor")

    def __mro_entries__(self, bases: Any) -> Any:
        raise TypeError(f"a class cannot be derived from the actor class {self.__name__}: derive from the plain class, and make both remote")

    def options(self, **options: Any) -> "ActorClass":
        """The same class with other options for its actors."""
        other = ActorClass(self._class, {**self._options, **options})
        other._code = self._code
        return other

    def remote(self, *args: Any, **kwargs: Any) -> ActorHandle:
        """Make an actor; does not wait until it is there. Its constructor gets the arguments."""
        client = _client.connected()
        o = self._options
        try:
            inspect.signature(self._class).bind(*args, **kwargs)
        except TypeError as e:
            raise TypeError(f"the constructor of {self.__name__}: {e}") from None
        except ValueError:  # it has no signature
            pass
        info = _Info(self.__name__, _methods(self._class), {k: o[k] for k in ("max_task_retries", "max_pending_calls") if o.get(k) is not None})
        meta = info.dump()
        info = _Info.load(meta)
        if o.get("name"):
            space = o.get("namespace") or own_namespace(client)
            number, id = client.reserve()
            taken: Any = None
            while True:
                if taken or o.get("get_if_exists"):
                    there = _find(client, space, o["name"], taken)
                    if there is not None and o.get("get_if_exists"):
                        return there
                    if there is not None:
                        raise ActorAlreadyExistsError(f"the name {o['name']!r} is taken in namespace {space!r}: use another, get_if_exists=True, or get_actor")
                taken = client.ask("name_actor", space, o["name"], id, meta)
                if not taken:
                    break
        else:
            space, number = "", 0
        try:
            p = _Creation(client, self, o, space, meta)
            task = p.create(args, kwargs, number)
        except BaseException:
            if number:  # it has a name already, which others may want
                client.ask("unname_actor", id)
            raise
        return ActorHandle(client.item(with_index(task, 1)), info, meta)

    def bind(self, *args: Any, **kwargs: Any) -> Any:
        """A node of a graph of calls: launcher.dag."""
        from . import dag

        return dag.ClassNode(self, args, kwargs)

    def __reduce__(self) -> Any:
        return (ActorClass, (self._class, self._options))

    def __repr__(self) -> str:
        return f"ActorClass({self.__name__})"


class _Creation(_remote._Prepared):
    """A creation as a client's frames have it."""

    __slots__ = ()

    def __init__(self, client: _client.Client, made: ActorClass, options: Dict[str, Any], space: str, meta: bytes) -> None:
        if made._code is None or any(r._home is not client for r in made._code[1]):
            made._code = _serial.dump_function(made._class)
        code, self.outside = made._code
        self.client, self.function, self.name = client, made._class, made.__name__
        self.held = [_remote.own(client, r) for r in self.outside]
        self.id = hashlib.sha256(b"python\0" + code).digest()[:16]
        client.function(self.id, made.__name__, code)
        text = _remote.encode(_remote.inherit(client, {k: v for k, v in options.items() if k not in _OWN}), made.__name__)
        told = _pack.unpack(text)
        told["max_retries"] = int(options.get("max_restarts") or 0)
        told["actor"] = _encode(options, made._class, space, meta)
        self.shape = client.shape(_pack.pack(told))
        self.returns, self.how, self.retry, self.ahead, self.empty = 0, None, None, 1, b""

    def create(self, args: Tuple[Any, ...], kwargs: Dict[str, Any], number: int) -> bytes:
        """Write it; the actor's id."""
        if not number:
            number, _ = self.client.reserve()
        client = self.client
        if not args and not kwargs:
            return client.submit(self.id, self.shape, 0, 0, [], self.held, b"", number)[0]
        return self.with_arguments(self.id, 0, args, kwargs, number)[0]  # type: ignore[no-any-return]


def _encode(options: Dict[str, Any], made: Type[Any], space: str, meta: bytes) -> Dict[str, Any]:
    """The options that only actors have: docs/actors.md section 2."""
    concurrency = options.get("max_concurrency")
    if concurrency is None:
        concurrency = _ASYNC_CONCURRENCY if is_async(made) else 1
    out: Dict[str, Any] = {"concurrency": int(concurrency)}
    groups = _groups(options)
    if groups:
        out["groups"] = {str(k): int(v) for k, v in sorted(groups.items())}
    if options.get("allow_out_of_order_execution"):
        out["unordered"] = True
    if options.get("lifetime") == "detached":
        out["detached"] = True
    if not options.get("max_task_retries"):
        out["exclusive"] = True
    if options.get("name"):
        out["namespace"], out["name"] = space, str(options["name"])
    out["meta"] = meta
    return out


def _groups(options: Dict[str, Any]) -> Dict[str, Any]:
    groups = options.get("concurrency_groups") or {}
    if isinstance(groups, list) and all(isinstance(g, dict) and {"name", "max_concurrency"} <= set(g) for g in groups):  # Ray takes both
        return {str(g["name"]): g["max_concurrency"] for g in groups}
    if not isinstance(groups, dict):
        raise ValueError(f"concurrency_groups is {groups!r}; it must be a dict of how many calls each group runs at a time, as in {{'io': 2}}")
    return dict(groups)


def _check(options: Dict[str, Any]) -> None:
    for name in options:
        if name in _NOT or name not in _OWN and name not in _remote._KNOWN:
            raise ValueError(f"there is no option {name!r} for actors; there are: {', '.join(sorted(n for n in (_OWN | _remote._KNOWN) - _NOT if n[0] != '_'))}")
    _remote.check({k: v for k, v in options.items() if k not in _OWN})
    for name, low in (("max_restarts", -1), ("max_task_retries", -1), ("max_concurrency", 1), ("max_pending_calls", -1)):
        _remote._number(options, name, low, True)
        if (options.get(name) or 0) > _MOST[name.endswith("concurrency")]:
            raise ValueError(f"{name} is {options[name]!r}; at most {_MOST[name.endswith('concurrency')]} makes sense")
    for group, calls in _groups(options).items():
        if isinstance(calls, bool) or not isinstance(calls, int) or not 1 <= calls <= _MOST[True]:
            raise ValueError(f"concurrency group {group!r} runs {calls!r} calls at a time; it must be a whole number, from 1 to {_MOST[True]}")
    if options.get("lifetime") not in (None, "detached", "non_detached"):
        raise ValueError(f"lifetime is {options['lifetime']!r}; there are None, 'non_detached' and 'detached'")
    called = options.get("name")
    if called is not None and (not isinstance(called, str) or not called):
        raise ValueError(f"name is {called!r}; it must be a string that is not empty")
    if not isinstance(options.get("namespace") or "", str):
        raise ValueError(f"namespace is {options['namespace']!r}; it must be a string")
    if options.get("get_if_exists") and not called:
        raise ValueError("get_if_exists needs a name")
    if (options.get("max_task_retries") or 0) != 0 and options.get("max_restarts") == 0:
        raise ValueError("max_task_retries needs max_restarts: an actor that is not restarted cannot be called again")


def own_namespace(client: _client.Client) -> str:
    """The namespace of this program's actors."""
    return os.environ.get("LAUNCHER_NAMESPACE") or client.environment.get("env_vars", {}).get("LAUNCHER_NAMESPACE") or f"job {client.job}"


def _named(client: _client.Client, found: List[Any]) -> ActorHandle:
    id, meta = bytes(found[0]), bytes(found[1])
    return ActorHandle(client.hold(with_index(id, 1)), _Info.load(meta), meta)


def _find(client: _client.Client, space: str, name: str, found: Any = None) -> Optional[ActorHandle]:
    """The actor of a name, if there is one. A name is taken a moment before its actor is
    submitted, and let go of a moment after it is over: who finds it then looks again."""
    end = time.monotonic() + _MOMENT
    while True:
        found = found or client.ask("find_actor", space, name)
        if not found:
            return None
        handle = _named(client, found)
        client.settle(handle._ref, _MOMENT)
        over = client.kind(handle._ref) == f.FAILED or handle._id in client.killed
        if not over or time.monotonic() > end:
            return handle
        del handle
        found = None
        time.sleep(0.005)


def get_actor(name: str, namespace: Optional[str] = None) -> ActorHandle:
    """The handle of the actor of a name; ValueError when there is none."""
    client = _client.connected()
    space = namespace if namespace is not None else own_namespace(client)
    if not name:
        raise ValueError("get_actor needs a name that is not empty")
    found = _find(client, space, name)
    if found is None:
        raise ValueError(f"there is no actor named {name!r} in namespace {space!r}: `launcher actors` lists them")
    return found


def kill(actor: ActorHandle, *, no_restart: bool = True) -> None:
    """End an actor's process at once, what it runs with it. With no_restart it is dead."""
    if not isinstance(actor, ActorHandle):
        raise ValueError(f"kill takes the handle of an actor, not {type(actor).__name__}: cancel is for tasks")
    client = _client.connected()
    _remote.own(client, actor._ref)
    client.kill(actor._id, no_restart)


def named_actors(all_namespaces: bool = False) -> List[Any]:
    """The names of actors: of this program's namespace, or as dicts of all."""
    client = _client.connected()
    found = client.ask("named_actors", None if all_namespaces else own_namespace(client))
    if all_namespaces:
        return [{"namespace": str(s), "name": str(n)} for s, n in found]
    return [str(n) for _, n in found]


__all__ = ["ActorClass", "ActorHandle", "ActorID", "ActorMethod", "ObjectRefGenerator", "exit_actor", "get_actor", "kill", "method", "named_actors"]
