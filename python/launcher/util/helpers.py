"""Results in the order in which they come."""

from __future__ import annotations

from typing import Any, Iterable, Iterator, List, Sequence

import launcher


def as_completed(refs: Sequence[Any], chunk_size: int = 10, yield_obj_refs: bool = False) -> Iterator[Any]:
    """The values of references, each as soon as it is there; chunk_size of them at a time
    at most. With yield_obj_refs the references."""
    if chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; it must be 1 at least")
    left: List[Any] = list(refs)
    while left:
        # One that is there is enough to go on with; others that are there come with it.
        ready, left = launcher.wait(left, num_returns=1)
        if left and chunk_size > 1:
            more, left = launcher.wait(left, num_returns=min(chunk_size - 1, len(left)), timeout=0)
            ready += more
        yield from ready if yield_obj_refs else launcher.get(ready)


def map_unordered(fn: Any, items: Iterable[Any], backpressure_size: int = 100, chunk_size: int = 10, yield_obj_refs: bool = False) -> Iterator[Any]:
    """Apply a remote function to each item; the results as they come. At most
    backpressure_size calls are open."""
    if backpressure_size < chunk_size:
        raise ValueError(f"backpressure_size is {backpressure_size}; it must be chunk_size ({chunk_size}) at least")
    open_: List[Any] = []
    for item in items:
        open_.append(fn.remote(item))
        if len(open_) >= backpressure_size:
            ready, open_ = launcher.wait(open_, num_returns=chunk_size)
            yield from ready if yield_obj_refs else launcher.get(ready)
    yield from as_completed(open_, chunk_size=chunk_size, yield_obj_refs=yield_obj_refs)


__all__ = ["as_completed", "map_unordered"]
