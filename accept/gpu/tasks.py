"""Tasks on the real GPUs of this machine; see accept/gpu.sh."""

import os
import tempfile
import time

import launcher as ray

UUIDS = os.environ["UUIDS"].split()
N = len(UUIDS)


def point(name, f):
    try:
        print("PASS", name, " ".join(str(f()).split())[:400], flush=True)
    except BaseException as e:  # noqa: BLE001 - every failure is a verdict
        print("FAIL", name, " ".join(f"{type(e).__name__}: {e}".split())[:600], flush=True)


@ray.remote(num_gpus=1)
def whole():
    import sys

    early = "torch" in sys.modules
    import torch

    x = torch.arange(1024, dtype=torch.float64, device="cuda")
    return {
        "visible": os.environ["CUDA_VISIBLE_DEVICES"],
        "ids": [str(i) for i in ray.get_gpu_ids()],
        "count": torch.cuda.device_count(),
        "sum": float((x * x).sum()),
        "early": early,
        "uuid": str(torch.cuda.get_device_properties(0).uuid),
    }


def detected():
    have = ray.cluster_resources().get("GPU")
    assert have == N, (have, N)
    return f"{have:g} of {N} in cluster_resources"


def uuid():
    got = ray.get(whole.remote(), timeout=120)
    assert got["visible"] in UUIDS and got["ids"] == [got["visible"]], got
    assert got["visible"] == "GPU-" + got["uuid"] and got["count"] == 1, got
    assert got["sum"] == sum(i * i for i in range(1024)), got
    return got


def hidden():
    @ray.remote
    def none():
        import torch

        return os.environ.get("CUDA_VISIBLE_DEVICES"), torch.cuda.is_available()

    got = ray.get(none.remote(), timeout=120)
    assert got == ("", False), got
    return f"a task that asked for none: {got}"


def fractions():
    met, n = tempfile.mkdtemp(), 2 * N

    @ray.remote(num_gpus=0.5, num_cpus=0)
    def half(i):
        a = time.time()
        import torch

        x = torch.ones(1 << 22, device="cuda")
        open(os.path.join(met, str(i)), "w").close()
        while len(os.listdir(met)) < n and time.time() < a + 60:  # they meet only if all run at once
            x = x * 1.0
        torch.cuda.synchronize()
        return a, time.time(), os.environ["CUDA_VISIBLE_DEVICES"]

    spans = ray.get([half.remote(i) for i in range(n)], timeout=200)
    together = max(sum(b[0] <= a[0] < b[1] for b in spans) for a in spans)
    used = [s[2] for s in spans]
    assert together == 2 * N and all(used.count(u) == 2 for u in UUIDS), (together, used)
    return f"{together} halves at once, two on each of {N}"


def exclusive():
    @ray.remote(num_gpus=1, num_cpus=0)
    def span():
        a = time.time()
        time.sleep(0.5)
        return a, time.time(), os.environ["CUDA_VISIBLE_DEVICES"]

    spans = ray.get([span.remote() for _ in range(3 * N)], timeout=100)
    for a in spans:
        assert sum(b[2] == a[2] and a[0] < b[1] and b[0] < a[1] for b in spans) == 1, spans
    return f"{len(spans)} whole ones, never two on a GPU at once"


def fork():
    """A worker that used CUDA does not spoil those that are forked after it."""
    seen = set()
    for i in range(4):
        got = ray.get(whole.options(runtime_env={"env_vars": {"ROUND": str(i // 2)}}).remote(), timeout=120)
        assert got["count"] == 1 and not (i == 0 and got["early"]), got
        seen.add(got["sum"])
    return f"4 in two environments: {seen}"


ray.init("auto")
point("gpu.detected", detected)
point("gpu.uuid", uuid)
point("gpu.hidden", hidden)
point("gpu.fractions", fractions)
point("gpu.whole", exclusive)
point("gpu.fork", fork)
ray.shutdown()
