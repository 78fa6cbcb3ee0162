"""macOS' registry of devices (IOKit) through ctypes, thin: entries, their children and single properties.

Properties come over as binary property lists, which Core Foundation writes and `plistlib` reads, so that no
type needs code of its own. `RecordedRegistry` is the same registry from the output of
``ioreg -a -l -r -c CLASS``, which people with a Mac can send. User clients are not registered services:
they are found only as children of their device (``IORegistryEntryGetChildIterator``).
"""

from __future__ import annotations

import ctypes
import plistlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Protocol
from xml.parsers.expat import ExpatError

from benchfleet_agent.probes import Unavailable

_PLANE = b"IOService"
_BINARY_FORMAT = 200
"""kCFPropertyListBinaryFormat_v1_0."""
_UTF8 = 0x08000100
_NAME_BYTES = 128
"""Size of io_name_t."""
IOKIT = "/System/Library/Frameworks/IOKit.framework/IOKit"
CORE_FOUNDATION = "/System/Library/Frameworks/CoreFoundation.framework/CoreFoundation"


class Registry(Protocol):
    """What the probes need of IOKit. An entry is valid until the iteration that gave it goes on."""

    def services(self, class_name: str) -> Iterator[Any]:
        """Every registered entry of a class or one derived from it."""

    def children(self, entry: Any) -> Iterator[Any]:
        """The entries directly below one."""

    def class_name(self, entry: Any) -> str:
        """The entry's own class; empty: not told."""

    def entry_id(self, entry: Any) -> int:
        """The entry's number, unique until the machine starts again; 0: not told."""

    def value(self, entry: Any, key: str) -> Any:
        """A property as Python sees it (dict, list, str, int, float, bool, bytes); None: there is none."""


def load_libraries() -> tuple[Any, Any]:
    """Load (IOKit, Core Foundation) and declare what is used of them. Raises `Unavailable`."""
    if sys.platform != "darwin":
        raise Unavailable("only on macOS")
    pointer, entry = ctypes.c_void_p, ctypes.c_uint32
    out_entry = ctypes.POINTER(ctypes.c_uint32)
    iokit_signatures: dict[str, tuple[list[Any], Any]] = {
        "IOServiceMatching": ([ctypes.c_char_p], pointer),
        "IOServiceGetMatchingServices": ([entry, pointer, out_entry], ctypes.c_int),
        "IOIteratorNext": ([entry], entry),
        "IOObjectRelease": ([entry], ctypes.c_int),
        "IOObjectGetClass": ([entry, ctypes.c_char_p], ctypes.c_int),
        "IORegistryEntryGetChildIterator": ([entry, ctypes.c_char_p, out_entry], ctypes.c_int),
        "IORegistryEntryGetRegistryEntryID": ([entry, ctypes.POINTER(ctypes.c_uint64)], ctypes.c_int),
        "IORegistryEntryCreateCFProperty": ([entry, pointer, pointer, ctypes.c_uint32], pointer),
    }
    foundation_signatures: dict[str, tuple[list[Any], Any]] = {
        "CFStringCreateWithCString": ([pointer, ctypes.c_char_p, ctypes.c_uint32], pointer),
        "CFPropertyListCreateData": ([pointer, pointer, ctypes.c_long, ctypes.c_ulong, pointer], pointer),
        "CFDataGetLength": ([pointer], ctypes.c_long),
        "CFDataGetBytePtr": ([pointer], pointer),
        "CFRelease": ([pointer], None),
    }
    try:
        iokit, foundation = ctypes.CDLL(IOKIT), ctypes.CDLL(CORE_FOUNDATION)
        declare(iokit, iokit_signatures)
        declare(foundation, foundation_signatures)
    except (OSError, AttributeError) as error:
        raise Unavailable(f"macOS' IOKit cannot be loaded: {error}") from None
    return iokit, foundation


def declare(library: Any, signatures: Mapping[str, tuple[list[Any], Any]]) -> None:
    """Give functions of a library their types: name → (arguments, result). Raises `AttributeError`."""
    for name, (arguments, result) in signatures.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, result


