"""Placement groups: room on nodes that is taken together, and kept for tasks and actors of the group."""

from __future__ import annotations

import time
from typing import Any, Dict, List, Optional

from . import _client, _pack, scheduling
from . import _frames as f
from ._refs import ObjectRef
from ._remote import RemoteFunction

_STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")
_UNIT = 10000
_ONCE = 30.0  # how long one question to the agent waits


class GroupID(str):
    """The id of a placement group: a string of hexadecimal digits, with what Ray's ids have."""

    __slots__ = ()

    def hex(self) -> str:
        """In hexadecimal."""
        return str(self)

    def binary(self) -> bytes:
        """16 bytes."""
        return bytes.fromhex(self)

    def is_nil(self) -> bool:
        """Whether it is of no group."""
        return not self


class PlacementGroup:
    """Bundles of resources, each on one node. placement_group makes it."""

    def __init__(self, id: bytes, bundle_cache: Optional[List[Dict[str, float]]] = None) -> None:
        self._id = id
        self._bundles = bundle_cache

    @staticmethod
    def empty() -> "PlacementGroup":
        """No group."""
        return PlacementGroup(b"")

    @property
    def id(self) -> "GroupID":
        """Its id."""
        return GroupID(self._id.hex())

    @property
    def is_empty(self) -> bool:
        """This stands for no group."""
        return not self._id

    @property
    def bundle_specs(self) -> List[Dict[str, float]]:
        """The resources of each bundle."""
        if self._bundles is None:
            found = _client.connected().ask("groups", "look", self._id)
            if not found:
                raise ValueError(f"there is no placement group {self.id}")
            self._bundles = [{k: float(v) for k, v in b.items()} for b in found[0]["bundles"]]
        return self._bundles

    @property
    def bundle_count(self) -> int:
        """How many bundles there are."""
        return len(self.bundle_specs)

    def ready(self) -> "ObjectRef[PlacementGroup]":
        """A reference that is there, with this group as its value, once all bundles are."""
        check = _ready.options(scheduling_strategy=scheduling.PlacementGroupSchedulingStrategy(self))
        ref: ObjectRef[PlacementGroup] = check.remote(self)
        return ref

    def wait(self, timeout_seconds: float = 30) -> bool:
        """Whether all bundles are there, waiting for it."""
        client = _client.connected()
        end = time.monotonic() + max(timeout_seconds, 0)
        while True:
            left = min(end - time.monotonic(), _ONCE)
            if client.ask("group_wait", self._id, max(int(left * 1000), 0), timeout=left + 60):
                return True
            if end - time.monotonic() <= 0:
                return False
            if left < _ONCE / 2:
                time.sleep(min(0.05, end - time.monotonic()))  # it was removed, or the agent is a little early

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, PlacementGroup) and self._id == other._id

    def __hash__(self) -> int:
        return hash(self._id)

    def __reduce__(self) -> Any:
        return (PlacementGroup, (self._id, self._bundles))

    def __repr__(self) -> str:
        return f"PlacementGroup({self.id})"


def placement_group(
    bundles: List[Dict[str, float]],
    strategy: str = "PACK",
    name: str = "",
    lifetime: Optional[str] = None,
    _soft_target_node_id: Optional[str] = None,
    bundle_label_selector: Optional[List[Dict[str, str]]] = None,
    **more: Any,
) -> PlacementGroup:
    """Ask for a group; does not wait until its room is there.

    bundles: resources of each, as {"CPU": 1, "GPU": 1, "memory": 1 << 30, "name": 1}.
    strategy: PACK (few nodes), SPREAD (many), STRICT_PACK (one), STRICT_SPREAD (no two
    bundles on one). lifetime: "detached" outlives the program. bundle_label_selector:
    labels that the node of each bundle must have.
    """
    if more:
        raise TypeError(f"placement_group has no argument {sorted(more)[0]!r}")
    if not isinstance(bundles, list) or not bundles:
        raise ValueError("bundles must be a list of at least one dict")
    if strategy not in _STRATEGIES:
        raise ValueError(f"strategy is {strategy!r}; there are {', '.join(_STRATEGIES)}")
    if lifetime not in (None, "detached"):
        raise ValueError(f"lifetime is {lifetime!r}; it can be 'detached' or None")
    told = [_bundle(b) for b in bundles]
    labels: List[Any] = []
    if bundle_label_selector:
        if len(bundle_label_selector) != len(bundles):
            raise ValueError(f"bundle_label_selector has {len(bundle_label_selector)} entries for {len(bundles)} bundles")
        labels = [scheduling.selected(s) for s in bundle_label_selector]
    client = _client.connected()
    _, id = client.reserve()
    args = (id, name or "", _STRATEGIES.index(strategy), told, labels, lifetime == "detached")
    if name:
        try:
            client.ask("group_create", *args)
        except Exception as e:
            if getattr(e, "kind", "") == "exists":
                raise ValueError(str(e)) from None
            raise
    else:
        _tell(client, "group_create", *args)
    return PlacementGroup(id, [{k: float(v) for k, v in b.items()} for b in bundles])


