"""The GPU of a Mac through IOKit's ``IOAccelerator``: use and memory, and the runtime's time on it. No rights needed.

The calls are public, the properties are the driver's own and undocumented: ``PerformanceStatistics`` of the
accelerator, and of each of its clients (``AGXDeviceUserClient``) who opened it and how long the GPU worked
for it. They have had these names from the M1 on. The GPU shares the host's memory.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchfleet_agent.probes import DeviceInfo, Reading, Targets, Unavailable
from benchfleet_agent.probes.macos_iokit import IoKitRegistry, Registry
from benchfleet_agent.probes.runtime_pids import NO_RUNTIME, RuntimePids
from benchfleet_agent.probes.sysfs import absent, gaps_by_device
from benchfleet_agent.probes.system import descendants

METRICS = (
    "device_busy_ratio",
    "device_memory_used_bytes",
    "device_shared_memory_bytes",
    "device_runtime_busy_ns",
)
_BUSY, _USED, _ALLOCATED, _RUNTIME_BUSY = METRICS
ACCELERATOR = "IOAccelerator"
_STATISTICS = "PerformanceStatistics"
_BUSY_KEYS = ("Device Utilization %", "GPU Activity(%)")
_IN_USE, _ALLOC = "In use system memory", "Alloc system memory"
_CREATOR, _USAGE, _GPU_TIME = "IOUserClientCreator", "AppUsage", "accumulatedGPUTime"
_PID = re.compile(r"pid (\d+)(?:,|$)")
_LARGEST_BYTES = 2**50
_REASONS = {
    _BUSY: "this driver does not tell how busy the GPU is (Device Utilization %)",
    _USED: "this driver does not tell the memory in use (In use system memory); Apple's own GPUs do",
    _ALLOCATED: "this driver does not tell the memory allotted (Alloc system memory); Apple's own GPUs do",
    _RUNTIME_BUSY: "this version of macOS does not tell the GPU time of single processes",
}


@dataclass(frozen=True, slots=True)
class Statistics:
    """``PerformanceStatistics`` of one accelerator. None: not told."""

    busy_ratio: float | None
    in_use_bytes: int | None
    allocated_bytes: int | None


def parse_statistics(properties: object) -> Statistics:
    """Read ``PerformanceStatistics``; what is missing or absurd is None."""
    found: Mapping[str, Any] = properties if isinstance(properties, dict) else {}
    percent = next((found[key] for key in _BUSY_KEYS if _is_number(found.get(key))), None)
    return Statistics(
        busy_ratio=percent / 100 if percent is not None and 0 <= percent <= 100 else None,
        in_use_bytes=_size(found.get(_IN_USE)),
        allocated_bytes=_size(found.get(_ALLOC)),
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _size(value: object) -> int | None:
    return value if isinstance(value, int) and _is_number(value) and 0 <= value < _LARGEST_BYTES else None


def parse_creator(text: object) -> int | None:
    """Return the process id of ``pid 1234, python3.12``; None for anything else."""
    match = _PID.match(text) if isinstance(text, str) else None
    return None if match is None else int(match[1])


def parse_usage(usage: object) -> dict[str, int] | None:
    """Return GPU time in ns by interface (``Metal``, …) of an ``AppUsage``; None: not told."""
    if not isinstance(usage, list):
        return None
    times: dict[str, int] = {}
    for each in usage:
        value = each.get(_GPU_TIME) if isinstance(each, dict) else None
        if isinstance(value, int) and 0 <= value < 2**63:
            api = str(each.get("API", ""))
            times[api] = times.get(api, 0) + value
    return times


@dataclass(slots=True)
class ClientTimes:
    """GPU time of clients by (client, interface), kept when a client vanishes: what it did stays done."""

    total_ns: int = 0
    _last: dict[tuple[int, str], int] = field(default_factory=dict)

    def add(self, client_id: int, times: Mapping[str, int]) -> None:
        """Take in a reading of one client. One that fell lost a queue: it goes on from there."""
        for api, value in times.items():
            self.total_ns += max(0, value - self._last.get((client_id, api), 0))
            self._last[client_id, api] = value


def describe_accelerators(registry: Registry) -> list[tuple[int, DeviceInfo]]:
    """Return (registry number, description) of each GPU; its device id, the driver's class, stays the same for good."""
    found: list[tuple[int, DeviceInfo]] = []
    for entry in registry.services(ACCELERATOR):
        if not isinstance(registry.value(entry, _STATISTICS), dict):
            continue
        driver = registry.class_name(entry) or ACCELERATOR
        same = sum(1 for _, info in found if info.device_id.partition("#")[0] == driver)
        apple = driver.startswith("AGX")
        cores = registry.value(entry, "gpu-core-count")
        ending = f" GPU ({cores} cores)" if isinstance(cores, int) else " GPU" if apple else ""
        info = DeviceInfo(
            device_id=driver if not same else f"{driver}#{same + 1}",
            kind="gpu",
            display_name=(_text(registry.value(entry, "model")) or driver) + ending,
            memory_kind="unified" if apple else "",
        )
        found.append((registry.entry_id(entry), info))
    return found


