"""Map-reduce over text: each map task has a return per reducer, taken from it by reference."""

from collections import Counter

from ray import get, init, remote

REDUCERS = 3
TEXT = """
the wind went over the hill and the rain went after the wind
a bird sat on the fence and sang to the rain
when the rain was gone the bird was gone and the fence was wet
the hill was green and the wind was still
"""


@remote(num_returns=REDUCERS)
def count(lines):
    """The words of some lines, divided by which reducer gets them."""
    parts = [Counter() for _ in range(REDUCERS)]
    for line in lines:
        for word in line.split():
            parts[sum(word.encode()) % REDUCERS][word] += 1
    return parts


@remote
def merge(*parts):
    total = Counter()
    for part in parts:
        total.update(part)
    return total


def main():
    init()
    lines = TEXT.strip().splitlines()
    maps = [count.remote([line]) for line in lines]
    reduced = [merge.remote(*(m[i] for m in maps)) for i in range(REDUCERS)]
    total = get(merge.remote(*reduced))
    print(len(lines), "lines,", sum(total.values()), "words,", len(total), "different")
    for word, n in sorted(total.items(), key=lambda item: (-item[1], item[0]))[:6]:
        print(f"{n:3} {word}")


if __name__ == "__main__":
    main()
