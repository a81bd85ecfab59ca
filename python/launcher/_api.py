"""init, get, put, wait and their kin: Ray's names, with Ray's behaviour."""

from __future__ import annotations

import atexit
import inspect
import json
import os
import socket
import subprocess
import sys
import threading
import time
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, TypeVar, Union, overload

from . import _actors, _client, _remote
from . import _frames as f
from ._cluster import away, find, hint_away, start_local
from ._http import Error, socket_path
from ._process import hello
from ._refs import ObjectRef, ObjectRefGenerator
from ._remote import NamedFunction, RemoteFunction

T = TypeVar("T")
R = TypeVar("R")

_lock = threading.RLock()
_local: Optional["subprocess.Popen[bytes]"] = None  # the cluster of this program
_where = ""  # the socket of the last init
_JOIN = 30.0

# What Ray's init takes and means nothing here.
_IGNORED = {
    "include_dashboard", "dashboard_host", "dashboard_port", "configure_logging", "logging_level", "logging_format", "logging_config",
    "allow_multiple", "_temp_dir", "_system_config", "_node_ip_address", "_metrics_export_port", "_tracing_startup_hook", "_memory",
    "enable_resource_isolation", "log_to_driver_event_level", "job_config", "storage",
}  # fmt: skip


class NoCluster(Error, ConnectionError):
    """The cluster that init was to connect to is not up."""

    def __init__(self, msg: str, hints: Optional[List[str]] = None) -> None:
        super().__init__("not-found", msg, hints)

    def __reduce__(self) -> Any:
        return (NoCluster, (self.msg, self.hints))


class Context:
    """What init gives: where the program is connected to."""

    def __init__(self, client: _client.Client) -> None:
        self.dashboard_url = ""  # there is none
        self.address_info: Dict[str, str] = {"address": client.path, "cluster": client.cluster, "node_id": client.node, "job_id": client.job}

    def __getitem__(self, name: str) -> str:
        return self.address_info[name]

    def disconnect(self) -> None:
        """shutdown()."""
        shutdown()

    def __enter__(self) -> "Context":
        return self

    def __exit__(self, *exc: Any) -> None:
        shutdown()

    def __repr__(self) -> str:
        return f"<launcher: node {self.address_info['node_id']} of cluster {self.address_info['cluster']}>"


def init(
    address: Optional[str] = None,
    *,
    num_cpus: Optional[float] = None,
    num_gpus: Optional[float] = None,
    resources: Optional[Dict[str, float]] = None,
    object_store_memory: Optional[int] = None,
    namespace: Optional[str] = None,
    runtime_env: Optional[Dict[str, Any]] = None,
    ignore_reinit_error: bool = False,
    log_to_driver: bool = True,
    priority: Optional[int] = None,
    limits: Optional[Dict[str, float]] = None,
    **ignored: Any,
) -> Context:
    """Connect this program to a cluster; the first call that needs one does it too.

    In a run: the run's cluster. Else the one that address names (a cluster, or the
    socket of an agent; "auto": any that is up), LAUNCHER_CLUSTER names, or that is the
    only one up here. With none up a cluster on this machine is started, for as long as
    the program lives; the numbers say how large it is.

    priority is that of all tasks and actors of the program which name none: higher goes
    first (default: that of its run, else 0). limits is the most that they may use at a
    time in the whole cluster, all together: {"cpu": 8, "gpu": 1, "memory": bytes, ...};
    in a run, what `launcher run --limit` says goes before it.

    Raises launcher.Error when there is none, RuntimeError when it is connected already.
    """
    global _local, _where
    unknown = set(ignored) - _IGNORED
    if unknown:
        raise TypeError(f"init() has no parameter {sorted(unknown)[0]!r}")
    _remote.environment(runtime_env)
    bounds = _limits(limits)
    with _lock:
        client = _client.current()
        if client is not None and not client.closed:
            if not ignore_reinit_error:
                raise RuntimeError("launcher.init() was called already: call launcher.shutdown() before, or init(ignore_reinit_error=True)")
            return Context(client)
        process: Optional["subprocess.Popen[bytes]"] = None
        where = find(address)
        if not where:
            others = away() if address != "local" else []
            if address not in (None, "local"):
                raise NoCluster(f"there is no cluster for address={address!r}", [hint_away(others)] if others else ["bring one up (launcher up SPEC), or leave address out"])
            if others:
                print(f"launcher: {hint_away(others)}; this one runs in a cluster of its own", file=sys.stderr)
            process, where = start_local(num_cpus, num_gpus, resources, object_store_memory)
        elif num_cpus is not None or num_gpus is not None or resources:
            if "LAUNCHER_SOCKET" not in os.environ and process is None and address not in (None, "auto"):
                raise ValueError("num_cpus, num_gpus and resources are for a cluster that init starts; one is up already")
        try:
            client = _connect(where, log_to_driver, priority, bounds)
        except BaseException:
            if process is not None:
                _end(process)
            raise
        as_ray = sys.modules.get("launcher.as_ray")
        client.environment = as_ray.for_workers(runtime_env) if as_ray is not None else dict(runtime_env or {})
        if namespace:  # for the program's workers too
            client.environment["env_vars"] = {**client.environment.get("env_vars", {}), "LAUNCHER_NAMESPACE": namespace}
        _local, _where = process, where
        _client.use(client)
        return Context(client)


