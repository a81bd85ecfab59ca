"""Adds up the parts that count.py wrote: merge.py OUT prints "COUNT WORD" in the order of bytes."""

import glob
import os
import sys
from collections import Counter


def main():
    words = Counter()
    parts = glob.glob(os.path.join(glob.escape(sys.argv[1]), "part-*"))
    if not parts:
        sys.exit(f"no parts in {sys.argv[1]}")
    for part in parts:
        with open(part, "rb") as f:
            for line in f:
                n, word = line.rstrip(b"\n").split(b" ", 1)
                words[word] += int(n)
    out = sys.stdout.buffer
    for word in sorted(words):
        out.write(b"%d %s\n" % (words[word], word))


if __name__ == "__main__":
    main()
