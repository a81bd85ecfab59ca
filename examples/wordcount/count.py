"""Counts the words of its share of a tree of files. One element of an array.

    launcher run --array 0-15 --env SHARDS=16 --env TREE=/usr/local/go/src --env OUT=out -- python3 count.py

Element i takes every SHARDS-th file from the i-th on, and writes OUT/part-i: one line for each word,
"COUNT WORD", in the order of bytes. A word is what lies between white space, byte for byte.
"""

import os
import sys
from collections import Counter

SHARDS = int(os.environ.get("SHARDS", "1"))
TREE = os.environb.get(b"TREE", b".")
OUT = os.environ.get("OUT", ".")
SUFFIX = os.environb.get(b"SUFFIX", b".go")


def files():
    """All files of the tree, always in the same order."""
    for folder, folders, names in os.walk(TREE):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            if name.endswith(SUFFIX) and os.path.isfile(path) and not os.path.islink(path):
                yield path


def main():
    index = int(os.environ.get("LAUNCHER_TASK_INDEX", "0"))
    if not 0 <= index < SHARDS:
        sys.exit(f"element {index} of {SHARDS} shards")
    words, n = Counter(), 0
    for k, path in enumerate(files()):
        if k % SHARDS == index:
            with open(path, "rb") as f:
                words.update(f.read().split())
            n += 1
    part = os.path.join(OUT, f"part-{index}")
    # Written whole or not at all: an element that is run again leaves one right file.
    draft = os.path.join(OUT, f"draft-{index}.{os.environ.get('LAUNCHER_ATTEMPT', '1')}")
    with open(draft, "wb") as f:
        for word in sorted(words):
            f.write(b"%d %s\n" % (words[word], word))
    os.replace(draft, part)
    print(f"{n} files, {sum(words.values())} words, {len(words)} different")


if __name__ == "__main__":
    main()
