"""All-reduce and its kin between actors, with Ray's names.

Each member calls init_collective_group(world_size, rank), or the program declares them all
by create_collective_group. Then all members call the same operations in the same order.
Arrays of numpy and torch tensors are changed in place; the values go through the object
memory. Ranks of a gang have launcher.collective, which is faster.
"""

from __future__ import annotations

import asyncio
import functools
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np

import launcher

from .types import Backend, ReduceOp

_TIMEOUT = 1800.0
_SMALL = 32 << 10  # bytes that go through the meeting itself


class _Meeting:
    """The actor at which members meet: it passes small values and references on."""

    def __init__(self, world: int, ranks: Dict[str, int]) -> None:
        self.world, self.ranks = world, ranks
        self.brought: Dict[int, Dict[int, Any]] = {}
        self.all_there: Dict[int, asyncio.Event] = {}
        self.left: Dict[int, int] = {}
        self.posted: Dict[Tuple[int, int, int], "asyncio.Future[Any]"] = {}

    async def about(self, actor: Optional[str]) -> Tuple[int, int]:
        return self.world, self.ranks.get(actor or "", -1)

    async def exchange(self, number: int, rank: int, value: Any) -> List[Any]:
        """The values of all, once all are there."""
        brought = self.brought.setdefault(number, {})
        there = self.all_there.setdefault(number, asyncio.Event())
        brought[rank] = value
        if len(brought) == self.world:
            there.set()
        await there.wait()
        out = [brought[r] for r in range(self.world)]
        self.left[number] = self.left.get(number, 0) + 1
        if self.left[number] == self.world:
            for of in (self.brought, self.all_there, self.left):
                of.pop(number, None)
        return out

    def _post(self, key: Tuple[int, int, int]) -> "asyncio.Future[Any]":
        return self.posted.setdefault(key, asyncio.get_running_loop().create_future())

    async def send(self, key: Tuple[int, int, int], value: Any) -> None:
        self._post(key).set_result(value)

    async def receive(self, key: Tuple[int, int, int]) -> Any:
        value = await self._post(key)
        del self.posted[key]
        return value


class _Group:
    """This process's part in a group."""

    def __init__(self, name: str, meeting: Any, world: int, rank: int) -> None:
        self.name, self.meeting, self.world, self.rank = name, meeting, world, rank
        self.number = 0
        self.pairs: Dict[Tuple[int, int], int] = {}

    def _wait(self, ref: Any, what: str) -> Any:
        try:
            return launcher.get(ref, timeout=_TIMEOUT)
        except launcher.exceptions.GetTimeoutError:
            raise TimeoutError(f"collective group {self.name!r}: not all of its {self.world} members came to {what} within {_TIMEOUT:.0f} s") from None

    def exchange(self, value: Any, what: str) -> List[Any]:
        """What every member brings."""
        self.number += 1
        out: List[Any] = self._wait(self.meeting.exchange.remote(self.number, self.rank, value), what)
        return out

    def gather(self, a: Any, what: str) -> List[Any]:
        """Everyone's array."""
        return [_unpacked(x) for x in self.exchange(_packed(a), what)]

    def reduced(self, a: Any, op: ReduceOp, what: str) -> Any:
        """Everyone's arrays made one: large ones in parts, a part by each member."""
        if a.nbytes <= _SMALL or self.world == 1:
            return _reduce(self.gather(a, what), op)
        flat = np.ascontiguousarray(a).reshape(-1)
        parts = self.exchange([launcher.put(p) for p in np.array_split(flat, self.world)], what)
        mine = _reduce(launcher.get([p[self.rank] for p in parts]), op)
        return np.concatenate(launcher.get([r[0] for r in self.exchange([launcher.put(mine)], what)])).reshape(a.shape)

    def pair(self, source: int, to: int) -> Tuple[int, int, int]:
        """The key of the next message from one to another."""
        n = self.pairs[source, to] = self.pairs.get((source, to), 0) + 1
        return source, to, n


_groups: Dict[str, _Group] = {}
_declared: Dict[str, Any] = {}  # meetings that this program declared


def _packed(a: Any) -> Any:
    return np.array(a) if a.nbytes <= _SMALL else [launcher.put(np.ascontiguousarray(a))]


def _unpacked(x: Any) -> Any:
    return launcher.get(x[0]) if isinstance(x, list) else x


_OPS: Dict[ReduceOp, Callable[[Any, Any], Any]] = {ReduceOp.SUM: np.add, ReduceOp.AVERAGE: np.add, ReduceOp.PRODUCT: np.multiply, ReduceOp.MIN: np.minimum, ReduceOp.MAX: np.maximum}


