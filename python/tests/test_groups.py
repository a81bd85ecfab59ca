"""Placement groups on a real cluster of two nodes: the launcher command that LAUNCHER names, or .build/launcher."""

import os
import subprocess
import sys
import tempfile
import time
import unittest

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, HERE)

import launcher  # noqa: E402
from launcher import _cluster, exceptions  # noqa: E402
from launcher.util import get_placement_group, placement_group, placement_group_table, remove_placement_group  # noqa: E402
from launcher.util.placement_group import get_current_placement_group  # noqa: E402
from launcher.util.scheduling_strategies import PlacementGroupSchedulingStrategy  # noqa: E402

try:
    BINARY = _cluster.binary()
except launcher.Error:
    BINARY = ""

SPEC = """version = 1
name = "groups"
[[pool]]
name = "local"
backend = "local"
nodes = 2
resources = { cpu = 2 }
python = "%s"
"""


def where():
    group = get_current_placement_group()
    return launcher.get_runtime_context().get_node_id(), group and group.id


def family():
    child = launcher.remote(where)
    return launcher.get([child.remote(), child.options(scheduling_strategy="DEFAULT").remote()])


class Member:
    def where(self):
        return where()

    def child(self):
        return launcher.get(launcher.remote(where).remote())


def long():
    time.sleep(100)


def inside(group, bundle=-1, **options):
    capture = options.pop("capture", None)
    return {"scheduling_strategy": PlacementGroupSchedulingStrategy(group, bundle, capture), **options}


