"""Placement groups: room for a gang, all of it or none, and who runs in which bundle."""

import ray
from ray.util.placement_group import (
    get_current_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy


@ray.remote
def where():
    """The node it runs on, and whether it runs in a group."""
    return ray.get_runtime_context().get_node_id(), get_current_placement_group() is not None


@ray.remote
def parent():
    """Its children are in the group when it captures them."""
    return get_current_placement_group() is not None, ray.get(where.options(num_cpus=0).remote())[1]


@ray.remote(num_cpus=1)
class Member:
    def __init__(self, rank):
        self.rank = rank

    def hello(self):
        return self.rank, get_current_placement_group() is not None


def inside(group, index=-1, capture=False):
    return PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index, placement_group_capture_child_tasks=capture)


ray.init()
nodes = len([n for n in ray.nodes() if n["Alive"]])
for strategy in ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"):
    bundles = [{"CPU": 1}] * (nodes if strategy == "STRICT_SPREAD" else 2)
    group = placement_group(bundles, strategy=strategy, name=f"example-{strategy}")
    ray.get(group.ready())
    homes = ray.get([where.options(num_cpus=1, scheduling_strategy=inside(group, i)).remote() for i in range(len(bundles))])
    used = len({node for node, _ in homes})
    right = {"STRICT_PACK": used == 1, "STRICT_SPREAD": used == nodes}.get(strategy, used <= 2)
    print(f"{strategy}: as it should be: {right}, in the group: {all(known for _, known in homes)}, bundles: {group.bundle_count == len(bundles)}")
    remove_placement_group(group)

group = placement_group([{"CPU": 1}, {"CPU": 1}], strategy="PACK")
print("made:", group.wait(timeout_seconds=30), group.bundle_specs)
members = [Member.options(scheduling_strategy=inside(group, i)).remote(i) for i in range(2)]
print("members:", ray.get([m.hello.remote() for m in members]))
print("state:", placement_group_table(group)["state"])
for m in members:
    ray.kill(m)
print("captured:", ray.get(parent.options(scheduling_strategy=inside(group, 0, capture=True)).remote()))
print("not captured:", ray.get(parent.options(scheduling_strategy=inside(group, 0)).remote()))

large = placement_group([{"CPU": 1}, {"CPU": 1000}], strategy="PACK")
print("what does not fit is not made:", large.wait(timeout_seconds=1))
remove_placement_group(large)
member = Member.options(scheduling_strategy=inside(group, 1)).remote(1)
ray.get(member.hello.remote())
remove_placement_group(group)  # ends what runs in it
try:
    while True:
        ray.get(member.hello.remote())
except ray.exceptions.RayActorError:
    print("gone with its group")
