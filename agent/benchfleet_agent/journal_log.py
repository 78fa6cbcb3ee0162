"""Damage in SQLite's write-ahead log: SQLite itself takes a damaged log for one that ends there.

The format is SQLite's (https://www.sqlite.org/fileformat2.html#walformat): a header of 32 bytes, then frames, each a
header of 24 bytes and a page. A frame's checksum goes on from the one that is stored before it, so each frame can be
checked by itself; the salts tell the frames of this log from what is left of an earlier one. Pure: bytes in, bytes out.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

_HEADER, _FRAME = struct.Struct(">8I"), struct.Struct(">6I")
_MAGIC = {0x377F0682: "<", 0x377F0683: ">"}
"""Byte order of the words that are summed, by the header's first word."""
_VERSION = 3_007_000
_PAGE_BYTES = 4096
"""Of a journal; used where the header cannot be read."""


@dataclass(frozen=True, slots=True)
class DamagedLog:
    """What is wrong with a log."""

    frames: int
    """Writes of pages that were begun, the bad ones among them."""
    bad_frames: int
    cut: bool
    """Whether the last write is bad, or the file ends within one: nobody knows how many followed."""
    mended: bytes | None
    """A log of the good frames alone; None: it would hold no more than SQLite reads by itself."""


def examine_log(log: bytes) -> DamagedLog | None:
    """Look for damage in a write-ahead log; None when there is none.

    A writer killed within one write leaves at most one bad frame at the end, which was never acknowledged. A log cut
    exactly between two frames cannot be told from a shorter one.
    """
    if len(log) <= _HEADER.size:
        return None
    header = _read_header(log)
    frames = list(_read_frames(memoryview(log), header))
    while frames and not frames[-1].ours:  # of an earlier log
        frames.pop()
    rest = log[_HEADER.size + len(frames) * header.frame_bytes :]
    # A frame's header is written before its page: that much, and no more, a killed writer may leave.
    torn = _FRAME.size < len(rest) < header.frame_bytes and _FRAME.unpack_from(rest)[2:4] == header.salts
    bad = sum(not frame.good for frame in frames)
    if header.good and not bad and not torn:
        return None
    cut = torn or not frames or not frames[-1].good
    readable = next((index for index, frame in enumerate(frames) if not frame.good), len(frames)) if header.good else 0
    good = [frame for frame in frames if frame.good]
    return DamagedLog(len(frames), bad, cut, _compose(header, good) if len(good) > readable else None)


@dataclass(frozen=True, slots=True)
class _Header:
    order: str
    page_bytes: int
    checkpoint: int
    salts: tuple[int, ...]
    sums: tuple[int, int]
    good: bool

    @property
    def frame_bytes(self) -> int:
        return _FRAME.size + self.page_bytes


@dataclass(frozen=True, slots=True)
class _Frame:
    ours: bool
    good: bool
    place: memoryview
    """Page number, and the database's size after a commit."""
    page: memoryview


def _read_header(log: bytes) -> _Header:
    magic, _, page_bytes, checkpoint, first_salt, second_salt, *stored = _HEADER.unpack_from(log)
    sums = (stored[0], stored[1])
    order = _MAGIC.get(magic, "<")
    if magic in _MAGIC and _checksum(log[:24], order) == sums and page_bytes:
        return _Header(order, page_bytes, checkpoint, (first_salt, second_salt), sums, good=True)
    # Frames repeat the salts.
    frame = log[_HEADER.size : _HEADER.size + _FRAME.size]
    salts = _FRAME.unpack(frame)[2:4] if len(frame) == _FRAME.size else (first_salt, second_salt)
    return _Header(order, _PAGE_BYTES, 0, salts, sums, good=False)


def _read_frames(log: memoryview, header: _Header) -> Iterator[_Frame]:
    before = header.sums
    for start in range(_HEADER.size, len(log) - header.frame_bytes + 1, header.frame_bytes):
        *_, first_salt, second_salt, first, second = _FRAME.unpack_from(log, start)
        place, page = log[start : start + 8], log[start + _FRAME.size : start + header.frame_bytes]
        ours = (first_salt, second_salt) == header.salts
        sums = _checksum(page, header.order, _checksum(place, header.order, before)) if ours else None
        before = (first, second)
        yield _Frame(ours, sums == before, place, page)


def _compose(header: _Header, frames: list[_Frame]) -> bytes:
    magic = next(number for number, order in _MAGIC.items() if order == header.order)
    head = struct.pack(">6I", magic, _VERSION, header.page_bytes, header.checkpoint, *header.salts)
    sums = _checksum(head, header.order)
    parts: list[bytes | memoryview] = [head, struct.pack(">2I", *sums)]
    for frame in frames:
        sums = _checksum(frame.page, header.order, _checksum(frame.place, header.order, sums))
        parts += [frame.place, struct.pack(">4I", *header.salts, *sums), frame.page]
    return b"".join(parts)


def _checksum(data: bytes | memoryview, order: str, sums: tuple[int, int] = (0, 0)) -> tuple[int, int]:
    first, second = sums
    for left, right in struct.iter_unpack(f"{order}2I", data):
        first = (first + left + second) & 0xFFFFFFFF
        second = (second + right + first) & 0xFFFFFFFF
    return first, second
