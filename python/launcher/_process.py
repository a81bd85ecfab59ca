"""What a process is to its node's agent: what it says first, and how it ends."""

from __future__ import annotations

import atexit
import os
import sys
from typing import Any, Dict, List, Optional

from . import _frames as f


def hello(kind: int, token: str = "", name: str = "", priority: Optional[int] = None, limits: Optional[Dict[str, int]] = None) -> List[Any]:
    """What this process says first."""
    return [
        f.VERSION, kind, "python", os.getpid(), os.environ.get("LAUNCHER_PROC", ""), os.environ.get("LAUNCHER_JOB_ID", ""),
        name, 0, b"", token, sys.executable, os.getcwd(), [] if token else _path(), priority, limits,
    ]  # fmt: skip


def _path() -> List[str]:
    """The directories that this program added to where modules are looked for."""
    library, ours = os.path.dirname(os.__file__), os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    skip = {library, os.path.join(library, "lib-dynload"), ours, os.path.join(ours, "as-ray")}
    out: List[str] = []
    for p in sys.path:
        p = os.path.abspath(p)  # "" is where the program was started
        if p not in skip and p not in out and os.path.basename(p) not in ("site-packages", "dist-packages") and os.path.isdir(p):
            out.append(p)
    return out


def clean_path() -> None:
    """Drop what -m put in front of the module path: the program's own folders are in PYTHONPATH."""
    if sys.path and os.path.abspath(sys.path[0] or ".") == os.getcwd() and not getattr(sys.flags, "safe_path", False):
        del sys.path[0]


def finish(code: int) -> None:
    """End this process from any thread."""
    try:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        pass
    os._exit(code)
