"""What there is in the cluster, in Ray's words: tasks, objects, actors, nodes, ...

A list gives the newest or most important limit entries; filters are (key, "=" or "!=",
value). An entry is a dict whose keys are attributes too.
"""

from __future__ import annotations

import json
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Tuple, Union

from .. import _client
from .._http import Error
from .._refs import ObjectRef

Filter = Tuple[str, str, Any]


class State(Dict[str, Any]):
    """An entry of a list."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"there is no {name!r} in it; there are {', '.join(self)}") from None

    def asdict(self) -> Dict[str, Any]:
        """A plain dict of it."""
        return dict(self)


def _ask(what: str, args: Optional[Dict[str, Any]] = None, timeout: float = 30) -> Dict[str, Any]:
    """What the nodes answer; one that cannot is left out unless none can."""
    out: Dict[str, Any] = {}
    wrong = ""
    for node, text, error in _client.connected().ask("query", what, json.dumps(args or {}), "", timeout=timeout):
        if error:
            wrong = error
        else:
            out[str(node)] = json.loads(text)
    if not out and wrong:
        raise Error("unavailable", wrong)
    return out


def _listed(entries: Iterable[State], filters: Optional[Sequence[Filter]], limit: int) -> List[State]:
    if limit < 1:
        raise ValueError(f"limit is {limit}; it must be 1 at least")
    tests: List[Callable[[State], bool]] = [_test(*f) for f in filters or ()]
    out: List[State] = []
    for e in entries:
        if all(t(e) for t in tests):
            out.append(e)
            if len(out) == limit:
                break
    return out


def _test(key: str, op: str, value: Any) -> Callable[[State], bool]:
    if op not in ("=", "!="):
        raise ValueError(f"the predicate {op!r} of a filter; there are '=' and '!='")

    def holds(e: State) -> bool:
        if key not in e:
            raise ValueError(f"there is no {key!r} to filter by; there are {', '.join(e)}")
        return (str(e[key]).lower() == str(value).lower()) == (op == "=")

    return holds


def _ms(ns: Any) -> Optional[int]:
    return int(ns) // 1_000_000 if ns else None


# Tasks.

_WORDS = {
    "waiting": "PENDING_ARGS_AVAIL", "queued": "PENDING_NODE_ASSIGNMENT", "running": "RUNNING", "blocked": "RUNNING",
    "done": "FINISHED", "failed": "FAILED", "cancelled": "FAILED",
}  # fmt: skip


def _task(t: Dict[str, Any], node: str) -> State:
    name = str(t.get("name", ""))
    over = t["state"] in ("done", "failed", "cancelled")
    actor = t.get("actor") or None
    return State(
        task_id=t["id"], attempt_number=max(int(t.get("attempt", 1)) - 1, 0), name=name, state=_WORDS.get(t["state"], t["state"]), job_id=str(t.get("job", "")),
        actor_id=actor, type="NORMAL_TASK" if not actor else "ACTOR_CREATION_TASK" if actor == t["id"] else "ACTOR_TASK", func_or_class_name=name, parent_task_id=t.get("parent") or None,
        node_id=t.get("node") or node, worker_id=None, worker_pid=t.get("worker") or None,
        error_type="TASK_CANCELLED" if t["state"] == "cancelled" else "TASK_EXECUTION_EXCEPTION" if t["state"] == "failed" else None,
        error_message=None, language="PYTHON", creation_time_ms=_ms(t.get("submitted")), start_time_ms=_ms(t.get("started") or t.get("start")),
        end_time_ms=_ms(t.get("ended") or t.get("end")), why=None if over else t.get("why"),
    )  # fmt: skip


def _one_of_each(lines: List[Tuple[Dict[str, Any], str]]) -> List[State]:
    """Of a task that its owner gave to another node that one's line, with what only the owner knows."""
    there = {t["id"] for t, _ in lines if not t.get("away")}
    known = {t["id"]: {"parent": t.get("parent"), "submitted": t.get("submitted")} for t, _ in lines if t.get("away")}
    return [_task({**t, **known.get(t["id"], {})}, node) for t, node in lines if not t.get("away") or t["id"] not in there]


