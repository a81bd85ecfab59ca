"""launcher.as_ray: docs/from-ray.md holds line by line, and every way to import works."""

import importlib
import importlib.metadata
import importlib.util
import os
import pickle
import subprocess
import sys
import textwrap
import unittest

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, HERE)

import launcher.as_ray  # noqa: E402
import ray  # noqa: E402
from launcher.as_ray import NOT_THERE, table  # noqa: E402


def find(name):
    """What a name of the table stands for, as a program imports it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        module, _, last = name.rpartition(".")
        space = {}
        exec(f"from {module} import {last} as found", space)
        return space["found"]


class Table(unittest.TestCase):
    def test_every_line(self):
        states = {"same": 0, "differs": 0, NOT_THERE: 0}
        for e in table().values():
            states[e.state] += 1
            if " " in e.name:
                self.assertTrue(e.text, e.name)  # a command: what there is instead, or why not
            elif e.state == NOT_THERE:
                self.assertTrue(e.text, e.name)
                with self.subTest(e.name), self.assertRaises(ImportError) as raised:
                    find(e.name)
                self.assertIn("docs/from-ray.md", str(raised.exception))
                self.assertIn(e.name, str(raised.exception))
                module, _, last = e.name.rpartition(".")
                if importlib.util.find_spec(module) is not None:
                    self.assertFalse(hasattr(importlib.import_module(module), last), e.name)
            else:
                with self.subTest(e.name):
                    self.assertIsNotNone(find(e.name))
                self.assertTrue(e.state == "same" or e.text, e.name)
        self.assertGreater(min(states.values()), 50, states)

    def test_below_what_is_not_there(self):
        for name in ("ray.tune.schedulers", "ray.data.context"):
            with self.assertRaisesRegex(ModuleNotFoundError, "not in launcher: "):
                importlib.import_module(name)
            self.assertIsNone(importlib.util.find_spec(name.rpartition(".")[0]))
        with self.assertRaisesRegex(ModuleNotFoundError, "Ray's inside"):
            importlib.import_module("ray._private.utils")
        with self.assertRaisesRegex(AttributeError, "no public name"):
            ray.nonsense


class Ways(unittest.TestCase):
    def test_imports(self):
        import ray as r
        import ray.exceptions
        from ray import ObjectRef, get
        from ray.exceptions import GetTimeoutError

        self.assertIs(r, ray)
        self.assertIs(importlib.import_module("ray.exceptions"), launcher.exceptions)
        self.assertIs(get, launcher.get)
        self.assertIs(ray.types.ObjectRef, ObjectRef)
        self.assertIs(pickle.loads(pickle.dumps(GetTimeoutError)), launcher.exceptions.GetTimeoutError)
        self.assertEqual(ray.__version__, importlib.metadata.version("ray"))
        self.assertIn("init", dir(ray))

    def test_a_function_of_the_name_of_a_module_stays(self):
        with_function = importlib.import_module("launcher.util")
        before = with_function.as_completed
        importlib.import_module("ray.util.helpers")
        self.assertIs(with_function.as_completed, before)

    def test_module_travels(self):
        """A function that uses ray is loaded where nobody imported as_ray."""
        import cloudpickle

        def version():
            import ray.exceptions

            return r.__version__ + ray.exceptions.RayError.__name__

        r = ray
        code = cloudpickle.dumps(version)
        got = subprocess.run([sys.executable, "-c", "import pickle, sys; print(pickle.load(sys.stdin.buffer)())"], input=code, stdout=subprocess.PIPE, timeout=60, env={**os.environ, "PYTHONPATH": HERE})
        self.assertEqual(got.stdout.decode().strip(), ray.__version__ + "RayError")

    def test_folder_wins_over_an_installed_ray(self):
        """What run --as-ray does: the folder as-ray in PYTHONPATH."""
        import tempfile

        program = """
            import importlib.metadata, ray.util, ray
            from ray.util.debug import log_once
            assert ray.util.log_once is log_once
            ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy, ray.util.accelerators, ray.util.annotations, ray.util.queue.Queue, ray.experimental.tqdm_ray
            assert ray.__version__ == importlib.metadata.version("ray"), importlib.metadata.version("ray")
            print(ray.__name__)
        """
        with tempfile.TemporaryDirectory() as d:
            os.makedirs(os.path.join(d, "ray"))
            with open(os.path.join(d, "ray", "__init__.py"), "w") as f:
                f.write("raise SystemExit('the real one')")
            path = os.pathsep.join([HERE, os.path.join(HERE, "as-ray"), d])
            got = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, timeout=60, env={**os.environ, "PYTHONPATH": path})
        self.assertEqual(got.stdout.decode().strip(), "launcher.as_ray")


class Metrics(unittest.TestCase):
    def test_checks(self):
        from ray.util.metrics import Counter, Gauge, Histogram

        c = Counter("c1", description="d", tag_keys=("a", "b"))
        self.assertEqual(c.info, {"name": "c1", "description": "d", "tag_keys": ("a", "b"), "default_tags": {}})
        c.set_default_tags({"a": "1"})
        c.inc(2, tags={"b": "x"})
        pickle.loads(pickle.dumps(c)).inc(tags={"b": "x"})  # is the same in this process
        self.assertEqual(c._family.values, {("1", "x"): [3.0, []]})
        for wrong in (lambda: c.inc(), lambda: c.inc(0, {"b": "x"}), lambda: c.inc(tags={"z": "x"}), lambda: Counter(""), lambda: Gauge("c1"), lambda: Histogram("h0", boundaries=[]), lambda: Histogram("h0", boundaries=[2, 1]), lambda: Counter("9")):
            self.assertRaises(ValueError, wrong)
        for wrong in (lambda: c.inc("x", {"b": "x"}), lambda: c.inc(tags={"b": 1}), lambda: Counter("c2", tag_keys="ab")):
            self.assertRaises(TypeError, wrong)
        h = Histogram("h1", boundaries=[1, 2])
        for v in (0.5, 1, 1.5, 3):
            h.observe(v)
        self.assertEqual(h._family.values, {(): [6.0, [2.0, 1.0, 1.0]]})
        g = Gauge("g1")
        g.set(4)
        g.set(None)
        self.assertEqual(g._family.values, {(): [4.0, []]})


if __name__ == "__main__":
    unittest.main()
