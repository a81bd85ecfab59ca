# Sourced by accept/from-ray.sh: each way to import ray, by a program that prints 42.

way plain "import ray" <<'P'
import ray

@ray.remote
def f(x):
    return x + 1

print(ray.get(f.remote(41)))
P
way as "import ray as r" <<'P'
import ray as r

print(r.get(r.remote(lambda: 42).remote()))
P
way from "from ray import names" <<'P'
from ray import get, put, remote, wait

@remote
def f(x):
    return x

ready, _ = wait([f.remote(put(42))])
print(get(ready[0]))
P
way submodules "import ray.util.queue, from ray.util import, from ray.util.x import" <<'P'
import ray.exceptions
import ray.util.queue
from ray.util import ActorPool, placement_group
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

assert ray.util.queue.Queue is Queue and issubclass(Empty, Exception) and ActorPool
here = ray.get_runtime_context().get_node_id()
print(ray.get(ray.remote(lambda: 42).options(scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=True)).remote()))
P
way library "inside a library module" <<'P'
import library

print(library.doubled(21))
P
way package "inside a package, relative and guarded" <<'P'
import package

print(package.answer())
P
way module "python -m package" -m package </dev/null
way command "python -c" -c 'import ray; print(ray.get(ray.remote(lambda: 42).remote()))' </dev/null
way lazily "in a function of the driver, and of a task" <<'P'
def task(x):
    import ray

    return ray.get(ray.put(x))

def main():
    import ray

    return ray.get(ray.remote(task).remote(42))

print(main())
P
way importlib "importlib.import_module, find_spec, metadata" <<'P'
import importlib
import importlib.metadata
import importlib.util

assert importlib.util.find_spec("ray") and importlib.util.find_spec("ray.util.queue")
ray = importlib.import_module("ray")
assert importlib.metadata.version("ray") == ray.__version__
print(ray.get(ray.remote(lambda: 42).remote()))
P
way auto 'ray.init(address="auto")' <<'P'
import ray

ray.init(address="auto", namespace="x", ignore_reinit_error=True, log_to_driver=False, include_dashboard=False, num_cpus=None)
print(ray.get(ray.remote(lambda: 42).remote()))
P
way with "with ray.init(): leaves, and comes again" <<'P'
import ray

with ray.init():
    ref = ray.get(ray.put(1))
assert not ray.is_initialized()
ray.init()
print(ray.get(ray.remote(lambda: 42).remote()))
ray.shutdown()
P
way worker "in workers only: tasks of tasks, classes from a library" <<'P'
import ray

@ray.remote
def outer():
    import library
    from ray.util.debug import log_once

    assert log_once("x")
    return library.doubled(21)

print(ray.get(outer.remote()))
P
way actor "in the methods of an actor" <<'P'
import ray

@ray.remote
class A:
    def __init__(self):
        import ray.util.queue as q

        self.name = q.Queue.__name__

    def answer(self):
        from ray import get, remote

        return get(remote(lambda: 42).remote()) if self.name == "Queue" else 0

print(ray.get(A.remote().answer.remote()))
P
way child "in a child process of the program, started anew" <<'P'
import subprocess
import sys

print(subprocess.run([sys.executable, "-c", "import ray; print(ray.get(ray.remote(lambda: 42).remote()))"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip())
P
way spawned "in a process of multiprocessing" <<'P'
import multiprocessing

def work(q):
    import ray

    q.put(ray.get(ray.remote(lambda: 42).remote()))

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    q = context.Queue()
    p = context.Process(target=work, args=(q,))
    p.start()
    print(q.get(timeout=60))
    p.join()
P
way thread "in a thread" <<'P'
import threading

out = []

def work():
    import ray

    out.append(ray.get(ray.remote(lambda: 42).remote()))

t = threading.Thread(target=work)
t.start()
t.join()
print(out[0])
P
way isinstance "types and errors are those that are caught" <<'P'
import pickle
import ray
from ray import ObjectRef
from ray.exceptions import GetTimeoutError, RayTaskError

@ray.remote(max_retries=0)
def fails():
    raise KeyError("x")

ref = fails.remote()
assert isinstance(ref, ObjectRef) and isinstance(ref, ray.ObjectRef)
try:
    ray.get(ref)
except RayTaskError as e:
    assert isinstance(e, KeyError) and pickle.loads(pickle.dumps(e))
    assert issubclass(GetTimeoutError, TimeoutError) and GetTimeoutError.__module__.endswith("exceptions")
    print(42)
P
if "$PY" -c 'import ipykernel' 2>/dev/null; then
	way notebook "in a notebook's kernel" "$HERE/kernel.py" </dev/null
else
	fail import.notebook "ipykernel is not installed"
fi
if [ -x "$ROOT/.build/from-ray-ray-venv/bin/python" ]; then
	PY=$ROOT/.build/from-ray-ray-venv/bin/python way installed "with the real Ray installed beside" <<'P'
import ray
from ray.util.queue import Queue

assert "launcher" in ray.__name__ and "launcher" in Queue.__module__, ray
print(ray.get(ray.remote(lambda: 42).remote()))
P
fi
# Without run: the program says it itself.
out=$(t1 env LAUNCHER_CLUSTER=fromray LAUNCHER="$ROOT/.build/launcher" PYTHONPATH="$ROOT/python" PYTHONDONTWRITEBYTECODE=1 timeout 60 "$PY" -c 'import launcher.as_ray, ray; print(ray.get(ray.remote(lambda: 42).remote()))' 2>"$WORK/err")
check import.as_ray "import launcher.as_ray, without run: printed $out $(tail -2 "$WORK/err")" test "$out" = 42