def _tasks(args: Dict[str, Any], timeout: float) -> List[State]:
    now = _one_of_each([(t, node) for node, a in _ask("tasks", {"limit": 0, "actors": True, **args}, timeout).items() for t in a["tasks"]])
    there = {t.task_id for t in now}
    before = [_task(t, node) for node, a in _ask("timeline", {"limit": 20_000}, timeout).items() for t in reversed(a["events"])]
    return now + [t for t in before if t.task_id not in there and args.get("id") in (None, t.task_id)]


def list_tasks(address: Optional[str] = None, filters: Optional[List[Filter]] = None, limit: int = 100, timeout: int = 30, detail: bool = False, raise_on_missing_output: bool = True, _explain: bool = False) -> List[State]:
    """Tasks that have not ended, then the newest that have."""
    return _listed(_tasks({}, timeout), filters, limit)


def get_task(id: Union[str, ObjectRef[Any]], address: Optional[str] = None, timeout: int = 30, _explain: bool = False) -> Optional[State]:
    """A task, by its id or the reference of its result; None when it is not known."""
    wanted = id.task_id() if isinstance(id, ObjectRef) else id
    return next(iter(_tasks({"id": wanted}, timeout)), None)


def summarize_tasks(address: Optional[str] = None, timeout: int = 30, raise_on_missing_output: bool = True, _explain: bool = False) -> Dict[str, Any]:
    """How many tasks of each name are in which state."""
    summary: Dict[str, Any] = {}
    tasks = _tasks({}, timeout)
    for t in tasks:
        s = summary.setdefault(t.name, {"func_or_class_name": t.name, "type": t.type, "state_counts": {}})
        s["state_counts"][t.state] = s["state_counts"].get(t.state, 0) + 1
    calls = sum(1 for t in tasks if t.type == "ACTOR_TASK")
    made = sum(1 for t in tasks if t.type == "ACTOR_CREATION_TASK")
    return _summary({"summary": summary, "total_tasks": len(tasks) - calls - made, "total_actor_tasks": calls, "total_actor_scheduled": made, "summary_by": "func_name"})


def _summary(of: Dict[str, Any]) -> Dict[str, Any]:
    return {"cluster": of}


# Objects.


def _objects(args: Dict[str, Any], timeout: float) -> List[State]:
    out: List[State] = []
    for node, a in _ask("objects", {"limit": 10_000, **args}, timeout).items():
        for o in a["objects"]:
            holders = o.get("holders") or []
            kinds = [h["what"] for h in holders]
            reference = "PINNED_IN_MEMORY" if "pin" in kinds else "USED_BY_PENDING_TASK" if "task" in kinds else "CAPTURED_IN_OBJECT" if "object" in kinds else "LOCAL_REFERENCE"
            pids = [int(h["who"][4:]) for h in holders if h["who"].startswith("pid ")]
            out.append(State(
                object_id=o["id"], object_size=o["size"], task_status="PENDING_NODE_ASSIGNMENT" if o["state"] == "pending" else "FINISHED", attempt_number=0,
                reference_type=reference, call_site=o.get("made", ""), type="WORKER" if "worker" in kinds else "DRIVER", pid=pids[0] if pids else None, ip=node,
                node_id=node, nodes=[node, *(o.get("nodes") or [])], state=o["state"],
            ))  # fmt: skip
    return out


def list_objects(address: Optional[str] = None, filters: Optional[List[Filter]] = None, limit: int = 100, timeout: int = 30, detail: bool = False, raise_on_missing_output: bool = True, _explain: bool = False) -> List[State]:
    """Objects that nodes own or hold, the largest first."""
    return _listed(sorted(_objects({}, timeout), key=lambda o: -int(o.object_size)), filters, limit)


def get_objects(id: str, address: Optional[str] = None, timeout: int = 30, _explain: bool = False) -> List[State]:
    """An object as each node knows it."""
    return _objects({"id": id.hex() if isinstance(id, ObjectRef) else id}, timeout)


