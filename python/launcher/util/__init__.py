"""What stands upon tasks, actors and placement groups, with Ray's names.

joblib, dask, multiprocessing, metrics, state, collective and queue are imported by name:
``from launcher.util.queue import Queue``.
"""

from typing import List

from .._actors import named_actors as list_named_actors
from . import accelerators, annotations, scheduling_strategies
from .actor_pool import ActorPool
from .check_serialize import inspect_serializability
from .debug import disable_log_once_globally, enable_periodic_logging, log_once
from .helpers import as_completed, map_unordered
from .placement_group import get_current_placement_group, get_placement_group, placement_group, placement_group_table, remove_placement_group
from .serialization import deregister_serializer, register_serializer


def get_node_ip_address() -> str:
    """The address of this machine, as the others reach it."""
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try:
            s.connect(("192.0.2.1", 1))  # sends nothing: only asks which way it would go
            return str(s.getsockname()[0])
        except OSError:
            return "127.0.0.1"


__all__: List[str] = [
    "ActorPool",
    "as_completed",
    "deregister_serializer",
    "disable_log_once_globally",
    "enable_periodic_logging",
    "get_node_ip_address",
    "inspect_serializability",
    "list_named_actors",
    "log_once",
    "map_unordered",
    "register_serializer",
]
