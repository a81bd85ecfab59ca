"""Handles: passed to tasks and actors, kept when their maker is gone, and what ends an actor."""

import ray
from ray.actor import exit_actor


@ray.remote(num_cpus=0)
class Box:
    def __init__(self):
        self.items = []

    def put(self, item):
        self.items.append(item)
        return len(self.items)

    def all(self):
        return sorted(self.items)

    def leave(self):
        exit_actor()


@ray.remote(num_cpus=0)
def fill(box, name):
    return ray.get(box.put.remote(name))


@ray.remote(num_cpus=0)
def make():
    """The task ends; the actor lives while somebody has its handle."""
    box = Box.remote()
    ray.get(box.put.remote("from its maker"))
    return box


@ray.remote(num_cpus=0)
class Keeper:
    def keep(self, boxes):
        self.box = boxes["box"]

    def ask(self):
        return ray.get(self.box.all.remote())


def end(box):
    try:
        while True:
            ray.get(box.all.remote())
    except ray.exceptions.RayActorError as e:
        return isinstance(e, ray.exceptions.ActorDiedError)


ray.init()
box = Box.remote()
print("filled:", sorted(ray.get([fill.remote(box, n) for n in ("x", "y", "z")])), ray.get(box.all.remote()))
made = ray.get(make.remote())
print("outlives its maker:", ray.get(made.all.remote()))

keeper = Keeper.remote()
ray.get(keeper.keep.remote({"box": made}))
del made
print("kept by an actor:", ray.get(keeper.ask.remote()))
ray.kill(box)
print("killed:", end(box))
other = Box.remote()
try:
    ray.get(other.leave.remote())
except ray.exceptions.RayActorError:
    pass
print("left by itself:", end(other))
