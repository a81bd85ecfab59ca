"""The runtime context: what a task or an actor can ask about itself, and its environment."""

import os

import ray


@ray.remote(name="asker")
def task():
    ctx = ray.get_runtime_context()
    return {"job": ctx.get_job_id(), "node": ctx.get_node_id(), "task": ctx.get_task_id(), "actor": ctx.get_actor_id(), "cpu": ctx.get_assigned_resources().get("CPU")}


@ray.remote(num_cpus=1)
class Asker:
    def about(self):
        ctx = ray.get_runtime_context()
        return {"job": ctx.get_job_id(), "actor": ctx.get_actor_id(), "name": ctx.get_actor_name(), "again": ctx.was_current_actor_reconstructed}

    def me(self):
        """A handle of itself, for others."""
        return ray.get_runtime_context().current_actor

    def greet(self):
        return "hello from the same actor"


@ray.remote(num_cpus=0, runtime_env={"env_vars": {"GREETING": "good day", "EMPTY": ""}})
def environment():
    return os.environ.get("GREETING"), os.environ.get("EMPTY")


@ray.remote(num_cpus=0)
def plain():
    return os.environ.get("GREETING")


ray.init(namespace="examples-context")
ctx = ray.get_runtime_context()
print("the driver's namespace:", ctx.namespace)
print("initialised:", ray.is_initialized(), "driver's task actor:", ctx.get_actor_id())

facts = ray.get(task.remote())
print("same job:", facts["job"] == ctx.get_job_id(), "a task:", bool(facts["task"]), "an actor:", facts["actor"], "CPUs:", facts["cpu"])
print("a node of the cluster:", facts["node"] in {n["NodeID"] for n in ray.nodes()})

asker = Asker.options(name="asker").remote()
about = ray.get(asker.about.remote())
print("name:", about["name"], "same job:", about["job"] == facts["job"], "made again:", about["again"])
me = ray.get(asker.me.remote())
print(ray.get(me.greet.remote()))
print("variables:", ray.get(environment.remote()), ray.get(plain.remote()))
print("a GPU here:", ray.get_gpu_ids())
