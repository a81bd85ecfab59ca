"""Tasks that submit tasks and wait for them: python nested.py [DEPTH] [NUMBERS]

A task that waits lends its cores, so no depth can block the cluster: `down` is deeper
than there are cores.
"""

import random
import sys

import launcher as ray


@ray.remote
def sort(numbers):
    """Merge sort, halves in tasks of their own until they are small."""
    if len(numbers) <= 500:
        return sorted(numbers)
    middle = len(numbers) // 2
    left, right = ray.get([sort.remote(numbers[:middle]), sort.remote(numbers[middle:])])
    merged = []
    i = j = 0
    while i < len(left) and j < len(right):
        if left[i] <= right[j]:
            merged.append(left[i])
            i += 1
        else:
            merged.append(right[j])
            j += 1
    return merged + left[i:] + right[j:]


@ray.remote
def down(n):
    """How deep it is to the bottom."""
    return 0 if n == 0 else 1 + ray.get(down.remote(n - 1))


depth = int(sys.argv[1]) if len(sys.argv) > 1 else 20
count = int(sys.argv[2]) if len(sys.argv) > 2 else 5000
numbers = [random.Random(7).random() for _ in range(count)]
print(f"sorted {count} numbers: {ray.get(sort.remote(numbers)) == sorted(numbers)}")
print(f"{ray.get(down.remote(depth))} tasks deep")
