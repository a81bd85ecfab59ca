"""``import launcher.as_ray`` makes launcher answer ``import ray``, in this program and its workers.

    import launcher.as_ray
    import ray                        # launcher, whatever else is installed
    from ray.util.queue import Queue

``launcher run --as-ray -- python prog.py`` does it for a program that is not changed. This
module is what such programs have as ``ray``. Which names of Ray's there are, and how they
differ, is in docs/from-ray.md; a name that is not there raises with its line of that page.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import sys
from typing import Any, Dict, Iterator, List, NamedTuple, Optional

from .job_config import LoggingConfig as LoggingConfig

__version__ = "2.60.0"
__commit__ = "launcher"
__path__: List[str] = []  # a package: what is below it is found by _Finder

ENVIRONMENT = "LAUNCHER_AS_RAY"  # a process that has it at 1 has the folder as-ray in its module path

NOT_THERE = "not there"


class Entry(NamedTuple):
    """A line of docs/from-ray.md."""

    name: str
    state: str
    text: str


_table: Dict[str, Entry] = {}


def table() -> Dict[str, Entry]:
    """docs/from-ray.md by name: names of Ray's modules and what is in them, and its commands."""
    if not _table:
        with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "from-ray.md"), encoding="utf-8") as page:
            for line in page:
                if line.startswith("| `"):
                    name, state, text = (c.strip() for c in line.strip().strip("|").split("|", 2))
                    name = name.strip("`")
                    _table[name] = Entry(name, state, text)
    return _table


def why_not(name: str) -> str:
    """What is to be said of a name that is not there."""
    at = name
    while at != "ray":
        e = table().get(at)
        if e is not None and (at == name or e.state == NOT_THERE):
            return f"{name} is not in launcher: {e.text} (docs/from-ray.md)" if e.state == NOT_THERE else f"{name}: {e.text or 'not found'} (docs/from-ray.md)"
        at = at.rpartition(".")[0]
    if any(part.startswith("_") for part in name.split(".")):
        return f"{name} is not in launcher: it is of Ray's inside; launcher has Ray's public names (docs/from-ray.md)"
    return f"{name} is not in launcher: it is no public name of Ray {__version__} Core (docs/from-ray.md)"


class _Loader(importlib.abc.Loader):
    """Gives a module of launcher's under its name in Ray."""

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: Any) -> None:
        name = module.__spec__.name
        _answer(name, _module(name))  # what the import gives is what is in sys.modules then


def _answer(name: str, module: Any) -> None:
    """Make a module that of a name in Ray, and those below it that are loaded: a second
    loading would put a module in the place of a function of the same name."""
    mine = module.__name__
    for loaded in [m for m in sys.modules if m == mine or m.startswith(mine + ".")]:
        full, found = name + loaded[len(mine) :], sys.modules[loaded]
        sys.modules[full] = found
        if loaded.startswith("launcher.") and found is not sys.modules[__name__]:
            if not hasattr(found, "__path__"):  # so that "from" asks _Last for what is missing
                found.__path__ = []
            if "__getattr__" not in vars(found):
                vars(found)["__getattr__"] = _Missing(full)


class _Missing:
    """The __getattr__ of a module of Ray's."""

    def __init__(self, module: str) -> None:
        self.module = module

    def __call__(self, name: str) -> Any:
        full = f"{self.module}.{name}"
        if _there(full):  # a module that nobody has imported yet
            return importlib.import_module(full)
        raise AttributeError(f"module {self.module!r} has no attribute {name!r}" if name.startswith("__") else why_not(full))


def _module(name: str) -> Any:
    if name == "ray":
        return sys.modules[__name__]
    if name == "ray.cloudpickle":
        from . import _serial

        return _serial._cloudpickle()
    return importlib.import_module("launcher" + name[3:])


def _there(name: str) -> bool:
    """Whether there is a module of this name."""
    if name in ("ray", "ray.cloudpickle"):
        return True
    e = table().get(name)
    if e is None or e.state == NOT_THERE:
        return False
    try:
        return importlib.util.find_spec("launcher" + name[3:]) is not None
    except ModuleNotFoundError:
        return False