def _limits(given: Optional[Dict[str, float]]) -> Optional[Dict[str, int]]:
    """Limits as the agent takes them."""
    for name, v in (given or {}).items():
        if name in ("CPU", "GPU", "num_cpus", "num_gpus") or not isinstance(v, (int, float)) or v < 0:
            raise ValueError(f"limits={{{name!r}: {v!r}}}: give amounts by name: cpu, gpu, memory (bytes), or a resource of the cluster's own")
    return {name: int(v) if name == "memory" else round(v * 10_000) for name, v in given.items()} if given else None


def _connect(where: str, log: bool, priority: Optional[int], limits: Optional[Dict[str, int]]) -> _client.Client:
    end = time.monotonic() + _JOIN
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(socket_path(where))
            return _client.Client(sock, where, hello(1, name=_name(), priority=priority, limits=limits), None, log)
        except (OSError, Error) as e:
            sock.close()
            refused = isinstance(e, Error) and e.kind not in ("unavailable", "lost")
            if refused or isinstance(e, FileNotFoundError) or time.monotonic() > end:
                if isinstance(e, Error):
                    raise
                raise Error("unavailable", f"no agent answers on {where}: {e}", ["the cluster may have been brought down"]) from e
            time.sleep(0.05)
        except BaseException:
            sock.close()
            raise


def _name() -> str:
    return os.path.basename(sys.argv[0]) if sys.argv and sys.argv[0] else "python"


def auto_init() -> _client.Client:
    """The client of this process, connected now if it is not."""
    with _lock:
        client = _client.current()
        if client is None:
            init(_where if _forked else None)
            client = _client.current()
        assert client is not None
        return client


_forked = False


def _after_fork() -> None:
    global _lock, _local, _forked
    _lock = threading.RLock()
    _local = None  # the parent's
    _forked = bool(_where)


os.register_at_fork(after_in_child=_after_fork)


def shutdown() -> None:
    """End the connection, and the cluster if init started it. What was submitted ends."""
    global _local
    with _lock:
        client = _client.current()
        _client.use(None)
        if client is not None:
            client.close()
        process, _local = _local, None
        if process is not None:
            _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


atexit.register(shutdown)


def is_initialized() -> bool:
    """Whether the program is connected."""
    client = _client.current()
    return client is not None and not client.closed


# Tasks.


@overload
def remote(function: Callable[..., R]) -> RemoteFunction[R]: ...
@overload
def remote(**options: Any) -> Callable[[Callable[..., R]], RemoteFunction[R]]: ...