def summarize_objects(address: Optional[str] = None, timeout: int = 30, raise_on_missing_output: bool = True, _explain: bool = False) -> Dict[str, Any]:
    """How many objects, and how large, by what made them."""
    summary: Dict[str, Any] = {}
    objects = _objects({}, timeout)
    for o in objects:
        s = summary.setdefault(o.call_site, {"total_objects": 0, "total_size_mb": 0.0, "total_num_workers": 0, "total_num_nodes": 0, "task_state_counts": {}, "ref_type_counts": {}, "nodes": set()})
        s["total_objects"] += 1
        s["total_size_mb"] += o.object_size / 1e6
        s["nodes"].add(o.node_id)
        for counts, key in ((s["task_state_counts"], o.task_status), (s["ref_type_counts"], o.reference_type)):
            counts[key] = counts.get(key, 0) + 1
    for s in summary.values():
        s["total_num_nodes"] = len(s.pop("nodes"))
    return _summary({"summary": summary, "total_objects": len(objects), "total_size_mb": sum(o.object_size for o in objects) / 1e6, "callsite_enabled": True, "summary_by": "callsite"})


# Actors.

_LIFE = {"pending": "PENDING_CREATION", "alive": "ALIVE", "restarting": "RESTARTING", "dead": "DEAD"}


def _actors(timeout: float) -> List[State]:
    told = [(node, a) for node, every in _ask("actors", None, timeout).items() for a in every]
    at = {a["id"]: (node, a["worker"]) for node, a in told if a.get("worker")}
    out: List[State] = []
    for _, a in told:
        if not a.get("hosted"):  # else its owner tells more
            node, pid = at.get(a["id"], (None, None))
            out.append(State(
                actor_id=a["id"], class_name=a["class"], state=_LIFE.get(a["state"], a["state"]), job_id=str(a["job"]), name=a["name"], node_id=node, pid=pid,
                ray_namespace=a["namespace"], is_detached=bool(a.get("detached")), num_restarts=max(int(a["lives"]) - 1, 0), death_cause=a.get("why") or None,
                required_resources=None, placement_group_id=None, repr_name="",
            ))  # fmt: skip
    return out


def list_actors(address: Optional[str] = None, filters: Optional[List[Filter]] = None, limit: int = 100, timeout: int = 30, detail: bool = False, raise_on_missing_output: bool = True, _explain: bool = False) -> List[State]:
    """The actors; one that is dead for as long as there is a handle of it."""
    return _listed(_actors(timeout), filters, limit)


def get_actor(id: str, address: Optional[str] = None, timeout: int = 30, _explain: bool = False) -> Optional[State]:
    """An actor by its id."""
    return next((a for a in _actors(timeout) if a.actor_id == id), None)


def summarize_actors(address: Optional[str] = None, timeout: int = 30, raise_on_missing_output: bool = True, _explain: bool = False) -> Dict[str, Any]:
    """How many actors of each class are in which state."""
    summary: Dict[str, Any] = {}
    actors = _actors(timeout)
    for a in actors:
        s = summary.setdefault(a.class_name, {"class_name": a.class_name, "state_counts": {}})
        s["state_counts"][a.state] = s["state_counts"].get(a.state, 0) + 1
    return _summary({"summary": summary, "total_actors": len(actors), "summary_by": "class"})


# Placement groups.


def _groups(timeout: float) -> List[State]:
    out: List[State] = []
    for g in _client.connected().ask("groups", timeout=timeout):
        nodes = g["nodes"] or [""] * len(g["bundles"])
        id = bytes(g["id"]).hex()
        out.append(State(
            placement_group_id=id, name=g["name"], creator_job_id=g["job"], state=g["state"], is_detached=bool(g["detached"]), strategy=g["strategy"],
            bundles=[{"bundle_id": {"placement_group_id": id, "bundle_index": i}, "unit_resources": dict(b), "node_id": n} for i, (b, n) in enumerate(zip(g["bundles"], nodes))],
            stats={"scheduling_state": g["why"] or "FINISHED"},
        ))  # fmt: skip
    return out


