"""Where objects are."""

from __future__ import annotations

from typing import Any, Dict, List

from .._refs import ObjectRef
from ..util import state


def get_object_locations(obj_refs: List[ObjectRef[Any]], timeout_ms: int = -1) -> Dict[ObjectRef[Any], Dict[str, Any]]:
    """For each reference {"node_ids": [...], "object_size": bytes, "did_spill": bool}.

    Small objects are with their owner alone. One that is not there yet has no nodes.
    """
    if not obj_refs:
        raise ValueError("get_object_locations takes at least one reference")
    out: Dict[ObjectRef[Any], Dict[str, Any]] = {}
    timeout = timeout_ms / 1000 if timeout_ms >= 0 else 30
    for ref in obj_refs:
        if not isinstance(ref, ObjectRef):
            raise TypeError(f"get_object_locations takes ObjectRefs, not {type(ref).__name__}")
        known = state._objects({"id": ref.hex()}, timeout)
        at = [o for o in known if o.state in ("inline", "resident", "spilled", "error")]
        nodes = dict.fromkeys(n for o in known for n in ([o.node_id] if o in at else []) + o.nodes[1:])
        out[ref] = {"node_ids": list(nodes), "object_size": max((int(o.object_size) for o in known), default=0), "did_spill": any(o.state == "spilled" for o in known)}
    return out


get_local_object_locations = get_object_locations

__all__ = ["get_local_object_locations", "get_object_locations"]
