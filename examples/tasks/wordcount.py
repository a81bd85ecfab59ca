"""The most frequent words of a folder's text files, by map and reduce.

    python wordcount.py [FOLDER] [--reducers N]

Each file is read by one task, which returns its counts in as many parts as there are
reducers: every word has one reducer. Parts go from the mappers' nodes to the reducers'
without passing through this program.
"""

import argparse
import collections
import heapq
import pathlib
import re
import zlib

import launcher as ray


def count(path, reducers):
    """The words of a file, one dictionary per reducer."""
    parts = [collections.Counter() for _ in range(reducers)]
    for word in re.findall(r"[a-z']+", path.read_text(errors="replace").lower()):
        parts[zlib.crc32(word.encode()) % reducers][word] += 1
    return parts if reducers > 1 else parts[0]


@ray.remote
def merge(*parts):
    """The sum of a reducer's parts."""
    return sum(parts, collections.Counter())


p = argparse.ArgumentParser()
p.add_argument("folder", nargs="?", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parents[2] / "docs")
p.add_argument("--reducers", type=int, default=3)
a = p.parse_args()

mapper = ray.remote(num_returns=a.reducers)(count)
parts = [mapper.remote(f.resolve(), a.reducers) for f in sorted(a.folder.rglob("*")) if f.suffix in (".md", ".txt")]
if a.reducers == 1:
    parts = [[p] for p in parts]
totals = ray.get([merge.remote(*column) for column in zip(*parts)])
print(f"{len(parts)} files, {sum(sum(t.values()) for t in totals)} words, {sum(map(len, totals))} different")
for word, n in heapq.nsmallest(10, ((w, n) for t in totals for w, n in t.items()), key=lambda x: (-x[1], x[0])):
    print(f"{n:6} {word}")
