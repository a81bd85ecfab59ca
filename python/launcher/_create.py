"""Arrays that are made in the object memory, filled in place, and then put without a copy."""

from __future__ import annotations

from typing import Any, Optional, Tuple, Union

import numpy as np

from . import _frames as f
from . import _serial
from ._store import Pin, Segment


class Made:
    """The memory of such an array. It lives as long as a view of the array does."""

    __slots__ = ("client", "segment", "offset", "size", "dtype", "shape", "at", "pin", "done")

    def __init__(self, client: Any, segment: Segment, offset: int, size: int, dtype: Any, shape: Tuple[int, ...], at: int) -> None:
        self.client, self.segment, self.offset, self.size = client, segment, offset, size
        self.dtype, self.shape, self.at = dtype, shape, at
        self.pin: Optional[Pin] = None
        self.done = False  # it is an object

    def __del__(self) -> None:
        if not self.done:  # never put: the allocator has it back
            self.client.store.unused.append((self.segment, self.offset, self.size))

    def value(self) -> Tuple[int, bytes]:
        """Size and place as frames have them; it is an object from now on."""
        self.done = True
        return self.size, f.PLACE.pack(self.segment.number, 0, self.offset)


def create(client: Any, shape: Union[int, Tuple[int, ...]], dtype: Any) -> Any:
    """An array to be filled and put."""
    array = np.empty(shape, np.dtype(dtype))
    if array.dtype.hasobject:
        raise TypeError(f"create makes arrays of numbers, not of {array.dtype}")
    if array.nbytes <= client.inline:
        return array
    e = _serial.encode(array)  # for what stands before the numbers; its memory is never touched
    begin = e.buffers[0][0]
    segment, offset = client.room(e.size)
    made = Made(client, segment, offset, e.size, array.dtype, array.shape, segment.base + offset + begin)
    client.store.write(segment, offset, e.head, [])
    return np.frombuffer(client.store.writable(made.at, array.nbytes, made), array.dtype).reshape(array.shape)


def made_of(value: Any) -> Optional[Made]:
    """The memory that a whole array was created in, if that is no object yet."""
    root: Any = value
    while type(root) is np.ndarray:
        root = root.base
    made = getattr(getattr(root, "obj", None), "made", None)
    if not isinstance(made, Made) or made.done or (value.dtype, value.shape) != (made.dtype, made.shape):
        return None
    return made if value.flags.c_contiguous and value.ctypes.data == made.at else None