class IoKitRegistry:
    """The registry of this machine."""

    def __init__(self, iokit: Any = None, foundation: Any = None) -> None:
        """Load the libraries. Raises `Unavailable`."""
        if iokit is None or foundation is None:
            iokit, foundation = load_libraries()
        self._iokit, self._foundation = iokit, foundation
        self._keys: dict[str, Any] = {}

    def services(self, class_name: str) -> Iterator[Any]:
        """Every registered entry of a class or one derived from it."""
        # IOServiceGetMatchingServices takes over the dictionary: it is not released here.
        matching = self._iokit.IOServiceMatching(class_name.encode())
        iterator = ctypes.c_uint32()
        if not matching or self._iokit.IOServiceGetMatchingServices(0, matching, ctypes.byref(iterator)):
            return
        yield from self._each(iterator.value)

    def children(self, entry: Any) -> Iterator[Any]:
        """The entries directly below one."""
        iterator = ctypes.c_uint32()
        if self._iokit.IORegistryEntryGetChildIterator(entry, _PLANE, ctypes.byref(iterator)):
            return
        yield from self._each(iterator.value)

    def _each(self, iterator: int) -> Iterator[int]:
        try:
            while entry := self._iokit.IOIteratorNext(iterator):
                try:
                    yield entry
                finally:
                    self._iokit.IOObjectRelease(entry)
        finally:
            self._iokit.IOObjectRelease(iterator)

    def class_name(self, entry: Any) -> str:
        """The entry's own class."""
        name = ctypes.create_string_buffer(_NAME_BYTES)
        return "" if self._iokit.IOObjectGetClass(entry, name) else name.value.decode("utf-8", "replace")

    def entry_id(self, entry: Any) -> int:
        """The entry's number."""
        number = ctypes.c_uint64()
        return 0 if self._iokit.IORegistryEntryGetRegistryEntryID(entry, ctypes.byref(number)) else number.value

    def value(self, entry: Any, key: str) -> Any:
        """A property of an entry."""
        if key not in self._keys:  # kept for good: there are few
            self._keys[key] = self._foundation.CFStringCreateWithCString(None, key.encode(), _UTF8)
        found = self._iokit.IORegistryEntryCreateCFProperty(entry, self._keys[key], None, 0)
        if not found:
            return None
        try:
            return self._python(found)
        finally:
            self._foundation.CFRelease(found)

    def _python(self, value: Any) -> Any:
        data = self._foundation.CFPropertyListCreateData(None, value, _BINARY_FORMAT, 0, None)
        if not data:
            return None
        try:
            address, length = self._foundation.CFDataGetBytePtr(data), self._foundation.CFDataGetLength(data)
            return plistlib.loads(ctypes.string_at(address, length))
        except plistlib.InvalidFileException:
            return None
        finally:
            self._foundation.CFRelease(data)


class RecordedRegistry:
    """A registry from recordings by ``ioreg -a -l -r -c CLASS``, by class; its entries are dictionaries."""

    def __init__(self, recordings: Mapping[str, bytes]) -> None:
        """Read the recordings; an empty one says that there is no such device. Raises `ValueError`."""
        self._roots: dict[str, list[dict[str, Any]]] = {}
        for class_name, recording in recordings.items():
            try:
                roots = plistlib.loads(recording) if recording.strip() else []
            except (plistlib.InvalidFileException, ExpatError) as error:
                raise ValueError(f"the recording of {class_name} is no property list: {error}") from None
            self._roots[class_name] = roots if isinstance(roots, list) else [roots]

    def services(self, class_name: str) -> Iterator[Any]:
        """The entries recorded for a class."""
        yield from self._roots.get(class_name, [])

    def children(self, entry: Any) -> Iterator[Any]:
        """The entries directly below one."""
        yield from entry.get("IORegistryEntryChildren", [])

    def class_name(self, entry: Any) -> str:
        """The entry's own class."""
        return str(entry.get("IOObjectClass", ""))

    def entry_id(self, entry: Any) -> int:
        """The entry's number."""
        return int(entry.get("IORegistryEntryID", 0))

    def value(self, entry: Any, key: str) -> Any:
        """A property of an entry."""
        return entry.get(key)
