"""The state of the cluster: actors, tasks and objects as lists that can be filtered.

Under Ray it needs ray[default], whose dashboard answers.
"""

import time

import ray
from ray.util.state import get_actor, list_actors, list_nodes, list_tasks, summarize_tasks


@ray.remote(num_cpus=0)
class Clerk:
    def work(self):
        return "done"


@ray.remote(num_cpus=0)
def chore(n):
    if n == 3:
        raise ValueError("not this one")
    return n


def eventually(ask, enough):
    """What the cluster knows of may be a moment old."""
    for _ in range(300):
        got = ask()
        if enough(got):
            break
        time.sleep(0.1)
    return got


ray.init()
job = ray.get_runtime_context().get_job_id()
mine = [("job_id", "=", job)]
clerks = [Clerk.options(name=f"clerk{i}").remote() for i in range(3)]
ray.get([c.work.remote() for c in clerks])
ray.kill(clerks[2])
ray.wait([chore.remote(n) for n in range(5)], num_returns=5)

actors = eventually(lambda: list_actors(filters=mine), lambda a: sum(x.state == "DEAD" for x in a) == 1)
print("actors:", sorted((a.name, a.class_name, a.state) for a in actors))
alive = list_actors(filters=[*mine, ("state", "=", "ALIVE")])
print("alive:", sorted(a["name"] for a in alive))
print("by its id:", get_actor(alive[0].actor_id).class_name)

tasks = eventually(lambda: list_tasks(filters=[*mine, ("name", "=", "chore")]), lambda t: len(t) == 5 and all(x.state in ("FINISHED", "FAILED") for x in t))
print("tasks:", sorted(t.state for t in tasks))
print("failed:", len(list_tasks(filters=[*mine, ("state", "=", "FAILED")])))
print("no more than two:", len(list_tasks(filters=mine, limit=2)))
print("nodes alive:", {n.state for n in list_nodes()} == {"ALIVE"})
print("summary has it:", "chore" in summarize_tasks()["cluster"]["summary"])
