"""What the programs of accept/core share: points that print a verdict each.

A program registers functions with @point("name"); main() runs those that the command line
names (all by default) and prints `PASS name evidence` or `FAIL name what`. A point that
does not end within its bound has failed.
"""

import glob
import json
import os
import signal
import subprocess
import sys
import time
import traceback

POINTS = {}


def point(name, bound=60):
    def add(f):
        POINTS[name] = (f, bound)
        return f

    return add


def main():
    for name in sys.argv[1:] or POINTS:
        f, bound = POINTS[name]
        signal.signal(signal.SIGALRM, late)
        signal.alarm(bound)
        start = time.monotonic()
        try:
            evidence = f()
            verdict = "PASS"
            assert isinstance(evidence, str), "the point gives no evidence"
            evidence += f" [{time.monotonic() - start:.1f} s]"
        except BaseException as e:  # whatever it is, the next point is to be looked at
            verdict, where = "FAIL", traceback.extract_tb(e.__traceback__)
            mine = [w for w in where if "/accept/" in w.filename] or where
            evidence = f"line {mine[-1].lineno}: {type(e).__name__}: {str(e).strip()[-300:]}"
        finally:
            signal.alarm(0)
        print(verdict, name, " ".join(evidence.split()), flush=True)


class Late(BaseException):
    """Not an error that a library could take for one of its own."""


def late(*_):
    raise Late("the point did not end in its time")


def launcher(*args, cluster=None):
    """A launcher command's JSON, on the cluster that this program is connected to."""
    import launcher as ray

    info = ray.init(ignore_reinit_error=True).address_info
    ray.cluster_resources()  # what this program has not written yet is written before a question
    home = os.environ["LAUNCHER_HOME"]
    env = {k: v for k, v in os.environ.items() if k not in ("LAUNCHER_SOCKET",)}
    env["LAUNCHER_HOME"] = home
    out = subprocess.run(["launcher", *args, "--json", "-c", cluster or info["cluster"]], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert out.stdout, out.stderr
    return json.loads(out.stdout.splitlines()[-1])


def objects(node=None):
    """The objects of all nodes, or of one: {node: {...}}."""
    return {n["node"]: n for n in launcher("objects", "--limit", "0")["nodes"] if node in (None, n["node"])}


def total(what):
    return sum(n[what] for n in objects().values())


def eventually(what, cond, bound=20):
    end = time.monotonic() + bound
    while True:
        v = cond()
        if v:
            return v
        assert time.monotonic() < end, f"not within {bound} s: {what}"
        time.sleep(0.05)


def raises(kind, f, *words):
    """f raises kind, with these words in its text; the text's first line."""
    try:
        f()
    except kind as e:
        text = str(e) + " " + " ".join(getattr(e, "hints", []) or [])
        missing = [w for w in words if w not in text]
        assert not missing, f"{type(e).__name__} without {missing}: {text[:300]}"
        return f"{type(e).__name__}: {str(e).strip().splitlines()[-1][:160]}"
    raise AssertionError(f"no {getattr(kind, '__name__', kind)}")


def processes(kind):
    """Pids of this cluster's processes of a hidden command: agent, supervise, node, head."""
    import launcher as ray

    name = ray.init(ignore_reinit_error=True).address_info["cluster"]
    marks = {b"LAUNCHER_CLUSTER=" + name.encode()}
    out = []
    for d in glob.glob("/proc/[0-9]*"):
        try:
            args = open(d + "/cmdline", "rb").read().split(b"\0")
            if len(args) > 1 and args[1] == kind.encode() and marks <= set(open(d + "/environ", "rb").read().split(b"\0")):
                out.append(int(d[6:]))
        except OSError:
            pass
    return out


def resident_kb(pid, kind="VmRSS"):
    for line in open(f"/proc/{pid}/status"):
        if line.startswith(kind):
            return int(line.split()[1])
    return 0