def _bundle(b: Any) -> List[Any]:
    """The resources of a bundle as frames have them."""
    if not isinstance(b, dict) or not b:
        raise ValueError(f"a bundle is {b!r}; it must be a dict of resources")
    amounts = {}
    for k, v in b.items():
        if isinstance(v, bool) or not isinstance(v, (int, float)) or not 0 <= v < 1e15:
            raise ValueError(f"a bundle has {k}: {v!r}; it must be a number, at least 0")
        amounts[str(k)] = v
    if not any(amounts.values()):
        raise ValueError(f"a bundle cannot be empty or only of zeros: {b!r}")
    cpu, gpu, memory = amounts.pop("CPU", 0), amounts.pop("GPU", 0), amounts.pop("memory", 0)
    return [round(cpu * _UNIT), round(gpu * _UNIT), int(memory), {k: round(amounts[k] * _UNIT) for k in sorted(amounts) if amounts[k]}]


def _tell(client: _client.Client, verb: str, *args: Any) -> None:
    """Tell the agent; there is no answer."""
    with client.lock:
        client.check()
        client.out += f.frame(f.CALL, f.U32.pack(0) + _pack.pack([verb, *args]))
        client.flush()


def remove_placement_group(placement_group: PlacementGroup) -> None:
    """End a group. Tasks and actors that run in it are killed."""
    _tell(_client.connected(), "group_remove", placement_group._id)


def get_placement_group(placement_group_name: str) -> PlacementGroup:
    """The group that has a name; ValueError when there is none."""
    if not placement_group_name:
        raise ValueError("a name is wanted")
    found = _client.connected().ask("groups", "find", placement_group_name)
    if not found:
        raise ValueError(f"Failed to look up placement group with name: {placement_group_name}")
    return PlacementGroup(bytes(found[0]["id"]), [dict(b) for b in found[0]["bundles"]])


def placement_group_table(placement_group: Optional[PlacementGroup] = None) -> Dict[str, Any]:
    """What is known of one group, or of all by their ids."""
    client = _client.connected()
    if placement_group is not None:
        found = client.ask("groups", "look", placement_group._id)
        return _row(found[0]) if found else {}
    return {bytes(g["id"]).hex(): _row(g) for g in client.ask("groups")}


def _row(g: Dict[str, Any]) -> Dict[str, Any]:
    nodes = g["nodes"] or [""] * len(g["bundles"])
    return {
        "placement_group_id": bytes(g["id"]).hex(),
        "name": g["name"],
        "bundles": {i: {k: float(v) for k, v in b.items()} for i, b in enumerate(g["bundles"])},
        "bundles_to_node_id": {i: n for i, n in enumerate(nodes)},
        "strategy": g["strategy"],
        "state": g["state"],
        "stats": {"scheduling_state": g["why"] or "FINISHED"},
        "is_detached": g["detached"],
        "job": g["job"],
    }


def get_current_placement_group() -> Optional[PlacementGroup]:
    """The group that the task or actor which asks runs in; None outside of any."""
    worker = _client.connected().worker
    if worker is None:
        return None
    order = worker.actor.order if worker.actor is not None else worker.current()
    strategy = order.strategy() if order is not None else None
    if not strategy or strategy[0] != "group":
        return None
    return PlacementGroup(bytes(strategy[1]))


def _check(group: PlacementGroup) -> PlacementGroup:
    return group


_ready: RemoteFunction[PlacementGroup] = RemoteFunction(_check, {"num_cpus": 0, "max_retries": -1, "name": "placement_group.ready"})