def remote(*args: Any, **options: Any) -> Any:
    """Make a function one that runs as a task: @remote, or @remote(num_cpus=2, ...).

    Options: num_cpus (1), num_gpus (fractions share a GPU), memory, resources,
    accelerator_type, num_returns (a number; "streaming", which generators have by
    themselves), max_retries (3; -1 without end), retry_exceptions (True or a list of
    classes), max_calls, name, runtime_env (env_vars, working_dir), scheduling_strategy,
    label_selector, priority, time (seconds that placement assumes).
    """
    if len(args) == 1 and not options and callable(args[0]):
        return _remote_of(args[0], {})
    if args or not options:
        raise TypeError("remote is used as @remote or as @remote(option=value, ...)")
    return lambda function: _remote_of(function, options)


def _remote_of(function: Any, options: Dict[str, Any]) -> Any:
    if inspect.isclass(function):
        return _actors.ActorClass(function, options)
    if isinstance(function, RemoteFunction):
        raise TypeError("the function is remote already")
    return RemoteFunction(function, options)


def function(name: str, language: str = "go", **options: Any) -> NamedFunction:
    """A function of a Go program (or a named Python function) to call by its name.

    program= is the Go binary that has it. It takes and gives plain data.
    """
    if language not in ("go", "python"):
        raise ValueError(f"language is {language!r}; there are 'go' and 'python'")
    return NamedFunction(language, name, options)


@overload
def get(refs: ObjectRef[T], *, timeout: Optional[float] = None) -> T: ...
@overload
def get(refs: Sequence[ObjectRef[T]], *, timeout: Optional[float] = None) -> List[T]: ...


def get(refs: Any, *, timeout: Optional[float] = None) -> Any:
    """Wait for the value of a reference, or of a list of them, and give it.

    numpy arrays and the like are read-only views of shared memory. What a task raised is
    raised here: exceptions.RayTaskError, which is also of the class of the cause. After
    timeout seconds: exceptions.GetTimeoutError.
    """
    if type(refs) is ObjectRef:
        return refs._home.get(refs, timeout)
    if isinstance(refs, ObjectRefGenerator):
        raise TypeError("get takes references: take them from the ObjectRefGenerator by next() or in a loop")
    graph = sys.modules.get("launcher._graph")
    if graph is not None and type(refs) is graph.CompiledDAGRef:
        return refs.get(timeout)
    if not isinstance(refs, (list, tuple)):
        raise ValueError(f"get takes an ObjectRef or a list of them, not {type(refs).__name__}")
    if not refs:
        return []
    client = _client.connected()
    ids = [r._id for r in refs if type(r) is ObjectRef and r._home is client]
    if len(ids) != len(refs):
        if graph is not None and any(type(r) is graph.CompiledDAGRef for r in refs):
            return graph.get_all(refs, timeout)
        ids = [_remote.own(client, r) if type(r) is ObjectRef else _no_ref(r) for r in refs]
    return client.get_all(ids, timeout)


def _no_ref(r: Any) -> Any:
    raise ValueError(f"a list for get or wait has ObjectRefs only, not {type(r).__name__}")


def put(value: T, *, copies: int = 1) -> ObjectRef[T]:
    """Make an object of a value. Large ones are copied once, into shared memory.

    copies: on how many nodes it is kept; with two it survives the loss of one.
    """
    if isinstance(value, ObjectRef):
        raise TypeError("put of an ObjectRef: it is an object already; put it inside a list to have a reference to a reference")
    client = _client._current or _client.connected()
    if copies != 1 and (isinstance(copies, bool) or not isinstance(copies, int) or copies < 1):
        raise ValueError(f"copies is {copies!r}; it must be a number, at least 1")
    return client.put(value, copies)


def create(shape: Union[int, Tuple[int, ...]], dtype: Any = "float64") -> Any:
    """A numpy array in the object memory, to be filled in place.

    put of it, or giving it as a task's result, makes it an object without a copy; it is
    read-only then. It has no contents to begin with.
    """
    from . import _create

    return _create.create(_client.connected(), shape, dtype)


class _Rest:
    """The list that wait gave last: what is known of it need not be looked at again."""

    refs: Optional[List[Any]] = None
    length = 0
    local = True


_rest = _Rest()


