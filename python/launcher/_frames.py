"""The frames between a program and its node's agent: docs/tasks.md section 3."""

from __future__ import annotations

from struct import Struct
from typing import Iterator, Tuple

GREETING = b"LSDK"
VERSION = 1
MAX_FRAME = 16 << 20
INLINE_MAX = 16 << 10
INLINE_SUM = 2 << 20  # inline values of one frame, together
MANY_MAX = 300_000  # arguments that are objects, or results, of one task
OPTIONS_MAX = 1 << 20  # of a task, as msgpack
BODY_MAX = MAX_FRAME - 256  # of a frame of ours
STREAM = 0xFFFFFFFF

HELLO, FUNC, SHAPE, SUBMIT, PUT, GET, AWAKE, RELEASE, HOLD, RESULT, YIELD, SPACE, OPEN_SEGMENT, CANCEL, HAND_BACK, CALL, DROPPED, KILL, UP = range(0x0410, 0x0423)
WELCOME, OBJECT, EXEC, GIVEN_FUNC, GRANTED, SEGMENT, ANSWER, LOG, CANCEL_TASK, DROP_SEGMENT, CONSUMED, EXIT = range(0x0440, 0x044C)
ERROR = 0x0300

# Kinds of values; READY is what this process knows of one that is not here.
READY, INLINE, SHARED, FAILED, END = range(5)
APART = 0  # in an Exec: to be asked for

HEAD = Struct("<IHH")
VALUE = Struct("<BBxxIQ")
PLACE = Struct("<IIQ")
U32 = Struct("<I")
U32x2 = Struct("<II")
U64 = Struct("<Q")
U64x2 = Struct("<QQ")
SUBMIT_HEAD = Struct("<IHH16s16sIIIII")  # with the frame's head
PUT_HEAD = Struct("<IHH16sBBHIQ")
GET_HEAD = Struct("<IHHII")
RESULT_HEAD = Struct("<IHH16sIIQQI")
YIELD_HEAD = Struct("<IHH16sII")
EXEC_HEAD = Struct("<16s16sIIIIII")
EXTENT = Struct("<IIQQ")

GET_VALUES, GET_BLOCKS = 1, 2
SUBMIT_LARGE, SUBMIT_NAMED, SUBMIT_CALL = 1, 2, 4
CANCEL_FORCE, CANCEL_RECURSIVE = 1, 2
READY_ONLY, LATER = 1, 2
OK, FAIL, RETRY, CANCELLED = range(4)


def fits(what: str, size: int) -> None:
    """Raise if something would make a frame that no agent takes."""
    if size > BODY_MAX:
        raise ValueError(f"{what} takes {size} bytes in one message, at most {BODY_MAX} are allowed")


def frame(type: int, body: bytes) -> bytes:
    """A frame of a type."""
    fits("what was to be sent", len(body))
    return HEAD.pack(len(body) + 4, type, 0) + body


def each(frames: bytes) -> Iterator[Tuple[int, bytes]]:
    """Type and bytes of each of several frames."""
    at = 0
    while at < len(frames):
        n, type, _ = HEAD.unpack_from(frames, at)
        yield type, frames[at : at + 4 + n]
        at += 4 + n


def results(frames: bytes) -> Iterator[Tuple[bytes, int]]:
    """The attempts of tasks whose ends frames tell."""
    for type, b in each(frames):
        if type == RESULT:
            yield b[8:24], U32.unpack_from(b, 24)[0]


def lasting(frames: bytes) -> bytes:
    """Those of the frames written that an agent is to have that was restarted. What was
    handed back has other numbers now, and room that was asked for has mostly come: each
    request more would be given some."""
    return b"".join([b for type, b in each(frames) if type not in (HAND_BACK, SPACE)])
