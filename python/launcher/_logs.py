"""What tasks print, shown by the driver: each line with who printed it.

The same line from several workers is shown once, and then how often it came: see
WINDOW. LAUNCHER_DEDUP_LOGS=0 shows all.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from typing import Dict, List, Tuple

WINDOW = 5.0  # seconds in which a line counts as the same
_MOST = 1000  # lines that are remembered
_NUMBERS = re.compile(rb"0x[0-9a-fA-F]+|\d+")


class _Line:
    __slots__ = ("who", "text", "stream", "until", "count")

    def __init__(self, who: bytes, text: bytes, stream: int, until: float) -> None:
        self.who, self.text, self.stream, self.until = who, text, stream, until
        self.count = 0


class Printer:
    """Lines to be printed; add is called under the client's lock, flush is not."""

    def __init__(self, on: bool) -> None:
        self.on = on
        self.dedup = os.environ.get("LAUNCHER_DEDUP_LOGS", "1") != "0"
        self.lines: List[Tuple[int, bytes]] = []
        self._seen: Dict[bytes, _Line] = {}
        self._lock = threading.Lock()

    def add(self, stream: int, who: bytes, text: bytes) -> None:
        """Take in what a worker printed."""
        if not self.on:
            return
        now = time.monotonic()
        self._expire(now)
        for line in text.split(b"\n") if not text.endswith(b"\n") else text[:-1].split(b"\n"):
            if self.dedup:
                key = _NUMBERS.sub(b"#", line)
                seen = self._seen.get(key)
                if seen is not None and seen.who != who:
                    seen.count += 1
                    seen.who, seen.text = seen.who, line
                    continue
                if seen is None and line.strip() and len(self._seen) < _MOST:
                    self._seen[key] = _Line(who, line, stream, now + WINDOW)
            self.lines.append((stream, b"(" + who + b") " + line))

    def _expire(self, now: float, all: bool = False) -> None:
        for key, s in list(self._seen.items()):
            if not all and s.until > now:
                return  # they are in the order of time
            del self._seen[key]
            if s.count == 1:
                self.lines.append((s.stream, b"(" + s.who + b") " + s.text))
            elif s.count:
                self.lines.append((s.stream, b"(" + s.who + b") " + s.text + b" [repeated %dx across the cluster]" % s.count))

    def flush(self) -> None:
        """Print."""
        lines, self.lines = self.lines, []
        if not lines:
            return
        with self._lock:
            for stream, line in lines:
                to = sys.stderr if stream == 2 else sys.stdout
                try:
                    to.write(line.decode("utf-8", "replace") + "\n")
                    to.flush()
                except (OSError, ValueError, AttributeError):  # closed, or none
                    pass

    def close(self) -> None:
        """Print what is still to be said."""
        self._expire(0.0, all=True)
        self.flush()