def _reduce(arrays: Sequence[Any], op: ReduceOp) -> Any:
    """In the order of ranks: the same bits everywhere."""
    if op not in _OPS:
        raise ValueError(f"op is {op!r}; it is a ReduceOp")
    made = functools.reduce(_OPS[op], arrays)
    if op is ReduceOp.AVERAGE:
        made = made / len(arrays)
    return made.astype(arrays[0].dtype, copy=False)


# Tensors.


def _array(tensor: Any) -> Any:
    """A tensor as a numpy array; of CPU ones, its own memory."""
    if isinstance(tensor, np.ndarray):
        return tensor
    if hasattr(tensor, "detach"):  # torch
        return tensor.detach().cpu().numpy()
    if hasattr(tensor, "get"):  # cupy
        return tensor.get()
    raise TypeError(f"a {type(tensor).__name__} is no tensor of numpy, torch or cupy")


def _set(tensor: Any, value: Any) -> None:
    if isinstance(tensor, np.ndarray):
        tensor[...] = np.asarray(value).reshape(tensor.shape)
    elif hasattr(tensor, "detach"):
        import torch  # type: ignore[import-not-found,import-untyped,unused-ignore]

        with torch.no_grad():
            tensor.copy_(torch.from_numpy(np.array(value)).reshape(tensor.shape))
    else:
        tensor.set(np.ascontiguousarray(value).reshape(tensor.shape))


# Groups.


def _named(group_name: str) -> str:
    if not group_name:
        raise ValueError("group_name is empty")
    return f"collective group {group_name}"


def _meet(group_name: str, world: int, ranks: Dict[str, int]) -> Any:
    made: Any = launcher.remote(num_cpus=0, max_concurrency=10_000)(_Meeting)
    return made.options(name=_named(group_name), get_if_exists=True).remote(world, ranks)


def init_collective_group(world_size: int, rank: int, backend: str = Backend.NCCL, group_name: str = "default", gloo_timeout: int = 30000) -> None:
    """Make this process a member of a group. Does not wait for the others."""
    if group_name in _groups:
        raise RuntimeError(f"this process is in the collective group {group_name!r} already")
    if world_size < 1 or not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} of {world_size}: it must be at least 0 and below world_size")
    meeting = _meet(group_name, world_size, {})
    world, _ = launcher.get(meeting.about.remote(None))
    if world != world_size:
        raise ValueError(f"the collective group {group_name!r} has {world} members, not {world_size}")
    _groups[group_name] = _Group(group_name, meeting, world_size, rank)


def create_collective_group(actors: Sequence[Any], world_size: int, ranks: Sequence[int], backend: str = Backend.NCCL, group_name: str = "default", gloo_timeout: int = 30000) -> None:
    """Declare actors to be a group: each is a member from its first operation on."""
    if len(actors) != world_size or sorted(ranks) != list(range(world_size)):
        raise ValueError(f"{len(actors)} actors with ranks {list(ranks)} are no group of {world_size}")
    if group_name in _declared:
        raise RuntimeError(f"the collective group {group_name!r} is declared already")
    _declared[group_name] = _meet(group_name, world_size, {a._actor_id.hex(): r for a, r in zip(actors, ranks)})
    launcher.get(_declared[group_name].about.remote(None))


def destroy_collective_group(group_name: str = "default") -> None:
    """Leave a group, or take back its declaration."""
    meeting = _declared.pop(group_name, None)
    if meeting is not None:
        launcher.kill(meeting)
    _groups.pop(group_name, None)


def _group(group_name: str) -> _Group:
    group = _groups.get(group_name) or _found(group_name)
    if group is None:
        raise RuntimeError(f"this process is in no collective group {group_name!r}: call init_collective_group in it, or create_collective_group in the program")
    return group


def _found(group_name: str) -> Optional[_Group]:
    """This process's part in a group that the program declared."""
    actor = launcher.get_runtime_context().get_actor_id() if launcher.is_initialized() else None
    if actor is None:
        return None
    try:
        meeting = launcher.get_actor(_named(group_name))
    except ValueError:
        return None
    world, rank = launcher.get(meeting.about.remote(actor))
    if rank < 0:
        return None
    _groups[group_name] = _Group(group_name, meeting, world, rank)
    return _groups[group_name]


def is_group_initialized(group_name: str = "default") -> bool:
    """Whether this process is a member."""
    return group_name in _groups or _found(group_name) is not None