def list_placement_groups(address: Optional[str] = None, filters: Optional[List[Filter]] = None, limit: int = 100, timeout: int = 30, detail: bool = False, raise_on_missing_output: bool = True, _explain: bool = False) -> List[State]:
    """The placement groups that were not removed."""
    return _listed(_groups(timeout), filters, limit)


def get_placement_group(id: str, address: Optional[str] = None, timeout: int = 30, _explain: bool = False) -> Optional[State]:
    """A placement group by its id."""
    return next((g for g in _groups(timeout) if g.placement_group_id == id), None)


# Nodes, processes, jobs.


def list_nodes(address: Optional[str] = None, filters: Optional[List[Filter]] = None, limit: int = 100, timeout: int = 30, detail: bool = False, raise_on_missing_output: bool = True, _explain: bool = False) -> List[State]:
    """The nodes, dead ones too."""
    return _listed((
        State(
            node_id=n["NodeID"], node_ip=n["NodeManagerAddress"], is_head_node=False, state="ALIVE" if n["Alive"] else "DEAD", state_message=n["State"],
            node_name=n["NodeName"], resources_total=n["Resources"], labels=n.get("Labels") or {}, start_time_ms=None, end_time_ms=None,
        )
        for n in _client.connected().ask("nodes", timeout=timeout)
    ), filters, limit)  # fmt: skip


def get_node(id: str, address: Optional[str] = None, timeout: int = 30, _explain: bool = False) -> Optional[State]:
    """A node by its id."""
    return next(iter(list_nodes(filters=[("node_id", "=", id)], timeout=timeout)), None)


def list_workers(address: Optional[str] = None, filters: Optional[List[Filter]] = None, limit: int = 100, timeout: int = 30, detail: bool = False, raise_on_missing_output: bool = True, _explain: bool = False) -> List[State]:
    """The processes of programs: drivers and workers."""
    return _listed((
        State(worker_id=p["id"], is_alive=True, worker_type=p["kind"].upper(), exit_type=None, node_id=node, ip=node, pid=p["pid"], exit_detail=None, job_id=p["job"], name=p["name"])
        for node, a in _ask("workers", None, timeout).items()
        for p in a
    ), filters, limit)  # fmt: skip


def get_worker(id: str, address: Optional[str] = None, timeout: int = 30, _explain: bool = False) -> Optional[State]:
    """A process by its worker id."""
    return next(iter(list_workers(filters=[("worker_id", "=", id)], timeout=timeout)), None)


_ENDS = {"done": "SUCCEEDED", "failed": "FAILED", "cancelled": "STOPPED", "waiting": "PENDING", "running": "RUNNING"}


def _jobs(timeout: float) -> List[State]:
    return [
        State(
            job_id=str(j["id"]), submission_id=j["name"], type="SUBMISSION", status=_ENDS.get(j["state"], "RUNNING"), entrypoint=" ".join(j["command"] or []), message=j["cause"],
            error_type=None, start_time=_ms(j["started"] or j["submitted"]), end_time=_ms(j["ended"]), metadata={}, runtime_env={}, driver_exit_code=j["exit_code"] if j["ended"] else None,
        )
        for j in _client.connected().ask("jobs", timeout=timeout)
    ]  # fmt: skip


def list_jobs(address: Optional[str] = None, filters: Optional[List[Filter]] = None, limit: int = 100, timeout: int = 30, detail: bool = False, raise_on_missing_output: bool = True, _explain: bool = False) -> List[State]:
    """The cluster's jobs, ended ones too."""
    return _listed(_jobs(timeout), filters, limit)


def get_job(id: str, address: Optional[str] = None, timeout: int = 30, _explain: bool = False) -> Optional[State]:
    """A job by its number or name."""
    return next((j for j in _jobs(timeout) if id in (j.job_id, j.submission_id)), None)


__all__ = [
    "get_actor", "get_job", "get_node", "get_objects", "get_placement_group", "get_task", "get_worker", "list_actors", "list_jobs", "list_nodes", "list_objects", "list_placement_groups", "list_tasks", "list_workers",
    "summarize_actors", "summarize_objects", "summarize_tasks",
]  # fmt: skip
