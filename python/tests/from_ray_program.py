"""A program for Ray, run by `launcher run --as-ray`: every way to import, here and in workers."""

import importlib
import operator
import os
import subprocess
import sys
import time

import ray
import ray as r
from ray.util.dask import ray_dask_get
from ray.util.helpers import as_completed
from ray.experimental import get_object_locations
from ray.experimental.tqdm_ray import tqdm
from ray.job_submission import JobStatus, JobSubmissionClient
from ray.util import state
from ray.util.metrics import Counter, Gauge, Histogram

import from_ray_library

ray.init(address="auto", namespace="here", dashboard_host="0.0.0.0", log_to_driver=False)


@ray.remote
def anywhere(x):
    import ray  # lazily, in a worker
    from ray.exceptions import RayError

    assert issubclass(RayError, Exception)
    return ray.get(from_ray_library.one_more.remote(x)) + importlib.import_module("ray").get(from_ray_library.one_more.remote(x))


assert r is ray and ray.__name__ == "launcher.as_ray"
assert sorted(as_completed([anywhere.remote(i) for i in range(10)])) == [2 * i + 2 for i in range(10)]
assert ray_dask_get({"a": 1, "b": (operator.add, "a", 2), "c": (sum, ["a", "b"])}, ["b", "c"]) == (3, 4)


@ray.remote
def fails():
    raise ray.exceptions.OutOfMemoryError("mine")


try:
    ray.get(fails.remote())
    sys.exit("no error")
except ray.exceptions.RayError:
    pass

counter = Counter("counted", description="what was counted", tag_keys=("kind",))


@ray.remote
def counts(n):
    counter.inc(n, tags={"kind": "task"})


ray.get([counts.remote(i + 1) for i in range(10)])
Gauge("level").set(4)
Histogram("took", boundaries=[0.5, 1]).observe(0.7)
deadline = time.monotonic() + 120
while True:  # a process tells what it counted within a second
    text = subprocess.run([os.environ["LAUNCHER"], "metrics"], check=True, stdout=subprocess.PIPE).stdout.decode()
    total = sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f'ray_counted_total{{job="{os.environ["LAUNCHER_JOB_ID"]}"'))
    if total == 55 and "ray_level{" in text and 'le="1"} 1' in text:
        break
    assert time.monotonic() < deadline, text
    time.sleep(0.1)  # sleep: until the processes have told
assert 'launcher_resources{node="local-0",resource="CPU",state="total"} 4' in text, text
assert 'launcher_tasks_ended_total{node="local-1",state="done"}' in text, text

# State.

big = ray.put(bytes(200_000))
ended = state.list_tasks(filters=[("state", "=", "FAILED"), ("name", "=", "fails")], limit=1000)
assert [t.error_type for t in ended] == ["TASK_EXECUTION_EXCEPTION"], ended
assert state.summarize_tasks()["cluster"]["summary"]["counts"]["state_counts"] == {"FINISHED": 10}
assert {n.node_id: n.state for n in state.list_nodes()} == {"local-0": "ALIVE", "local-1": "ALIVE"}
assert os.getpid() in [w.pid for w in state.list_workers(filters=[("worker_type", "=", "DRIVER")])]
assert state.get_objects(big.hex())[0]["object_size"] >= 200_000
assert state.list_objects(limit=1)[0].object_id == big.hex()
assert get_object_locations([big])[big]["node_ids"] == [ray.get_runtime_context().get_node_id()]
assert state.get_job(os.environ["LAUNCHER_JOB_ID"]).status == "RUNNING"
assert list(tqdm(range(3), desc="bar")) == [0, 1, 2]

# Jobs.

client = JobSubmissionClient("http://127.0.0.1:8265")
job = client.submit_job(entrypoint="echo $GREETING; python -c 'import ray; print(ray.__version__)'; exit 3", runtime_env={"env_vars": {"GREETING": "hello"}})
while not client.get_job_status(job).is_terminal():
    assert time.monotonic() < deadline + 60, client.get_job_info(job)
    time.sleep(0.1)  # sleep: until the job has ended
assert client.get_job_status(job) == JobStatus.FAILED and client.get_job_info(job).driver_exit_code == 3
assert client.get_job_logs(job) == f"hello\n{ray.__version__}\n", client.get_job_logs(job)
assert not client.stop_job(job)
print("all well")