def wait(refs: List[ObjectRef[T]], *, num_returns: int = 1, timeout: Optional[float] = None, fetch_local: bool = True) -> Tuple[List[ObjectRef[T]], List[ObjectRef[T]]]:
    """Wait until num_returns objects are there: those, and the rest, both in order.

    After timeout seconds there may be fewer. With fetch_local their values come to this
    node. An ObjectRefGenerator in the list counts as there when next() of it would not wait.
    """
    if not isinstance(refs, list):
        raise TypeError(f"wait takes a list of ObjectRefs, not {type(refs).__name__}")
    client = _client._current or _client.connected()
    known = refs is _rest.refs and len(refs) == _rest.length and _rest.local == fetch_local
    streams: List[Any] = []
    if not known:
        ids = [_remote.own(client, r) if type(r) is ObjectRef else _stream(r, streams) for r in refs]
        if len(set(ids)) != len(ids):
            raise ValueError("wait takes a list of different ObjectRefs")
    if num_returns < 1 or num_returns > len(refs):
        raise ValueError(f"num_returns is {num_returns}, of {len(refs)} references")
    if timeout is not None and timeout < 0:
        raise ValueError(f"timeout is {timeout}; it must be 0 or more")
    if streams:
        places = _wait_streams(client, refs, num_returns, timeout, fetch_local)
    else:
        places = client.wait(refs, num_returns, timeout, fetch_local, known)
    if len(places) == 1:
        i = places[0]
        rest = refs[:i] + refs[i + 1 :]
    else:
        there = set(places)
        rest = [r for i, r in enumerate(refs) if i not in there]
    _rest.refs, _rest.length, _rest.local = None if streams else rest, len(rest), fetch_local
    return [refs[i] for i in places], rest


def _stream(r: Any, streams: List[Any]) -> Any:
    if not isinstance(r, ObjectRefGenerator):
        _no_ref(r)
    streams.append(r)
    return r


def _wait_streams(client: _client.Client, refs: List[Any], count: int, timeout: Optional[float], local: bool) -> List[int]:
    """wait's places where some of refs are streams: each stands for its next item."""
    looked: List[Any] = [r.peek() if isinstance(r, ObjectRefGenerator) else r for r in refs]
    over = [i for i, r in enumerate(looked) if r is None]
    open_ = [i for i, r in enumerate(looked) if r is not None]
    more = count - len(over)
    there = client.wait([looked[i] for i in open_], more, timeout, local, False) if more > 0 else []
    return sorted(over + [open_[i] for i in there])[:count]


def cancel(ref: Union[ObjectRef[Any], ObjectRefGenerator[Any]], *, force: bool = False, recursive: bool = True) -> None:
    """Cancel the task that makes an object, and with recursive what it submitted.

    A task that waits never begins; in one that runs TaskCancelledError is raised; with
    force its worker is killed. What has ended stays as it is.
    """
    if not isinstance(ref, (ObjectRef, ObjectRefGenerator)):
        raise TypeError(f"cancel takes an ObjectRef or an ObjectRefGenerator, not {type(ref).__name__}")
    home = ref._home
    home.cancel(bytes.fromhex(ref.task_id()), (f.CANCEL_FORCE if force else 0) | (f.CANCEL_RECURSIVE if recursive else 0))


# What there is.


def nodes() -> List[Dict[str, Any]]:
    """The nodes of the cluster, with Ray's keys: NodeID, Alive, Resources, Labels, ..."""
    return list(_client.connected().ask("nodes"))


def cluster_resources() -> Dict[str, float]:
    """What all nodes have, by name: CPU, GPU, memory, ..."""
    return _amounts(_client.connected().ask("cluster_resources"))


def available_resources() -> Dict[str, float]:
    """What is free now, by name."""
    return _amounts(_client.connected().ask("available_resources"))


def _amounts(table: Dict[str, Any]) -> Dict[str, float]:
    return {str(k): float(v) for k, v in table.items()}


