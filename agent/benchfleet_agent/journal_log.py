"""Whether SQLite's write-ahead log lost its end: SQLite itself takes a damaged log for one that ends there.

The format is SQLite's (https://www.sqlite.org/fileformat2.html#walformat): a header of 32 bytes, then frames, each a
header of 24 bytes and a page. Each checksum goes on from the one before, so after a damaged frame none matches; the
salts tell the frames of this log from what is left of an earlier one.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

_HEADER, _FRAME = struct.Struct(">8I"), struct.Struct(">6I")
_MAGIC = {0x377F0682: "<", 0x377F0683: ">"}
"""Byte order of the words that are summed, by the header's first word."""


@dataclass(frozen=True, slots=True)
class CutLog:
    """A log whose end cannot be read."""

    good_frames: int
    lost_frames: int | None
    """Frames written after the last good one; None: the file ends within one, nobody knows how many followed."""


def examine_log(log: bytes) -> CutLog | None:
    """Say what a write-ahead log lost; None when it ends where it was written to.

    A writer killed within one write leaves at most one frame that looks cut and was never acknowledged.
    A log cut exactly between two frames cannot be told from a shorter one.
    """
    if len(log) <= _HEADER.size:
        return None
    magic, _, page_size, _, *salts, first, second = _HEADER.unpack_from(log)
    order = _MAGIC.get(magic)
    if order is None or not 512 <= page_size <= 65_536 or _checksum(log[:24], order) != (first, second):
        return CutLog(0, None)
    size = _FRAME.size + page_size
    sums, frames, place = (first, second), 0, _HEADER.size
    while place + size <= len(log):
        _, _, *frame_salts, first, second = _FRAME.unpack_from(log, place)
        if frame_salts != salts:
            return None  # of an earlier log
        sums = _checksum(log[place : place + 8], order, sums)
        sums = _checksum(log[place + _FRAME.size : place + size], order, sums)
        if sums != (first, second):
            return CutLog(frames, _count(log, place, size, salts))
        frames, place = frames + 1, place + size
    # A frame's header is written before its page: that much, and no more, a killed writer may leave.
    if len(log) - place <= _FRAME.size or list(_FRAME.unpack_from(log, place)[2:4]) != salts:
        return None
    return CutLog(frames, None)


def _count(log: bytes, place: int, size: int, salts: list[int]) -> int:
    return sum(list(_FRAME.unpack_from(log, start)[2:4]) == salts for start in range(place, len(log) - size + 1, size))


def _checksum(data: bytes, order: str, sums: tuple[int, int] = (0, 0)) -> tuple[int, int]:
    first, second = sums
    for left, right in struct.iter_unpack(f"{order}2I", data):
        first = (first + left + second) & 0xFFFFFFFF
        second = (second + right + first) & 0xFFFFFFFF
    return first, second
