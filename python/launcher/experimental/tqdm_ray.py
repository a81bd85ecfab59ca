"""Progress bars that can be used in workers: what they print is a line at a time."""

from __future__ import annotations

import sys
import time
from typing import Any, Generic, Iterable, Iterator, Optional, TypeVar

T = TypeVar("T")


def safe_print(*args: Any, **kwargs: Any) -> None:
    """print; bars are lines of their own."""
    kwargs.setdefault("flush", True)
    print(*args, **kwargs)


class tqdm(Generic[T]):
    """A bar: prints how far it is at most every flush_interval_s seconds, and at its end."""

    def __init__(
        self,
        iterable: Optional[Iterable[T]] = None,
        desc: Optional[str] = None,
        total: Optional[int] = None,
        unit: Optional[str] = None,
        position: Optional[int] = None,
        flush_interval_s: float = 1.0,
    ) -> None:
        if total is None and hasattr(iterable, "__len__"):
            total = len(iterable)  # type: ignore[arg-type]
        self._iterable, self._desc, self._total, self._unit = iterable, desc or "", total, unit or "it"
        self._every, self._begun, self._shown = flush_interval_s, time.monotonic(), time.monotonic()
        self.n = 0
        self._closed = False

    def set_description(self, desc: str) -> None:
        """Change the text in front."""
        self._desc = desc
        self._show(False)

    def update(self, n: int = 1) -> None:
        """Go n further."""
        self.n += n
        self._show(False)

    def refresh(self) -> None:
        """Print now."""
        self._show(True)

    def close(self) -> None:
        """Print for the last time."""
        if not self._closed:
            self._show(True)
            self._closed = True

    @property
    def total(self) -> Optional[int]:
        """How far it goes."""
        return self._total

    @total.setter
    def total(self, total: Optional[int]) -> None:
        self._total = total

    def _show(self, now: bool) -> None:
        t = time.monotonic()
        if self._closed or not now and t - self._shown < self._every:
            return
        self._shown = t
        rate = self.n / max(t - self._begun, 1e-9)
        far = f"{100 * self.n // self._total}% {self.n}/{self._total}" if self._total else str(self.n)
        print(f"{self._desc}{': ' if self._desc else ''}{far} [{t - self._begun:.0f}s, {rate:.4g}{self._unit}/s]", file=sys.stderr, flush=True)

    def __iter__(self) -> Iterator[T]:
        if self._iterable is None:
            raise ValueError("this bar was made of nothing to iterate over")
        try:
            for x in self._iterable:
                yield x
                self.update()
        finally:
            self.close()

    def __enter__(self) -> "tqdm[T]":
        return self

    def __exit__(self, *exc: Any) -> None:
        self.close()


__all__ = ["safe_print", "tqdm"]