class _Finder(importlib.abc.MetaPathFinder):
    """Finds ray and what is below it."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Optional[importlib.machinery.ModuleSpec]:
        if fullname != "ray" and not fullname.startswith("ray."):
            return None
        if _there(fullname):
            return importlib.machinery.ModuleSpec(fullname, _Loader(), is_package=True)
        _missing(fullname)
        return None

    def find_distributions(self, context: Any = None) -> Iterator[importlib.metadata.Distribution]:
        """What asks for the version of the package ray gets it."""
        if getattr(context, "name", None) == "ray":
            yield _Distribution()


class _Last(importlib.abc.MetaPathFinder):
    """Says what is to be said when "from ray.x import y" finds nothing: it asks for
    launcher.x.y."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        if fullname.startswith(__name__ + "."):
            _missing("ray." + fullname[len(__name__) + 1 :])
        elif fullname.startswith("launcher.") and fullname.count(".") > 1:
            _missing("ray" + fullname[8:])


def _missing(name: str) -> None:
    """Raise for a module that is not there, unless importlib.util.find_spec only asks."""
    if sys._getframe(3).f_code.co_name != "find_spec":
        # Without the name: "from" would drop the error for one of its own.
        raise ModuleNotFoundError(why_not(name))


class _Distribution(importlib.metadata.Distribution):
    def read_text(self, filename: str) -> Optional[str]:
        return f"Metadata-Version: 2.1\nName: ray\nVersion: {__version__}\n" if filename == "METADATA" else None

    def locate_file(self, path: Any) -> Any:
        return os.path.join(os.path.dirname(os.path.abspath(__file__)), path)


def install() -> None:
    """Answer ``ray`` from now on. Importing this module has done it."""
    if not any(isinstance(f, _Finder) for f in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
        sys.meta_path.append(_Last())
    for name in [n for n in sys.modules if n.startswith("ray.")]:
        if getattr(sys.modules[name], "__name__", name) == name:  # of a real Ray
            del sys.modules[name]
    sys.modules["ray"] = sys.modules[__name__]
    for name in [n for n in sys.modules if n.startswith("launcher.")]:
        if _there("ray" + name[8:]):
            _answer("ray" + name[8:], sys.modules[name])
    inside = sys.modules.get("launcher._client")
    connected = inside.current() if inside is not None else None
    if connected is not None:
        connected.environment = for_workers(connected.environment)


def for_workers(env: Optional[Dict[str, Any]]) -> Dict[str, Any]:
    """A program's runtime_env, so that its workers answer ``ray`` too."""
    return {**(env or {}), "env_vars": {ENVIRONMENT: "1", **((env or {}).get("env_vars") or {})}}


def init(address: Optional[str] = None, **options: Any) -> Any:
    """launcher.init. In a run an address of Ray's (HOST:PORT, ray://...) means the run's cluster."""
    from . import _api

    address = address or os.environ.get("RAY_ADDRESS") or None
    if address not in (None, "auto", "local") and "LAUNCHER_SOCKET" in os.environ:
        print(f"launcher: address={address!r} is not used: the program runs in a cluster", file=sys.stderr)
        address = "auto"
    config = options.pop("job_config", None)
    if config is not None:
        for name, at in (("runtime_env", "runtime_env"), ("namespace", "ray_namespace")):
            if options.get(name) is None and getattr(config, at, None):
                options[name] = getattr(config, at)
    for name in [n for n in options if n.startswith("_")]:
        del options[name]
    return _api.init(address, **options)


def __getattr__(name: str) -> Any:
    full = "ray." + name
    e = None if name.startswith("__") else table().get(full)
    if e is None or e.state == NOT_THERE:
        raise AttributeError(why_not(full))
    if _there(full):
        found = importlib.import_module(full)
    else:
        found = getattr(importlib.import_module("launcher"), name)
    globals()[name] = found
    return found


def __dir__() -> List[str]:
    return sorted(n[4:] for n, e in table().items() if n.startswith("ray.") and n.count(".") == 1 and e.state != NOT_THERE)


install()
