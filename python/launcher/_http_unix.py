"""The standard library's HTTP client on a unix socket."""

from __future__ import annotations

import http.client
import socket
import time
from http.client import HTTPException
from typing import Any

__all__ = ["HTTPException", "UnixConnection"]


class _Socket(socket.socket):
    """A socket whose reads end at a time: a timeout alone begins again with each byte."""

    end = 0.0

    def recv_into(self, *args: Any, **kw: Any) -> int:
        left = self.end - time.monotonic()
        if left <= 0:
            raise socket.timeout("timed out")
        self.settimeout(left)
        return super().recv_into(*args, **kw)


class UnixConnection(http.client.HTTPConnection):
    """A connection to a path, whose answer is there within timeout."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("launcher", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        s = _Socket(socket.AF_UNIX, socket.SOCK_STREAM)
        s.settimeout(self.timeout)
        s.end = time.monotonic() + float(self.timeout or 0)
        try:
            s.connect(self._path)
        except BaseException:
            s.close()
            raise
        self.sock = s
