"""A typed program, with mistakes that a type checker must find where it says "wrong"."""

from typing import List

import launcher as ray


@ray.remote
def square(x: int) -> int:
    """A task."""
    return x * x


@ray.remote(num_cpus=2)
def words(text: str) -> List[str]:
    """A task with options."""
    return text.split()


one: int = ray.get(square.remote(3))
many: List[int] = ray.get([square.remote(i) for i in range(3)])
text: List[str] = ray.get(words.remote("a b"))
ready, rest = ray.wait([square.remote(1)], num_returns=1, timeout=1.0)
first: int = ray.get(ready[0])
ref: "ray.ObjectRef[str]" = ray.put("x")
wrong_value: str = ray.get(square.remote(3))  # wrong
wrong_ref: "ray.ObjectRef[int]" = ray.put("x")  # wrong
wrong_list: List[str] = ray.get([square.remote(1)])  # wrong