def get_rank(group_name: str = "default") -> int:
    """This process's rank; -1 when it is no member."""
    return _groups[group_name].rank if is_group_initialized(group_name) else -1


def get_collective_group_size(group_name: str = "default") -> int:
    """How many members there are; -1 when this process is none."""
    return _groups[group_name].world if is_group_initialized(group_name) else -1


def nccl_available() -> bool:
    """NCCL is not used."""
    return False


def gloo_available() -> bool:
    """What is asked of gloo works."""
    return True


def is_backend_available(backend: str) -> bool:
    """Whether what is asked of a backend works on CPUs."""
    return str(backend).lower() in (Backend.GLOO, Backend.TORCH_GLOO)


# Operations.


def barrier(group_name: str = "default") -> None:
    """Wait until all members are here."""
    _group(group_name).exchange(None, "barrier")


def allreduce(tensor: Any, group_name: str = "default", op: ReduceOp = ReduceOp.SUM) -> None:
    """Make everyone's tensor the sum, or what op says, of all."""
    _set(tensor, _group(group_name).reduced(_array(tensor), op, "allreduce"))


def reduce(tensor: Any, dst_rank: int = 0, group_name: str = "default", op: ReduceOp = ReduceOp.SUM) -> None:
    """Make the tensor of dst_rank the sum, or what op says, of all."""
    group = _group(group_name)
    _check(group, dst_rank)
    every = group.exchange(_packed(_array(tensor)), "reduce")
    if group.rank == dst_rank:
        _set(tensor, _reduce([_unpacked(x) for x in every], op))


def broadcast(tensor: Any, src_rank: int = 0, group_name: str = "default") -> None:
    """Make everyone's tensor that of src_rank."""
    group = _group(group_name)
    _check(group, src_rank)
    every = group.exchange(_packed(_array(tensor)) if group.rank == src_rank else None, "broadcast")
    if group.rank != src_rank:
        _set(tensor, _unpacked(every[src_rank]))


def allgather(tensor_list: List[Any], tensor: Any, group_name: str = "default") -> None:
    """Put everyone's tensor into tensor_list, by rank."""
    group = _group(group_name)
    if len(tensor_list) != group.world:
        raise RuntimeError(f"tensor_list has {len(tensor_list)} tensors; the group has {group.world} members")
    for to, a in zip(tensor_list, group.gather(_array(tensor), "allgather")):
        _set(to, a)


def reducescatter(tensor: Any, tensor_list: List[Any], group_name: str = "default", op: ReduceOp = ReduceOp.SUM) -> None:
    """Make tensor the sum, or what op says, of the tensors that stand in everyone's
    tensor_list at this member's rank."""
    group = _group(group_name)
    if len(tensor_list) != group.world:
        raise RuntimeError(f"tensor_list has {len(tensor_list)} tensors; the group has {group.world} members")
    every = group.exchange([_packed(_array(t)) for t in tensor_list], "reducescatter")
    _set(tensor, _reduce([_unpacked(row[group.rank]) for row in every], op))


def send(tensor: Any, dst_rank: int, group_name: str = "default") -> None:
    """Send a tensor to a member. Does not wait for its recv."""
    group = _group(group_name)
    _check(group, dst_rank)
    if dst_rank == group.rank:
        raise RuntimeError(f"rank {dst_rank} sends to itself")
    group._wait(group.meeting.send.remote(group.pair(group.rank, dst_rank), _packed(_array(tensor))), "send")


def recv(tensor: Any, src_rank: int, group_name: str = "default") -> None:
    """Receive a tensor from a member, into this one."""
    group = _group(group_name)
    _check(group, src_rank)
    if src_rank == group.rank:
        raise RuntimeError(f"rank {src_rank} receives from itself")
    _set(tensor, _unpacked(group._wait(group.meeting.receive.remote(group.pair(src_rank, group.rank)), "recv")))


def _check(group: _Group, rank: int) -> None:
    if not 0 <= rank < group.world:
        raise ValueError(f"there is no rank {rank} in the collective group {group.name!r} of {group.world}")


__all__ = [
    "Backend", "ReduceOp", "allgather", "allreduce", "barrier", "broadcast", "create_collective_group", "destroy_collective_group",
    "get_collective_group_size", "get_rank", "gloo_available", "init_collective_group", "is_backend_available", "is_group_initialized",
    "nccl_available", "recv", "reduce", "reducescatter", "send",
]  # fmt: skip
