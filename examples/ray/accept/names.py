"""Every name of docs/from-ray.md is there, or says why not with its line: names.py PAGE"""

import collections
import importlib
import inspect
import re
import sys


def find(name):
    """What a program gets that imports the name: as a module, or from its module."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as e:
        module, _, last = name.rpartition(".")
        if not module:
            raise
        try:
            return getattr(importlib.import_module(module), last)
        except AttributeError as missing:
            raise missing from e


with open(sys.argv[1], encoding="utf-8") as page:
    rows = [[c.strip() for c in line.strip().strip("|").split("|", 2)] for line in page if line.startswith("| `")]

wrong = collections.defaultdict(list)
count = collections.Counter()
for name, state, text in rows:
    name = name.strip("`")
    if not re.fullmatch(r"ray(\.\w+)*", name):
        count["commands"] += 1
        if not text:
            wrong["text"].append(name)
        continue
    count[state] += 1
    try:
        found = find(name)
    except (ImportError, AttributeError) as e:
        if state != "not there":
            wrong["missing"].append(name)
        elif "docs/from-ray.md" not in str(e) or name not in str(e):
            wrong["silent"].append(name)
        continue
    except Exception as e:  # whatever an import does, the next is to be looked at
        wrong["broken"].append(f"{name} ({type(e).__name__})")
        continue
    if state == "not there":
        wrong["there after all"].append(name)
    elif (inspect.isfunction(found) or inspect.isclass(found)) and not inspect.getdoc(found):
        wrong["undocumented"].append(name)


def point(name, kind, evidence):
    bad = wrong[kind]
    print("FAIL" if bad else "PASS", f"names.{name}", f"{evidence}; {len(bad)} are not so: {' '.join(bad)}" if bad else evidence)


there = count["same"] + count["differs"]
point("there", "missing", f"{there} names are there, {count['same']} as in Ray")
point("import", "broken", f"{sum(count.values())} lines, no import fails otherwise")
point("say-why", "silent", f"{count['not there']} names raise with their line")
point("not-there", "there after all", f"{count['not there']} names are not there")
point("documented", "undocumented", f"functions and classes of {there} names have docstrings")
point("texts", "text", f"{count['commands']} commands have what there is instead")
