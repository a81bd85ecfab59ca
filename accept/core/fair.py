"""Whose turn it is: shares, priorities and limits of jobs on a cluster of two nodes.

Every task writes when it began and ended; what ran at a time is counted from that.
"""

import json
import os
import subprocess
import sys
import time

LAUNCHER = os.environ["LAUNCHER"]
WORK = sys.argv[1]
CORES = 8  # of the cluster

DRIVER = """
import sys, time
import launcher
log, span, takes, priority, limit = sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
launcher.init(priority=priority, limits={"cpu": limit} if limit else None, log_to_driver=False)

@launcher.remote
def work(end):
    began = time.time()
    if began > end:
        return
    time.sleep(takes)
    with open(log, "a") as f:
        f.write(f"{began} {time.time()}\\n")

end = time.time() + span
launcher.get([work.remote(end) for _ in range(int(span * 10 / takes))])
"""


def point(name, ok, text):
    print("PASS" if ok else "FAIL", "fair." + name, text, flush=True)


class Driver:
    def __init__(self, name, span, takes=0.05, priority=0, limit=0):
        self.log = os.path.join(WORK, name)
        open(self.log, "w").close()
        self.process = subprocess.Popen([sys.executable, "-c", DRIVER, self.log, str(span), str(takes), str(priority), str(limit)])

    def runs(self, bound=60.0):
        """Wait until a task has ended."""
        end = time.monotonic() + bound
        while not os.path.getsize(self.log):
            if time.monotonic() > end or self.process.poll() is not None:
                raise SystemExit(f"nothing of {self.log} has run")
            time.sleep(0.05)

    def spans(self):
        with open(self.log) as f:
            return [tuple(map(float, line.split())) for line in f if line.endswith("\n")]

    def used(self, low, high):
        return sum(max(0.0, min(b, high) - max(a, low)) for a, b in self.spans())

    def ends(self):
        if self.process.wait(120):
            raise SystemExit(f"the driver of {self.log} failed")


def most(spans):
    """The most that ran at a time."""
    now = top = 0
    for _, step in sorted([(a, 1) for a, b in spans] + [(b, -1) for a, b in spans]):
        now += step
        top = max(top, now)
    return top


def shares(low, high, drivers):
    used = [d.used(low, high) for d in drivers]
    return [u / max(sum(used), 1e-9) for u in used], sum(used) / (high - low) / CORES


def cli(*args):
    return subprocess.run([LAUNCHER, *args], capture_output=True, text=True, timeout=60).stdout


def show(parts):
    return ", ".join(f"{p:.2f}" for p in parts)


# Two, of which one was there long before the other; then a third.
a = Driver("a", 38)
a.runs()
time.sleep(3)
b = Driver("b", 32)
b.runs()
time.sleep(3)
low = time.time()
time.sleep(6)
parts, busy = shares(low, low + 6, [a, b])
point("two", all(0.4 <= p <= 0.6 for p in parts), f"shares {show(parts)}, {busy:.2f} of the room in use")
status = json.loads(cli("status", "--json"))["uses"]
point("status", len(status) == 2 and all(u["uses"]["cpu"] >= 2 for u in status), str(status)[:300])
c = Driver("c", 14)
c.runs()
time.sleep(3)
low = time.time()
time.sleep(6)
parts, busy = shares(low, low + 6, [a, b, c])
point("three", all(0.23 <= p <= 0.44 for p in parts), f"shares {show(parts)}, {busy:.2f} of the room in use")
for d in (a, b, c):
    d.ends()

# A higher priority has all that it can use.
a = Driver("low", 16)
a.runs()
time.sleep(2)
b = Driver("high", 10, priority=1)
b.runs()
time.sleep(2.5)
low = time.time()
time.sleep(4)
queued = [t for t in json.loads(cli("tasks", "--json", "--state", "queued", "--limit", "5000"))["sdk"] if "priority" in (t.get("why") or "")]
parts, busy = shares(low, low + 4, [a, b])
point("priority", parts[1] >= 0.9, f"the higher one had {parts[1]:.2f}, {busy:.2f} of the room in use")
point("why-priority", any("it is the turn of program d" in t["why"] and "of priority 1" in t["why"] for t in queued), str([t["why"] for t in queued][:1])[:300])
for d in (a, b):
    d.ends()

# A limit holds exactly, and why names it.
a = Driver("limited", 8, limit=3)
a.runs()
time.sleep(3)
why = [t["why"] for t in json.loads(cli("tasks", "--json", "--state", "queued", "--limit", "1"))["sdk"]]
a.ends()
top = most(a.spans())
point("limit", top == 3, f"{top} ran at a time of 3 that may, {len(a.spans())} in all")
point("why-limit", bool(why) and "is at its limit of 3 cpu" in why[0], str(why)[:300])

# A program and an array of commands, of which the program was there before.
a = Driver("program", 22, takes=0.2)
a.runs()
time.sleep(2)
array = Driver.__new__(Driver)
array.log = os.path.join(WORK, "array")
open(array.log, "w").close()
began = 'a=$(date +%s.%N); sleep 0.2; echo $a $(date +%s.%N) >>' + array.log
job = cli("run", "--array", "0-999", "--detach", "--", "sh", "-c", began).split()[-1]
while not array.spans():
    time.sleep(0.05)
time.sleep(3)
low = time.time()
time.sleep(6)
uses = [j["uses"]["cpu"] for j in json.loads(cli("jobs", "--json"))["jobs"] if str(j["id"]) == job]
parts, busy = shares(low, low + 6, [a, array])
cli("cancel", job)
point("array", all(0.35 <= p <= 0.65 for p in parts), f"shares {show(parts)}, {busy:.2f} of the room in use")
point("jobs", bool(uses) and 2 <= uses[0] <= 6, f"`launcher jobs` says that the array has {uses}")
a.ends()
