"""Tasks that start tasks and wait for them: a merge sort, and a chain deeper than the CPUs.

A task that waits gives its CPU to others, else the chain would never end. The import stands
in the functions, as in programs that can do without Ray.
"""

import random


def sort(numbers, least):
    import ray

    if len(numbers) <= least:
        return sorted(numbers)
    half = len(numbers) // 2
    remote_sort = ray.remote(sort)
    left, right = ray.get([remote_sort.remote(part, least) for part in (numbers[:half], numbers[half:])])
    merged, i = [], 0
    for n in left:
        while i < len(right) and right[i] < n:
            merged.append(right[i])
            i += 1
        merged.append(n)
    return merged + right[i:]


def depth(n):
    import ray

    if n == 0:
        return 0
    return 1 + ray.get(ray.remote(depth).remote(n - 1))


def refs(n):
    """Gives references back; whoever has them can get them when this task is long over."""
    import ray

    return [ray.put(i * i) for i in range(n)]


def main():
    import ray

    ray.init()
    numbers = random.Random(7).sample(range(10000), 400)
    print("sorted:", ray.get(ray.remote(sort).remote(numbers, 150)) == sorted(numbers))
    print("deep:", ray.get(ray.remote(depth).remote(6)))
    inner = ray.get(ray.remote(refs).remote(5))
    print("from within:", ray.get(inner))


if __name__ == "__main__":
    main()
