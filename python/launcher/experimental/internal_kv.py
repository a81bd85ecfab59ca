"""A small store of keys and values, kept by an actor for as long as the cluster is up."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Union

import launcher

_core: Any = launcher
_NAME = "launcher internal_kv"

Key = Union[str, bytes]


class _Store:
    """The actor."""

    def __init__(self) -> None:
        self.spaces: Dict[bytes, Dict[bytes, bytes]] = {}

    def put(self, space: bytes, key: bytes, value: bytes, overwrite: bool) -> bool:
        of = self.spaces.setdefault(space, {})
        there = key in of
        if overwrite or not there:
            of[key] = value
        return there

    def get(self, space: bytes, key: bytes) -> Optional[bytes]:
        return self.spaces.get(space, {}).get(key)

    def delete(self, space: bytes, key: bytes, prefix: bool) -> int:
        of = self.spaces.get(space, {})
        gone = [k for k in of if (k.startswith(key) if prefix else k == key)]
        for k in gone:
            del of[k]
        return len(gone)

    def keys(self, space: bytes, prefix: bytes) -> List[bytes]:
        return [k for k in self.spaces.get(space, {}) if k.startswith(prefix)]


def _store() -> Any:
    return _core.remote(num_cpus=0)(_Store).options(name=_NAME, namespace=_NAME, lifetime="detached", get_if_exists=True).remote()


def _bytes(x: Optional[Key]) -> bytes:
    return x.encode() if isinstance(x, str) else bytes(x or b"")


def _internal_kv_initialized() -> bool:
    """Whether the program is connected."""
    return bool(_core.is_initialized())


def _internal_kv_put(key: Key, value: Key, overwrite: bool = True, *, namespace: Optional[Key] = None) -> bool:
    """Keep a value; whether there was one."""
    return bool(_core.get(_store().put.remote(_bytes(namespace), _bytes(key), _bytes(value), overwrite)))


def _internal_kv_get(key: Key, *, namespace: Optional[Key] = None) -> Optional[bytes]:
    """The value of a key, or None."""
    found: Optional[bytes] = _core.get(_store().get.remote(_bytes(namespace), _bytes(key)))
    return found


def _internal_kv_exists(key: Key, *, namespace: Optional[Key] = None) -> bool:
    """Whether there is such a key."""
    return _internal_kv_get(key, namespace=namespace) is not None


def _internal_kv_del(key: Key, *, del_by_prefix: bool = False, namespace: Optional[Key] = None) -> int:
    """Drop a key, or all that begin so; how many."""
    return int(_core.get(_store().delete.remote(_bytes(namespace), _bytes(key), del_by_prefix)))


def _internal_kv_list(prefix: Key, *, namespace: Optional[Key] = None) -> List[bytes]:
    """The keys that begin so."""
    return list(_core.get(_store().keys.remote(_bytes(namespace), _bytes(prefix))))


__all__ = ["_internal_kv_del", "_internal_kv_exists", "_internal_kv_get", "_internal_kv_initialized", "_internal_kv_list", "_internal_kv_put"]
