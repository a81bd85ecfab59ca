"""Resources as a limit: how many run at once is what they ask for, not how many there are.

It needs a cluster with 2 of a resource named slot, and 2 CPUs.
"""

import time

import ray


@ray.remote(num_cpus=0)
class Watch:
    """How many are inside, and the most there were."""

    def __init__(self):
        self.inside = self.peak = 0

    def enter(self):
        self.inside += 1
        self.peak = max(self.peak, self.inside)

    def leave(self):
        self.inside -= 1

    def most(self):
        peak, self.peak = self.peak, 0
        return peak


@ray.remote(num_cpus=0)
def hold(watch):
    ray.get(watch.enter.remote())
    time.sleep(0.1)
    ray.get(watch.leave.remote())
    return 1


@ray.remote(num_cpus=0, resources={"slot": 1})
class Holder:
    def here(self):
        return sorted(ray.get_runtime_context().get_assigned_resources())


ray.init()
watch = Watch.remote()
print("slots:", ray.cluster_resources()["slot"])
for name, options, n in (
    ("a slot each", {"resources": {"slot": 1}}, 6),
    ("both slots each", {"resources": {"slot": 2}}, 3),
    ("a quarter each", {"resources": {"slot": 0.25}}, 8),
):
    done = sum(ray.get([hold.options(**options).remote(watch) for _ in range(n)]))
    most = ray.get(watch.most.remote())
    bound = int(2 / options["resources"]["slot"])
    print(f"{name}: {done} done, {'at most ' + str(bound) if most <= bound else most} at once")

holders = [Holder.remote() for _ in range(2)]
print("each actor holds:", ray.get([h.here.remote() for h in holders]))
task = hold.options(resources={"slot": 1}).remote(watch)
ready, _ = ray.wait([task], timeout=0.5)
print("a task while actors hold all:", "ran" if ready else "waits")
ray.kill(holders.pop())
print("after one is killed:", ray.get(task, timeout=60))
