"""The process that a node's Python workers are forked from: docs/tasks.md section 6.

It has one thread, and imports little before it is ready. It is run by
``python -m launcher._template`` with a SEQPACKET socket as descriptor 3.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import socket
import struct
import sys
from typing import Any, Dict, List, Optional, Tuple

from . import _process, _serial, _worker  # what every worker needs

_PACKET = 1 << 20
_prctl = getattr(ctypes.CDLL(None), "prctl", None)
_AT_ONCE = 16  # orders that one child forks the workers of


def main() -> None:
    """Serve orders until the socket ends; returns in each worker."""
    sock = socket.socket(fileno=3)
    os.set_inheritable(3, False)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as they are to be in a worker
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    _serial._cloudpickle()
    _process.clean_path()
    gc.collect()
    gc.freeze()
    _send(sock, {"ready": True})
    served = 0
    while True:
        orders = _orders(sock, _AT_ONCE if served else 1)
        if not orders:
            os._exit(0)
        mine = _fork(sock, orders)
        if mine is not None:
            break
        for _, fds in orders:
            _close(fds)
        served += 1
        if served == 1:
            _import_more()
    sock.close()
    order, fds = mine
    _become(order, fds, max(fd for _, each in orders for fd in each))
    _worker.main()


_Order = Tuple[Dict[str, Any], List[int]]


def _orders(sock: socket.socket, most: int) -> List[_Order]:
    """Wait for an order, and take what else is there. None: the agent dropped this template."""
    orders: List[_Order] = []
    try:
        while len(orders) < most:
            data, passed, _, _ = sock.recvmsg(_PACKET, socket.CMSG_SPACE(8 * 4), socket.MSG_DONTWAIT if orders else 0)  # recv_fds leaves the flags out
            if not data:
                break  # the next look finds the same
            fds = [fd for _, _, each in passed for (fd,) in struct.iter_unpack("i", each[: len(each) // 4 * 4])]
            order = json.loads(data)
            if len(fds) == 3:
                orders.append((order, fds))
            else:
                _refuse(sock, order, f"an order with {len(fds)} descriptors")
                _close(fds)
    except BlockingIOError:
        pass
    return orders


def _close(fds: List[int]) -> None:
    for fd in fds:
        os.close(fd)


def _refuse(sock: socket.socket, order: Dict[str, Any], why: Any) -> None:
    _send(sock, {"id": order["id"], "error": str(why)})


def _send(sock: socket.socket, packet: Dict[str, Any]) -> None:
    sock.send(json.dumps(packet).encode())


def _fork(sock: socket.socket, orders: List[_Order]) -> Optional[_Order]:
    """Fork the workers from a child that ends then, so that they are the supervisor's;
    gives in each worker its order."""
    unsafe = _unsafe()
    if unsafe:
        for order, _ in orders:
            _send(sock, {"id": order["id"], "error": unsafe, "unsafe": True})
        return None
    try:
        child = os.fork()
    except OSError as e:
        for order, _ in orders:
            _refuse(sock, order, e)
        return None
    if child:
        _, status = os.waitpid(child, 0)
        if status:
            for order, _ in orders:  # those that were answered already are not waited for
                _refuse(sock, order, f"the process between ended with status {status}")
        return None
    for order, fds in orders:
        try:
            pid = os.fork()
        except OSError as e:
            _refuse(sock, order, e)
            continue
        if not pid:
            return order, fds
        _send(sock, {"id": order["id"], "pid": pid})
    os._exit(0)


def _unsafe() -> str:
    """Why a fork would not be safe now."""
    n = len(os.listdir("/proc/self/task"))
    if n > 1:
        return f"the template has {n} threads"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "the template has CUDA initialised"
    return ""


def _import_more() -> None:
    """Import what programs are likely to want, and no thread comes of it."""
    held = {n: os.environ.get(n) for n in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    for n in held:
        os.environ[n] = "1"
    try:
        import random  # noqa: F401

        import asyncio  # noqa: F401  for actors; it takes 20 ms

        from . import _actor_worker  # noqa: F401

        import numpy  # noqa: F401
    except Exception:
        return
    finally:
        for n, v in held.items():
            if v is None:
                os.environ.pop(n, None)
            else:
                os.environ[n] = v
    gc.collect()
    gc.freeze()


def _become(order: Dict[str, Any], fds: List[int], highest: int) -> None:
    """Make this child the worker of an order."""
    os.setsid()
    high = [os.dup(fd) if fd < 4 else fd for fd in fds]
    for fd, to in zip(high, (3, 1, 2)):
        os.dup2(fd, to, inheritable=to != 3)
    os.closerange(4, max(high + [highest]) + 1)
    for name, value in (order.get("env") or {}).items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = str(value)
    if order.get("cwd"):
        os.chdir(order["cwd"])
    cpus: Optional[List[int]] = order.get("cpus")
    if cpus:
        try:
            os.sched_setaffinity(0, cpus)
        except OSError:  # a processor that went away
            pass
    _seed(int(order.get("seed") or 0))
    _threads()
    _title(str(order.get("name") or "worker"))
    gc.enable()


def _seed(seed: int) -> None:
    """Give this worker random numbers of its own."""
    random = sys.modules.get("random")
    if random is not None:  # else it finds a seed of its own when it is imported
        random.seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None and hasattr(numpy, "random"):
        numpy.random.seed(seed & 0xFFFFFFFF)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(seed & 0x7FFFFFFFFFFFFFFF)


_SETTERS: Tuple[str, ...] = ("scipy_openblas_set_num_threads64_", "scipy_openblas_set_num_threads", "openblas_set_num_threads64_", "openblas_set_num_threads")


def _threads() -> None:
    """numpy's OpenBLAS was loaded with one thread: give it as many as the worker has cores."""
    try:
        wanted = int(os.environ.get("OPENBLAS_NUM_THREADS") or os.environ.get("OMP_NUM_THREADS") or 1)
    except ValueError:
        return
    if wanted <= 1 or "numpy" not in sys.modules:
        return
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        paths = {line.split(None, 5)[5].strip() for line in maps if "openblas" in line}
    for path in paths:
        try:
            library = ctypes.CDLL(path)
        except OSError:
            continue
        for name in _SETTERS:
            if hasattr(library, name):
                getattr(library, name)(ctypes.c_int(wanted))
                break


def _title(name: str) -> None:
    """Name the process for ps and top."""
    if _prctl is not None:
        _prctl(15, name.encode()[:15], 0, 0, 0)


if __name__ == "__main__":
    from launcher import _template

    _template.main()
