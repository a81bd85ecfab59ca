"""Points about nodes that are drained, on a cluster of four: three of them leave here."""

import os
import signal
import time

from points import eventually, launcher, main, point

import launcher as ray
from launcher.scheduling import NodeAffinitySchedulingStrategy

ray.init()
HERE = ray.get_runtime_context().get_node_id()
RAN = os.path.join(os.environ["TMPDIR"], "drain-ran")


def up():
    return [n["id"] for n in launcher("nodes")["nodes"] if n["state"] == "up"]


@ray.remote(max_retries=1)
def made(k):
    with open(RAN, "a") as f:
        f.write("x")
    return bytes([k]) * 3_000_000


@ray.remote(max_retries=1)
def puts():
    return [ray.put(b"p" * 2_000_000), ray.put("small")] + [ray.put(k) for k in range(200)]


def filled():
    """Results and put objects on another node, and that node."""
    open(RAN, "w").close()
    node = next(n for n in up() if n != HERE)
    on = NodeAffinitySchedulingStrategy(node, soft=True)
    results = [made.options(scheduling_strategy=on).remote(k) for k in range(20)]
    ray.wait(results, num_returns=20, fetch_local=False)
    put = ray.get(puts.options(scheduling_strategy=on).remote())
    return node, results, put


def whole(results, put):
    assert ray.get(put[0]) == b"p" * 2_000_000 and ray.get(put[1:]) == ["small", *range(200)]
    assert ray.get(results) == [bytes([k]) * 3_000_000 for k in range(20)]


@point("drain.moves", 90)
def moves():
    node, results, put = filled()
    began = time.monotonic()
    launcher("drain", node)
    eventually("it has left", lambda: node not in [n["id"] for n in launcher("nodes")["nodes"] if n["state"] in ("up", "draining")], 60)
    took = time.monotonic() - began
    whole(results, put)
    again = os.path.getsize(RAN) - 20
    assert again == 0, f"{again} results were made again"
    return f"222 objects are where nodes stay, {took:.1f} s after the word to drain; nothing was made again"


@ray.remote(max_retries=0)
def last(began, told):
    open(began, "w").close()
    while not os.path.exists(told):
        time.sleep(0.01)
    return [ray.put(b"p" * 2_000_000)]


@point("drain.last", 90)
def while_it_works():
    """What the last task of a node leaves, which runs when the node is drained."""
    node = next(n for n in up() if n != HERE)
    began, told = (f"{RAN}-{os.getpid()}-{x}" for x in ("began", "told"))
    ref = last.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=True)).remote(began, told)
    eventually("it runs there", lambda: os.path.exists(began), 30)
    launcher("drain", node)
    open(told, "w").close()
    eventually("it has left", lambda: node not in [n["id"] for n in launcher("nodes")["nodes"] if n["state"] in ("up", "draining")], 60)
    assert ray.get(ray.get(ref)[0]) == b"p" * 2_000_000
    return "what it put is where nodes stay"


@point("drain.killed", 90)
def killed():
    """The agent of the node dies while they are moved; another one goes on."""
    node, results, put = filled()
    (agent,) = [n["pid"] for n in launcher("nodes")["nodes"] if n["id"] == node]
    launcher("drain", node)
    os.kill(agent, signal.SIGKILL)
    eventually("it has left", lambda: node not in [n["id"] for n in launcher("nodes")["nodes"] if n["state"] in ("up", "draining")], 60)
    whole(results, put)
    return f"222 objects are whole, {os.path.getsize(RAN) - 20} were made again"


if __name__ == "__main__":
    main()
