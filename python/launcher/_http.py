"""HTTP over the agent's unix socket, with the standard library."""

from __future__ import annotations

import json
import os
import socket
import time
from typing import Any, Dict, List, Optional

_BODY_LIMIT = 16 << 20
_SUN_PATH = 107  # bytes of a socket's path that the kernel takes


class Error(RuntimeError):
    """What launcher refuses or cannot do.

    kind:  a stable word: "invalid", "not-found", "unavailable", "timeout", "fenced", ...
    hints: what to try, one sentence each.
    """

    def __init__(self, kind: str, msg: str, hints: Optional[List[str]] = None) -> None:
        super().__init__(msg + "".join(f"\nhint: {h}" for h in hints or []))
        self.kind = kind
        self.msg = msg
        self.hints = list(hints or [])

    def __reduce__(self) -> Any:
        return (Error, (self.kind, self.msg, self.hints))


def socket_path(path: str) -> str:
    """Where the socket really is: one with a long path lies elsewhere, PATH.at says where."""
    if len(os.fsencode(path)) <= _SUN_PATH:
        return path
    try:
        with open(path + ".at", encoding="utf-8", errors="surrogateescape") as f:
            return f.read().strip()
    except OSError as e:
        raise Error("unavailable", f"cannot find the agent's socket {path}: {e}") from e


def call(method: str, path: str, body: Optional[Dict[str, Any]] = None, timeout: float = 60.0) -> Any:
    """One request to the agent, its JSON answer decoded.

    A connection that breaks is made again until timeout seconds have passed: the agent
    may be on its way back after a restart. Every request may be sent twice, the agent
    knows reports by their step.
    """
    from ._http_unix import HTTPException, UnixConnection  # takes long, and workers do without

    where = os.environ.get("LAUNCHER_SOCKET", "")
    payload = None if body is None else json.dumps(body, allow_nan=False)
    headers = {"X-Launcher-Proc": os.environ.get("LAUNCHER_PROC", "")}
    if payload is not None:
        headers["Content-Type"] = "application/json"
    end = time.monotonic() + timeout
    while True:
        left = end - time.monotonic()
        conn = UnixConnection(socket_path(where), max(left, 0.1))
        try:
            conn.request(method, path, payload, headers)
            answer = conn.getresponse()
            data = answer.read(_BODY_LIMIT + 1)
            status = answer.status
            break
        except (OSError, HTTPException) as e:
            left = end - time.monotonic()
            gone = isinstance(e, FileNotFoundError)
            if gone or left <= 0.1:
                kind = "unavailable" if gone or not isinstance(e, (TimeoutError, socket.timeout)) else "timeout"
                raise Error(
                    kind,
                    f"the agent of this run does not answer on {where}: {e or type(e).__name__}",
                    ["the run may have been ended, or its node's agent killed"],
                ) from e
            time.sleep(min(0.1, left))
        finally:
            conn.close()
    if len(data) > _BODY_LIMIT:
        raise Error("corrupt", f"the agent's answer to {path} is larger than {_BODY_LIMIT >> 20} MiB")
    try:
        value = json.loads(data) if data else {}
    except ValueError as e:
        if status // 100 == 2:
            raise Error("corrupt", f"the agent's answer to {path} is no JSON") from e
        value = {}
    if status // 100 != 2:
        raise _refused(status, path, value)
    if value is None:  # how the agent says that there are no parameters
        return {}
    if not isinstance(value, dict):
        raise Error("corrupt", f"the agent's answer to {path} is {type(value).__name__}, not a table")
    return value


def _refused(status: int, path: str, value: Any) -> Error:
    if isinstance(value, dict) and isinstance(value.get("error"), dict):
        value = value["error"]
    if isinstance(value, dict) and value.get("msg"):
        hints = value.get("hints")
        return Error(str(value.get("kind") or "unknown"), str(value["msg"]), [str(h) for h in hints] if isinstance(hints, list) else [])
    return Error("unavailable", f"the agent answered {status} to {path}")


_KINDS = (
    "unknown", "invalid", "not-found", "exists", "unavailable", "timeout", "cancelled", "permission",
    "exhausted", "lost", "version", "corrupt", "unbuilt", "internal", "fenced",
)  # fmt: skip


def error_of(value: Any) -> Error:
    """The error that an agent sent."""
    if isinstance(value, dict):
        value = [value.get("Kind", value.get("kind")), value.get("Msg", value.get("msg")), value.get("Hints", value.get("hints"))]
    if not isinstance(value, list) or len(value) < 2:
        return Error("unknown", str(value))
    kind = value[0]
    if isinstance(kind, int):
        kind = _KINDS[kind] if 0 <= kind < len(_KINDS) else "unknown"
    return Error(str(kind), str(value[1]), [str(h) for h in (value[2] if len(value) > 2 else None) or []])
