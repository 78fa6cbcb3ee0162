"""A stand-in for pdh.dll that fills buffers as the real one does, from instance names and values."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

from benchfleet_agent.probes.windows_pdh import MORE_DATA, NO_DATA, NO_OBJECT, RawCounterItem

Values = Mapping[str, int | tuple[int, int]]
"""Instance → value, or (status, value)."""


class FakePdh:
    """Counter path → instances; a path that is missing has no object behind it."""

    def __init__(self, counters: Mapping[str, Values]) -> None:
        self.counters: dict[str, Values] = dict(counters)
        self.collect_status = 0
        self.array_status = 0
        self.open_queries = 0
        self.size_calls = 0
        self._paths: list[str] = []
        self._collected: dict[str, Values] = {}
        self._names: list[Any] = []

    def PdhOpenQueryW(self, source: None, user: int, out: Any) -> int:  # noqa: N802
        self.open_queries += 1
        out._obj.value = 1
        return 0

    def PdhAddEnglishCounterW(self, query: Any, path: str, user: int, out: Any) -> int:  # noqa: N802
        if path not in self.counters:
            return NO_OBJECT
        self._paths.append(path)
        out._obj.value = len(self._paths)
        return 0

    def PdhCollectQueryData(self, query: Any) -> int:  # noqa: N802
        self._collected = dict(self.counters)
        return self.collect_status

    def PdhGetRawCounterArrayW(self, counter: Any, size: Any, count: Any, buffer: Any) -> int:  # noqa: N802
        if self.array_status:
            return self.array_status
        values = self._collected.get(self._paths[counter.value - 1])
        if not values:
            return NO_DATA
        needed = len(values) * ctypes.sizeof(RawCounterItem) + sum(2 * len(name) + 2 for name in values)
        if size._obj.value < needed:
            self.size_calls += 1
            # What is told for a buffer that is given but too small is not to be relied on.
            size._obj.value = needed if size._obj.value == 0 else 1
            return MORE_DATA
        items = (RawCounterItem * len(values)).from_buffer(buffer)
        self._names = [ctypes.c_wchar_p(name) for name in values]
        for item, name, value in zip(items, self._names, values.values(), strict=True):
            status, number = value if isinstance(value, tuple) else (0, value)
            item.name, item.raw.status, item.raw.first_value = name, status, number
        count._obj.value = len(values)
        return 0

    def PdhCloseQuery(self, query: Any) -> int:  # noqa: N802
        self.open_queries -= 1
        return 0