def timeline(filename: Optional[str] = None) -> Optional[List[Dict[str, Any]]]:
    """What tasks ran when, as Chrome trace events; with filename, written there as JSON."""
    events = list(_client.connected().ask("timeline"))
    if filename is None:
        return events
    with open(filename, "w", encoding="utf-8") as to:
        json.dump(events, to)
    return None


def get_gpu_ids() -> List[Union[int, str]]:
    """The GPUs of this worker, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return [int(g) if g.isdigit() else g for g in named.split(",") if g]


class RuntimeContext:
    """Where this code runs."""

    def __init__(self, client: _client.Client) -> None:
        self._client = client

    def _order(self) -> Any:
        w = self._client.worker
        return w.current() if w is not None else None

    def _about(self, name: str) -> Any:
        order = self._order()
        return order.describe().get(name) if order is not None else None

    def get_job_id(self) -> str:
        """The job."""
        return str(self._client.job)

    def get_node_id(self) -> str:
        """The node."""
        return str(self._client.node)

    def get_task_id(self) -> Optional[str]:
        """The task; None in a driver."""
        order = self._order()
        return order.task.hex() if order is not None else None

    def get_task_name(self) -> Optional[str]:
        """What the task is called; None in a driver."""
        order = self._order()
        if order is None:
            return None
        function = self._client.worker.functions.get(order.function)
        return str(self._about("name") or (function.name if function else "")) or None

    def get_worker_id(self) -> str:
        """The worker, or the driver."""
        return f"{self._client.number:08x}{self._client.client:08x}"

    def get_attempt(self) -> int:
        """Which run of the task it is, from 1; 0 in a driver."""
        order = self._order()
        return order.attempt if order is not None else 0

    def _actor(self) -> Any:
        w = self._client.worker
        return w.actor if w is not None else None

    def get_actor_id(self) -> Optional[str]:
        """The actor that this process is; None elsewhere."""
        actor = self._actor()
        return actor.order.task.hex() if actor is not None else None

    def get_actor_name(self) -> Optional[str]:
        """Its name; None elsewhere, "" if it has none."""
        actor = self._actor()
        return str(actor.order.describe()["actor"].get("name") or "") if actor is not None else None

    @property
    def current_actor(self) -> Any:
        """A handle of the actor that this process is."""
        actor = self._actor()
        if actor is None:
            raise RuntimeError("this is no method of an actor")
        return actor.handle()

    def get_placement_group_id(self) -> Optional[str]:
        """The placement group that the task or actor runs in; None outside of any."""
        from ._groups import get_current_placement_group

        group = get_current_placement_group()
        return group.id if group is not None else None

    @property
    def should_capture_child_tasks_in_placement_group(self) -> bool:
        """Whether what is submitted from here runs in that group too."""
        return self._client.captured is not None

    @property
    def was_current_actor_reconstructed(self) -> bool:
        """Whether this is not the first life of the actor."""
        actor = self._actor()
        return actor is not None and actor.order.attempt > 1

    @property
    def namespace(self) -> str:
        """The namespace that names of actors are looked for in."""
        return _actors.own_namespace(self._client)

    def get_assigned_resources(self) -> Dict[str, float]:
        """What the task, or the actor, has been given, by name; empty in a driver."""
        out: Dict[str, float] = {}
        actor = self._actor()
        order = self._order() if actor is None else actor.order
        if order is None:
            return out
        about = order.describe()
        for key, name, otherwise in (("cpu", "CPU", 0 if actor else 10000), ("gpu", "GPU", 0)):
            amount = about.get(key)
            if amount is None:
                amount = otherwise
            if amount:
                out[name] = amount / 10000
        if about.get("memory"):
            out["memory"] = float(about["memory"])
        for name, amount in (about.get("resources") or {}).items():
            out[str(name)] = amount / 10000
        return out

    def get_accelerator_ids(self) -> Dict[str, List[str]]:
        """The accelerators of this worker by kind."""
        return {"GPU": [str(g) for g in get_gpu_ids()]}


def get_runtime_context() -> RuntimeContext:
    """Where this code runs: job, node, task, attempt, resources."""
    return RuntimeContext(_client.connected())