def _text(value: object) -> str:
    """Read a name that older drivers give as bytes."""
    if isinstance(value, bytes):
        value = value.rstrip(b"\0").decode("utf-8", "replace")
    return value.strip() if isinstance(value, str) else ""


@dataclass(slots=True)
class _Gpu:
    info: DeviceInfo
    times: ClientTimes
    gaps: dict[str, str] = field(default_factory=dict)


class MacGpuProbe:
    """Use and memory of a Mac's GPU, and the time it worked for the runtime."""

    probe_id = "macos_gpu"
    period_ms = 500
    budget_us = 6_000
    verification = "documentation"

    def __init__(
        self,
        registry: Registry | None = None,
        *,
        clock: Callable[[], int] = time.perf_counter_ns,
        tree: Callable[[Sequence[int]], Sequence[int]] = descendants,
    ) -> None:
        self._given = registry
        self._registry: Registry | None = None
        self._pids = RuntimePids(tree, clock)
        self._gpus: dict[int, _Gpu] = {}
        # Kept when the probe is discovered again within a case: its counters must not fall.
        self._times: dict[str, ClientTimes] = {}

    def discover(self) -> None:
        """Find the accelerators."""
        self.close()
        registry = self._given if self._given is not None else IoKitRegistry()
        self._gpus = {
            number: _Gpu(info, self._times.setdefault(info.device_id, ClientTimes()))
            for number, info in describe_accelerators(registry)
        }
        if not self._gpus:
            raise Unavailable("macOS shows no GPU that tells statistics (a virtual machine has none)")
        self._registry = registry

    def metrics(self) -> tuple[str, ...]:
        """Names of the values read."""
        return METRICS

    def devices(self) -> tuple[DeviceInfo, ...]:
        """The GPUs found."""
        return tuple(gpu.info for gpu in self._gpus.values())

    def gaps(self) -> Mapping[str, str]:
        """What the last reading of each GPU lacked."""
        return gaps_by_device({gpu.info.device_id: gpu.gaps for gpu in self._gpus.values()})

    def read(self, targets: Targets) -> Sequence[Reading]:
        """Read every GPU."""
        return self._read(targets, relist=False)

    def read_at_edge(self, targets: Targets) -> Sequence[Reading]:
        """Read with a fresh list of the runtime's processes."""
        return self._read(targets, relist=True)

    def _read(self, targets: Targets, *, relist: bool) -> Sequence[Reading]:
        registry = self._registry
        if registry is None:
            raise Unavailable("the probe of the Mac's GPU was not discovered")
        pids = self._pids.read(targets.runtime_pids, relist=relist)
        readings = [
            self._read_gpu(registry, entry, gpu, pids)
            for entry in registry.services(ACCELERATOR)
            if (gpu := self._gpus.get(registry.entry_id(entry))) is not None
        ]
        if not readings:
            raise Unavailable("the GPU is gone from macOS' registry")
        return readings

    def _read_gpu(self, registry: Registry, entry: Any, gpu: _Gpu, pids: frozenset[int]) -> Reading:
        statistics = parse_statistics(registry.value(entry, _STATISTICS))
        told = not pids or self._take_times(registry, entry, gpu.times, pids)
        values = (
            statistics.busy_ratio,
            statistics.in_use_bytes,
            statistics.allocated_bytes,
            gpu.times.total_ns if pids and told else None,
        )
        gpu.gaps = absent(METRICS, values, _REASONS if pids else {**_REASONS, _RUNTIME_BUSY: NO_RUNTIME})
        return Reading(gpu.info.device_id, values)

    @staticmethod
    def _take_times(registry: Registry, entry: Any, times: ClientTimes, pids: frozenset[int]) -> bool:
        """Read the runtime's clients. False: they are there, but their time is not told."""
        told = True
        for client in registry.children(entry):
            if parse_creator(registry.value(client, _CREATOR)) not in pids:
                continue
            usage = parse_usage(registry.value(client, _USAGE))
            if usage is None:
                told = False
            else:
                times.add(registry.entry_id(client), usage)
        return told

    def close(self) -> None:
        """Forget the GPUs."""
        self._registry, self._gpus = None, {}