@unittest.skipUnless(BINARY, "SKIP: there is no launcher command")
class GroupTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.dir = tempfile.TemporaryDirectory()
        cls.environ = dict(os.environ)
        os.environ["LAUNCHER_HOME"] = cls.dir.name
        spec = os.path.join(cls.dir.name, "groups.toml")
        with open(spec, "w") as f:
            f.write(SPEC % sys.executable)
        subprocess.run([BINARY, "up", spec], check=True, stdout=subprocess.DEVNULL, timeout=60)

    @classmethod
    def tearDownClass(cls):
        subprocess.run([BINARY, "down", "groups"], check=True, stdout=subprocess.DEVNULL, timeout=60)
        os.environ.clear()
        os.environ.update(cls.environ)
        cls.dir.cleanup()

    def setUp(self):
        launcher.init("groups")

    def tearDown(self):
        launcher.shutdown()

    def eventually(self, test, what, seconds=60):
        end = time.monotonic() + seconds
        while not test():
            self.assertLess(time.monotonic(), end, what)
            time.sleep(0.02)  # sleep: what the head shows is a moment old

    def free(self):
        self.eventually(lambda: launcher.available_resources().get("CPU") == 4, "not all room came back")

    def nodes(self, group):
        return list(placement_group_table(group)["bundles_to_node_id"].values())

    def test_a_group(self):
        group = placement_group([{"CPU": 1}, {"CPU": 1}], strategy="STRICT_SPREAD", name="one")
        self.assertTrue(group.wait(20))
        self.assertEqual(launcher.get(group.ready(), timeout=60), group)
        nodes = self.nodes(group)
        self.assertEqual(sorted(nodes), ["local-0", "local-1"])
        self.assertEqual((get_placement_group("one"), get_placement_group("one").bundle_specs, group.bundle_count), (group, [{"CPU": 1}, {"CPU": 1}], 2))
        task = launcher.remote(where)
        refs = [task.options(**inside(group, i % 2)).remote() for i in range(20)]
        self.assertEqual(launcher.get(refs, timeout=60), [(nodes[i % 2], group.id) for i in range(20)])
        child, other = launcher.get(launcher.remote(family).options(**inside(group, 0, num_cpus=0, capture=True)).remote(), timeout=60)
        self.assertEqual((child[1], other[1]), (group.id, None))
        with self.assertRaisesRegex(ValueError, "already"):
            placement_group([{"CPU": 1}], name="one")
        with self.assertRaisesRegex(ValueError, "index 2 is invalid"):
            task.options(**inside(group, 2)).remote()
        with self.assertRaisesRegex(ValueError, "no bundle"):
            task.options(**inside(group, num_cpus=2)).remote()
        members = [launcher.remote(Member).options(**inside(group, i, num_cpus=0.5, capture=True)).remote() for i in (0, 1)]
        self.assertEqual(launcher.get([m.where.remote() for m in members], timeout=60), [(n, group.id) for n in nodes])
        remove_placement_group(group)
        for m in members:
            self.eventually(lambda: "placement group" in self.death(m), "a member of a group that was removed lives on")
        self.free()
        with self.assertRaises(ValueError):
            get_placement_group("one")

    def test_removed(self):
        group = placement_group([{"CPU": 1}, {"CPU": 1}], strategy="SPREAD")
        runs = [launcher.remote(long).options(**inside(group, i, max_retries=0)).remote() for i in (0, 1)]
        self.eventually(lambda: len({t.worker_pid for t in self.tasks() if t.state == "RUNNING" and t.worker_pid}) == 2, "the tasks do not run")
        remove_placement_group(group)
        for r in [*runs, launcher.remote(where).options(**inside(group)).remote()]:
            with self.assertRaises(exceptions.TaskPlacementGroupRemoved):
                launcher.get(r, timeout=60)
        self.assertFalse(group.wait(0.1))
        self.free()

    def death(self, member):
        try:
            launcher.get(member.where.remote(), timeout=60)
            return ""
        except exceptions.ActorDiedError as e:
            return str(e)

    def tasks(self):
        from launcher.util.state import list_tasks

        return [t for t in list_tasks() if t.name == "long"]

    def test_waits_for_room(self):
        first = placement_group([{"CPU": 1}] * 3)
        self.assertTrue(first.wait(20))
        second = placement_group([{"CPU": 2}])
        self.assertFalse(second.wait(0.3))
        table = placement_group_table(second)
        self.assertEqual(table["state"], "PENDING")
        self.assertIn("bundle 0 needs cpu=2", table["stats"]["scheduling_state"])
        ref = launcher.remote(where).options(**inside(second)).remote()
        remove_placement_group(first)
        self.assertTrue(second.wait(20))
        self.assertEqual(launcher.get(ref, timeout=60)[0], self.nodes(second)[0])
        never = placement_group([{"CPU": 1}] * 3, strategy="STRICT_PACK")
        self.assertFalse(never.wait(0.1))
        remove_placement_group(never)
        remove_placement_group(second)
        self.free()

    def test_ends_with_its_program(self):
        code = "import launcher as l; from launcher.util import placement_group as p; l.init('groups'); "
        code += "g = p([{'CPU': 1}], strategy='SPREAD'); d = p([{'CPU': 1}], name='kept', lifetime='detached'); assert g.wait(20) and d.wait(20); print(g.id)"
        out = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": HERE}, stdout=subprocess.PIPE, text=True, check=True, timeout=60)
        self.eventually(lambda: out.stdout.strip() not in placement_group_table(), "a group outlives its program")
        kept = get_placement_group("kept")
        self.assertTrue(kept.wait(20))
        self.assertEqual(launcher.get(launcher.remote(where).options(**inside(kept)).remote(), timeout=60)[1], kept.id)
        remove_placement_group(kept)
        self.free()

    def test_what_cannot_be(self):
        for bundles, more in (([], {}), ([{}], {}), ([{"CPU": 0}], {}), ([{"CPU": -1}], {}), ([{"CPU": 1}], {"strategy": "NEAR"}), ([{"CPU": 1}], {"lifetime": "long"}), ([{"CPU": 1}], {"bundle_label_selector": [{}, {}]})):
            with self.subTest(bundles=bundles, **more), self.assertRaises(ValueError):
                placement_group(bundles, **more)
        self.assertIsNone(get_current_placement_group())


if __name__ == "__main__":
    unittest.main()
