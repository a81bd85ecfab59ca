"""Named actors: found by anybody in the cluster, in namespaces; detached ones stay."""

import ray


@ray.remote(num_cpus=0)
class Counter:
    def __init__(self, start=0):
        self.value = start

    def add(self, n=1):
        self.value += n
        return self.value


@ray.remote
def elsewhere(name):
    """Finds the actor by its name: no handle was passed."""
    return ray.get(ray.get_actor(name).add.remote(10))


ray.init(namespace="examples-named")
mine = Counter.options(name="tally").remote()
print("add:", ray.get(mine.add.remote()))
print("from a task:", ray.get(elsewhere.remote("tally")))

try:
    Counter.options(name="tally").remote()
except ValueError:
    print("a second of that name: refused")
same = Counter.options(name="tally", get_if_exists=True).remote(500)
print("get_if_exists gives the first:", ray.get(same.add.remote()))

other = Counter.options(name="tally", namespace="examples-other", lifetime="detached").remote(100)
print("of the other namespace:", ray.get(ray.get_actor("tally", namespace="examples-other").add.remote()))
print("here:", ray.util.list_named_actors())
everywhere = ray.util.list_named_actors(all_namespaces=True)
print("everywhere:", sorted(a["namespace"] for a in everywhere if a["name"] == "tally"))

# A detached actor has no owner: it lives on when all its handles are gone.
del other
found = ray.get_actor("tally", namespace="examples-other")
print("still there:", ray.get(found.add.remote()))
ray.kill(found)
ray.kill(mine)
for namespace in (None, "examples-other"):
    try:
        while True:  # until the cluster has taken note
            ray.get(ray.get_actor("tally", namespace=namespace).add.remote())
    except ValueError:
        print("gone")
    except ray.exceptions.RayActorError:
        print("gone")
