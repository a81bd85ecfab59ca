"""Which cluster a program belongs to, and one of its own where none is up."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from typing import Dict, List, Optional, Tuple

from ._http import Error, socket_path


def find(address: Optional[str]) -> str:
    """The socket of an agent of the cluster to join; "" when none is up."""
    run = os.environ.get("LAUNCHER_SOCKET", "")
    if address in (None, "auto") and run:
        return run
    if address == "local":
        return ""
    if address and ("/" in address or os.path.exists(address)):
        return address
    up = clusters()
    wanted = address if address and address != "auto" else os.environ.get("LAUNCHER_CLUSTER", "")
    if wanted:
        if wanted in up:
            return up[wanted]
        raise Error("not-found", f"the cluster {wanted} has no node on this machine that is up", [f"launcher up its spec, or run the program in it: launcher run -c {wanted} -- python ..."])
    if len(up) > 1:
        raise Error("invalid", f"several clusters are up: {', '.join(sorted(up))}", ["set LAUNCHER_CLUSTER, or init(address=NAME)"])
    return next(iter(up.values()), "")


def home() -> str:
    """Where launcher keeps its state."""
    return os.environ.get("LAUNCHER_HOME") or os.path.join(os.path.expanduser("~"), ".launcher")


def clusters() -> Dict[str, str]:
    """The clusters that have a node on this machine which is up, with its socket."""
    up: Dict[str, str] = {}
    root = os.path.join(home(), "clusters")
    for name in _entries(root):
        if name.startswith("."):
            continue
        nodes = os.path.join(root, name, "nodes")
        for node in _entries(nodes):
            at = os.path.join(nodes, node, "agent.sock")
            if _answers(at):
                up[name] = at
                break
    return up


def away() -> List[str]:
    """The clusters that were brought up here and have no node on this machine."""
    root = os.path.join(home(), "clusters")
    names = []
    for name in _entries(root):
        at = os.path.join(root, name)
        if os.path.exists(os.path.join(at, "cluster.json")) and (os.path.exists(os.path.join(at, "head.at")) or _answers(os.path.join(at, "head.sock"))):
            names.append(name)
    here = clusters() if names else {}
    return [n for n in names if n not in here]


def hint_away(names: List[str]) -> str:
    """What to do about them."""
    return f"cluster {' and '.join(names)} is up and has no node on this machine: launcher run -c {names[0]} -- python PROGRAM runs a program there"


def _entries(path: str) -> List[str]:
    try:
        return sorted(os.listdir(path))
    except OSError:
        return []


def _answers(path: str) -> bool:
    s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        s.settimeout(1.0)
        s.connect(socket_path(path))
        return True
    except (OSError, Error):
        return False
    finally:
        s.close()


def binary() -> str:
    """The launcher command."""
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    for at in (os.environ.get("LAUNCHER"), shutil.which("launcher"), os.path.join(here, "bin", "launcher"), os.path.join(os.path.dirname(here), ".build", "launcher")):
        if at and os.path.isfile(at) and os.access(at, os.X_OK):
            return at
    raise Error("not-found", "no cluster is up, and there is no launcher command to start one", ["put launcher on PATH, or set LAUNCHER to where it is, or launcher up SPEC"])


def start_local(cpus: Optional[float], gpus: Optional[float], resources: Optional[Dict[str, float]], memory: Optional[int]) -> Tuple["subprocess.Popen[bytes]", str]:
    """Start a cluster on this machine that ends with this process: its keeper and its socket."""
    command = [binary(), "local"]
    if cpus is not None:
        command += ["--cpus", f"{cpus:g}"]
    if gpus is not None:
        command += ["--gpus", f"{gpus:g}"]
    for name, amount in (resources or {}).items():
        command += ["--resource", f"{name}={amount:g}"]
    if memory is not None:
        command += ["--object-memory", str(int(memory))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None and process.stdin is not None
    line = process.stdout.readline()
    try:
        answer = json.loads(line)
        return process, str(answer["socket"])
    except (ValueError, KeyError, TypeError):
        process.stdin.close()
        code = process.wait()
        process.stdout.close()
        raise Error("unavailable", f"the local cluster did not start: {' '.join(command)} ended with code {code}", ["what it printed above says why"]) from None
