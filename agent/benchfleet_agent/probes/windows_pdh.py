"""Windows' performance counters: one open query of PDH ("Performance Data Helper", pdh.dll) through ctypes.

Counters are added by their English names, which work on every language of Windows, with a wildcard for the
instance: what appears later is in the next collection. Structures, status codes and the two-call pattern for
buffers are those of Microsoft's documentation (https://learn.microsoft.com/windows/win32/api/pdh/). Values
are read raw: a cumulative count needs no two collections and no interval of PDH's choosing.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchfleet_agent.probes import Unavailable

MORE_DATA = 0x800007D2
NO_INSTANCE = 0x800007D1
NO_DATA = 0x800007D5
NO_OBJECT = 0xC0000BB8
_EMPTY = frozenset({NO_INSTANCE, NO_DATA})
_VALID = frozenset({0x0, 0x1})
"""PDH_CSTATUS_VALID_DATA and PDH_CSTATUS_NEW_DATA."""
_MEANINGS = {
    0x800007D0: "the machine cannot be reached",
    NO_INSTANCE: "there is no such instance",
    0x800007D3: "the counter was not validated",
    NO_DATA: "there is no data",
    NO_OBJECT: "this Windows has no such set of counters",
    0xC0000BB9: "this set of counters lacks it",
    0xC0000BBA: "the data is invalid",
    0xC0000BBB: "out of memory",
    0xC0000BBC: "the handle is invalid",
    0xC0000BC0: "the counter's name is malformed",
    0xC0000BC6: "the data is invalid",
    0xC0000BDB: "access was denied; add the agent's user to the group Performance Monitor Users",
}
_MOST_TRIES = 5


class PdhError(Exception):
    """PDH refused a call."""

    def __init__(self, call: str, status: int) -> None:
        self.status = status
        super().__init__(f"{call} failed: {meaning(status)}")


class FileTime(ctypes.Structure):
    """FILETIME: 100 ns since 1601, in two halves."""

    _fields_ = (("low", ctypes.c_uint32), ("high", ctypes.c_uint32))


class RawCounter(ctypes.Structure):
    """PDH_RAW_COUNTER."""

    _fields_ = (
        ("status", ctypes.c_uint32),
        ("timestamp", FileTime),
        ("first_value", ctypes.c_int64),
        ("second_value", ctypes.c_int64),
        ("multi_count", ctypes.c_uint32),
    )


class RawCounterItem(ctypes.Structure):
    """PDH_RAW_COUNTER_ITEM_W."""

    _fields_ = (("name", ctypes.c_wchar_p), ("raw", RawCounter))


class Instance(NamedTuple):
    """One instance of a counter at the last collection."""

    name: str
    value: int
    """PDH's FirstValue: the count itself."""


def meaning(status: int) -> str:
    """Say a status code of PDH for people."""
    return f"{_MEANINGS.get(status, 'unknown reason')} (PDH status 0x{status:08X})"


def load_pdh() -> Any:
    """Load pdh.dll and declare what is used of it. Raises `Unavailable`."""
    if sys.platform != "win32":
        raise Unavailable("only on Windows")
    try:
        library = ctypes.WinDLL("pdh.dll")
        handle, out_handle = ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)
        out_size = ctypes.POINTER(ctypes.c_uint32)
        signatures: dict[str, list[Any]] = {
            "PdhOpenQueryW": [ctypes.c_wchar_p, ctypes.c_size_t, out_handle],
            "PdhAddEnglishCounterW": [handle, ctypes.c_wchar_p, ctypes.c_size_t, out_handle],
            "PdhCollectQueryData": [handle],
            "PdhGetRawCounterArrayW": [handle, out_size, out_size, ctypes.c_void_p],
            "PdhCloseQuery": [handle],
        }
        for name, arguments in signatures.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, ctypes.c_uint32
    except (OSError, AttributeError) as error:
        raise Unavailable(f"Windows' performance counters (pdh.dll) cannot be loaded: {error}") from None
    return library


class PdhQuery:
    """An open query over some counters; to be closed."""

    def __init__(self, library: Any, paths: Sequence[str]) -> None:
        """Open the query. A counter that cannot be added is in `problems`; raises `PdhError` if nothing opens."""
        self._library = library
        self._handle = ctypes.c_void_p()
        self._counters: dict[str, ctypes.c_void_p] = {}
        self._buffers: dict[str, ctypes.Array[ctypes.c_char]] = {}
        self.problems: dict[str, str] = {}
        """Counter path → why it is not part of the query."""
        _check("PdhOpenQuery", library.PdhOpenQueryW(None, 0, ctypes.byref(self._handle)))
        for path in paths:
            counter = ctypes.c_void_p()
            status = library.PdhAddEnglishCounterW(self._handle, path, 0, ctypes.byref(counter)) & 0xFFFFFFFF
            if status == 0:
                self._counters[path] = counter
            else:
                self.problems[path] = f"{path}: {meaning(status)}"

    def collect(self) -> None:
        """Take a reading of all counters. Raises `PdhError`; that no counter has data is no error."""
        status = self._library.PdhCollectQueryData(self._handle) & 0xFFFFFFFF
        if status not in _EMPTY:
            _check("PdhCollectQueryData", status)

    def instances(self, path: str) -> list[Instance]:
        """Return the instances of a counter that were valid at the last collection. Raises `PdhError`."""
        counter = self._counters.get(path)
        if counter is None:
            return []
        buffer = self._buffers.get(path)
        for _ in range(_MOST_TRIES):
            size, count = ctypes.c_uint32(len(buffer) if buffer is not None else 0), ctypes.c_uint32()
            status = self._library.PdhGetRawCounterArrayW(counter, ctypes.byref(size), ctypes.byref(count), buffer)
            status &= 0xFFFFFFFF
            if status in _EMPTY:
                return []
            if status != MORE_DATA:
                _check("PdhGetRawCounterArray", status)
                return _items(buffer, count.value)
            if buffer is not None:
                # The size told for a buffer too small is not to be relied on (documentation): ask with none.
                buffer = None
            else:
                buffer = ctypes.create_string_buffer(size.value + size.value // 4)
                self._buffers[path] = buffer
        raise PdhError("PdhGetRawCounterArray", MORE_DATA)

    def close(self) -> None:
        """Close the query; harmless when done before."""
        handle, self._handle = self._handle, ctypes.c_void_p()
        self._counters, self._buffers = {}, {}
        if handle.value:
            self._library.PdhCloseQuery(handle)


def _items(buffer: ctypes.Array[ctypes.c_char] | None, count: int) -> list[Instance]:
    if buffer is None or not count:
        return []
    items = (RawCounterItem * count).from_buffer(buffer)
    return [Instance(item.name or "", item.raw.first_value) for item in items if item.raw.status in _VALID]


def _check(call: str, status: int) -> None:
    if status & 0xFFFFFFFF:
        raise PdhError(call, status & 0xFFFFFFFF)
