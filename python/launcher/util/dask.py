"""A scheduler for dask graphs: each task of the graph is a task of the cluster."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Set, Tuple

import launcher


def ray_dask_get(dsk: Any, keys: Any, **options: Any) -> Any:
    """Compute keys of a graph: of dask's, or a plain dict of values and (function,
    argument, ...) tuples.

    keys: one, or nested lists of them; the result has the same shape. ray_remote_args:
    options of the tasks. ray_persist: gives references.
    """
    graph = _plain(dsk)
    remote_args: Dict[str, Any] = dict(options.get("ray_remote_args") or {})
    refs: Dict[Any, Any] = {}
    for key in _order(graph, keys):
        refs[key] = _submit(graph, key, refs, remote_args)
    if options.get("ray_persist"):
        return _shaped(keys, refs)
    wanted = list(dict.fromkeys(_flat(keys)))
    values = dict(zip(wanted, launcher.get([refs[k] if isinstance(refs[k], launcher.ObjectRef) else launcher.put(refs[k]) for k in wanted])))
    return _shaped(keys, values)


def ray_dask_get_sync(dsk: Any, keys: Any, **options: Any) -> Any:
    """Compute keys of a graph one task after the other, in this process."""
    graph = _plain(dsk)
    values: Dict[Any, Any] = {}
    for key in _order(graph, keys):
        names = _needs(graph, graph[key])
        values[key] = _compute(graph[key], names, *[values[n] for n in names])
    return _shaped(keys, values)


def _plain(dsk: Any) -> Dict[Any, Any]:
    made = dsk.__dask_graph__() if hasattr(dsk, "__dask_graph__") else dsk
    return dict(made)


def _flat(keys: Any) -> List[Any]:
    return [k for part in keys for k in _flat(part)] if isinstance(keys, list) else [keys]


def _shaped(keys: Any, of: Dict[Any, Any]) -> Any:
    return tuple(_shaped(k, of) for k in keys) if isinstance(keys, list) else of[keys]


def _is_node(x: Any) -> bool:
    """Whether it is a node of a graph as newer dasks have them."""
    return hasattr(x, "dependencies") and hasattr(x, "key") and callable(x)


def _needs(graph: Dict[Any, Any], x: Any) -> List[Any]:
    """The keys that a task, or an argument, needs."""
    found: Dict[Any, None] = {}

    def look(x: Any) -> None:
        if _is_node(x):
            found.update(dict.fromkeys(x.dependencies))
        elif isinstance(x, tuple) and x and callable(x[0]):
            for a in x[1:]:
                look(a)
        elif isinstance(x, list):
            for a in x:
                look(a)
        elif isinstance(x, dict):
            for a in x.values():
                look(a)
        elif _hashable(x) and x in graph:
            found[x] = None

    look(x)
    return list(found)


def _hashable(x: Any) -> bool:
    try:
        hash(x)
    except TypeError:
        return False
    return True


def _order(graph: Dict[Any, Any], keys: Any) -> List[Any]:
    """The keys that must be computed, each after what it needs."""
    out: List[Any] = []
    done: Set[Any] = set()
    open_: Set[Any] = set()
    stack: List[Tuple[Any, bool]] = [(k, False) for k in reversed(_flat(keys))]
    while stack:
        key, seen = stack.pop()
        if seen:
            open_.discard(key)
            done.add(key)
            out.append(key)
            continue
        if key in done:
            continue
        if key in open_:
            raise ValueError(f"the graph has a cycle at {key!r}")
        if key not in graph:
            raise KeyError(f"{key!r} is not in the graph")
        open_.add(key)
        stack.append((key, True))
        stack += [(n, False) for n in reversed(_needs(graph, graph[key])) if n not in done]
    return out


def _submit(graph: Dict[Any, Any], key: Any, refs: Dict[Any, Any], remote_args: Dict[str, Any]) -> Any:
    """Have a key computed; a reference, or the value where there is nothing to compute."""
    x = graph[key]
    names = _needs(graph, x)
    if not _is_node(x) and not (isinstance(x, tuple) and x and callable(x[0])):
        if not names:
            return x
        if _hashable(x) and x in graph:  # another name of the same
            return refs[x]
    function = _remote.options(**{"name": f"dask:{_label(key)}", **remote_args})
    return function.remote(x, names, *[refs[n] for n in names])


def _label(key: Any) -> str:
    return str(key[0] if isinstance(key, tuple) and key else key)[:60]


def _compute(x: Any, names: List[Any], *values: Any) -> Any:
    """A task of a graph, with the values of what it needs."""
    of = dict(zip(names, values))

    def value(x: Any) -> Any:
        if _is_node(x):
            return x({n: of[n] for n in x.dependencies})
        if isinstance(x, tuple) and x and callable(x[0]):
            return x[0](*[value(a) for a in x[1:]])
        if isinstance(x, list):
            return [value(a) for a in x]
        if isinstance(x, dict):
            return {k: value(a) for k, a in x.items()}
        if _hashable(x) and x in of:
            return of[x]
        return x

    return value(x)


_remote: Any = launcher.remote(_compute)

def enable_dask_on_ray(shuffle: Optional[str] = "tasks", use_shuffle_optimization: bool = True) -> Any:
    """Make it dask's scheduler, for the program or for a with block."""
    import dask  # type: ignore[import-not-found,import-untyped,unused-ignore]

    given: Dict[str, Any] = {"scheduler": ray_dask_get}
    if shuffle:
        given["dataframe.shuffle.method"] = shuffle
    return dask.config.set(given)


def disable_dask_on_ray() -> Any:
    """Make dask's own scheduler the scheduler again."""
    import dask

    return dask.config.set(scheduler=None, shuffle=None)


__all__ = ["disable_dask_on_ray", "enable_dask_on_ray", "ray_dask_get", "ray_dask_get_sync"]
