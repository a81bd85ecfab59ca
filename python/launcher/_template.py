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
import sys
from typing import Any, Dict, List, Optional, Tuple

_PACKET = 1 << 20


def main() -> None:
    """Serve orders until the socket ends; returns in each worker."""
    sock = socket.socket(fileno=3)
    os.set_inheritable(3, False)
    from . import _process, _serial, _worker  # noqa: F401  what every worker needs

    _serial._cloudpickle()
    _process.clean_path()
    gc.collect()
    gc.freeze()
    _send(sock, {"ready": True})
    served = 0
    while True:
        data, fds, _, _ = socket.recv_fds(sock, _PACKET, 8)
        if not data:
            os._exit(0)
        try:
            order = json.loads(data)
            unsafe = _unsafe()
            if len(fds) != 3:
                raise ValueError(f"an order with {len(fds)} descriptors")
            if unsafe:
                _send(sock, {"id": order["id"], "error": unsafe, "unsafe": True})
            elif _fork(sock, order):
                break
        except (ValueError, OSError, KeyError) as e:
            number = order.get("id", 0) if isinstance(order, dict) else 0
            _send(sock, {"id": number, "error": f"{type(e).__name__}: {e}"})
        for fd in fds:
            os.close(fd)
        served += 1
        if served == 1:
            _import_more()
    sock.close()
    _become(order, fds)
    _worker.main()


def _send(sock: socket.socket, packet: Dict[str, Any]) -> None:
    sock.send(json.dumps(packet).encode())


def _fork(sock: socket.socket, order: Dict[str, Any]) -> bool:
    """Fork twice, so that the worker is the supervisor's; true in the worker."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        if status:
            raise OSError("the second fork failed")
        return False
    try:
        if os.fork():
            os._exit(0)
    except OSError:
        os._exit(1)
    _send(sock, {"id": order["id"], "pid": os.getpid()})
    return True


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


def _become(order: Dict[str, Any], fds: List[int]) -> None:
    """Make this child the worker of an order."""
    os.setsid()
    for number, name in ((signal.SIGINT, "SIGINT"), (signal.SIGTERM, "SIGTERM"), (signal.SIGPIPE, "SIGPIPE")):
        signal.signal(number, signal.default_int_handler if name == "SIGINT" else signal.SIG_IGN if name == "SIGPIPE" else signal.SIG_DFL)
    high = [os.dup(fd) if fd < 4 else fd for fd in fds]
    for fd, to in zip(high, (3, 1, 2)):
        os.dup2(fd, to, inheritable=to != 3)
    os.closerange(4, max(high) + 1)
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
    try:
        ctypes.CDLL(None).prctl(15, name.encode()[:15], 0, 0, 0)
    except (OSError, AttributeError):
        pass


if __name__ == "__main__":
    from launcher import _template

    _template.main()
