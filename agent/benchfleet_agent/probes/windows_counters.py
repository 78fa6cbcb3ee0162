"""GPUs and NPUs of every vendor through Windows' performance counters, with what the runtime has of them.

The figures are those of the scheduler and memory manager of Windows' graphics kernel, whatever interface the
work came by (https://devblogs.microsoft.com/directx/gpus-in-the-task-manager/); no rights are needed. An
adapter's identity is its LUID, which lasts until Windows starts again. A GPU that NVIDIA's library knows goes
by its UUID instead, and is described by the probe ``nvidia``: that has power, clocks and the memory in use,
this has what NVIDIA's driver does not tell on Windows, single processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from benchfleet_agent.probes import DeviceInfo, Reading, Targets, Unavailable, Value
from benchfleet_agent.probes.runtime_pids import NO_RUNTIME, RuntimePids
from benchfleet_agent.probes.sysfs import gaps_by_device
from benchfleet_agent.probes.system import descendants
from benchfleet_agent.probes.windows_adapters import NVIDIA, Adapter, Names, read_names
from benchfleet_agent.probes.windows_engines import EngineTimes, is_npu, parse_memory
from benchfleet_agent.probes.windows_pdh import PdhError, PdhQuery, load_pdh

METRICS = (
    "device_busy_ns",
    "device_runtime_busy_ns",
    "device_memory_used_bytes",
    "device_shared_memory_bytes",
    "device_memory_runtime_bytes",
)
_BUSY, _RUNTIME_BUSY, _USED, _SHARED, _RUNTIME_MEMORY = METRICS
ENGINE = r"\GPU Engine(*)\Utilization Percentage"
ADAPTER_DEDICATED = r"\GPU Adapter Memory(*)\Dedicated Usage"
ADAPTER_SHARED = r"\GPU Adapter Memory(*)\Shared Usage"
PROCESS_DEDICATED = r"\GPU Process Memory(*)\Dedicated Usage"
PROCESS_SHARED = r"\GPU Process Memory(*)\Shared Usage"
PATHS = (ENGINE, ADAPTER_DEDICATED, ADAPTER_SHARED, PROCESS_DEDICATED, PROCESS_SHARED)
_NO_COUNTERS = (
    "Windows shows no counters of GPUs: they need Windows 10 1709 or newer and a display driver of WDDM 2.0 or newer; "
    "if they were switched off, an administrator brings them back with lodctr /R"
)
_NO_ADAPTER = "Windows' counters show no GPU and no NPU"
_MORE_THAN_ALL = "the counters say more for the runtime's processes than for everyone together; this driver's are wrong"
_JUMPING = "the driver's count of engine time jumps back and forth"
_NO_ADAPTER_MEMORY = "Windows shows no memory counter of this adapter"
_NPU_WORDS = ("npu", "neural", "ai boost", "hexagon")
_LARGEST_CARVE_OUT_BYTES = 512 * 2**20
"""Graphics within a processor show up to this much as memory of their own, set apart from the host's."""
_TOLERANCE_BYTES = 64 * 2**20
_LARGEST_BYTES = 2**50


@dataclass(slots=True)
class _Memory:
    """Bytes of one adapter. None: not told."""

    dedicated: int | None = None
    shared: int | None = None

    def add(self, kind: str, value: int) -> None:
        """Add to ``dedicated`` or ``shared`` unless the value is absurd."""
        if 0 <= value < _LARGEST_BYTES:
            setattr(self, kind, (getattr(self, kind) or 0) + value)


@dataclass(slots=True)
class _Found:
    info: DeviceInfo
    shared_with_nvml: bool
    gaps: dict[str, str] = field(default_factory=dict)


class WindowsCountersProbe:
    """Engine time and memory of every GPU and NPU, for everyone and for the runtime's processes."""

    probe_id = "windows_counters"
    period_ms = 500
    budget_us = 5_000
    verification = "documentation"

    def __init__(
        self,
        pdh: Any = None,
        *,
        clock: Callable[[], int] = time.perf_counter_ns,
        tree: Callable[[Sequence[int]], Sequence[int]] = descendants,
        names: Callable[[], Names] = read_names,
    ) -> None:
        self._given = pdh
        self._clock = clock
        self._pids = RuntimePids(tree, clock)
        self._read_names = names
        self._names = Names({})
        self._query: PdhQuery | None = None
        self._found: dict[str, _Found] = {}
        # Kept when the probe is discovered again within a case: its counters must not fall.
        self._times = EngineTimes()
        self._known_pids: frozenset[int] = frozenset()
        self._roots: tuple[int, ...] = ()

    def discover(self) -> None:
        """Open the counters and find the adapters. The first use of PDH takes some 0.2 s."""
        self.close()
        pdh = self._given if self._given is not None else load_pdh()
        try:
            self._query = PdhQuery(pdh, PATHS)
            problems = self._query.problems
            if ENGINE in problems and ADAPTER_DEDICATED in problems:
                raise Unavailable(f"{_NO_COUNTERS} ({problems[ENGINE]})")
            self._names = self._read_names()
            self._query.collect()
            self._take_times()
            self._find(self._adapter_memory())
        except PdhError as error:
            self.close()
            raise Unavailable(f"Windows' performance counters cannot be read: {error}") from None
        except Unavailable:
            self.close()
            raise
        if not self._found:
            self.close()
            raise Unavailable(_NO_ADAPTER)

    def metrics(self) -> tuple[str, ...]:
        """Names of the values read."""
        return METRICS

    def devices(self) -> tuple[DeviceInfo, ...]:
        """The adapters found so far, without NVML's; whether one is an NPU may show only when it is first used."""
        return tuple(found.info for found in self._found.values() if not found.shared_with_nvml)

    def gaps(self) -> Mapping[str, str]:
        """What the last reading of each adapter lacked."""
        return gaps_by_device({found.info.device_id: found.gaps for found in self._found.values()})

    def read(self, targets: Targets) -> Sequence[Reading]:
        """Read every adapter."""
        return self._read(targets, relist=False)

    def read_at_edge(self, targets: Targets) -> Sequence[Reading]:
        """Read with a fresh list of the runtime's processes."""
        return self._read(targets, relist=True)

    def _read(self, targets: Targets, *, relist: bool) -> Sequence[Reading]:
        query = self._query
        if query is None:
            raise Unavailable("the probe of Windows' counters was not discovered")
        pids = self._pids.read(targets.runtime_pids, relist=relist)
        if targets.runtime_pids != self._roots:
            self._roots, self._known_pids = targets.runtime_pids, frozenset()
        self._known_pids |= pids
        try:
            query.collect()
            self._take_times()
            memory = self._adapter_memory()
            own = self._process_memory(pids)
        except PdhError as error:
            raise Unavailable(f"Windows' performance counters cannot be read: {error}") from None
        self._find(memory)
        return [
            Reading(
                found.info.device_id,
                self._values(luid, found, memory.get(luid, _Memory()), own.get(luid, _Memory(0, 0))),
            )
            for luid, found in self._found.items()
        ]

    def _take_times(self) -> None:
        assert self._query is not None
        ticks: dict[str, int] = {}
        for instance in self._query.instances(ENGINE):
            ticks[instance.name] = ticks.get(instance.name, 0) + instance.value
        self._times.add(ticks, self._clock(), self._known_pids.__contains__)

    def _adapter_memory(self) -> dict[str, _Memory]:
        return self._memory({"dedicated": ADAPTER_DEDICATED, "shared": ADAPTER_SHARED}, None)

    def _process_memory(self, pids: frozenset[int]) -> dict[str, _Memory]:
        return self._memory({"dedicated": PROCESS_DEDICATED, "shared": PROCESS_SHARED}, pids)

    def _memory(self, paths: Mapping[str, str], pids: frozenset[int] | None) -> dict[str, _Memory]:
        assert self._query is not None
        memory: dict[str, _Memory] = {}
        for kind, path in paths.items():
            for name, value in self._query.instances(path):
                parsed = parse_memory(name)
                if parsed is None or (pids is not None and parsed[0] not in pids):
                    continue
                memory.setdefault(parsed[1], _Memory()).add(kind, value)
        return memory

    def _find(self, memory: Mapping[str, _Memory]) -> None:
        """Take in adapters that appeared, and what their engines tell of what they are."""
        adapters = self._names.adapters
        for luid in sorted({*memory, *self._times.kinds}):
            if luid in adapters and adapters[luid].is_software:
                continue
            info = describe_adapter(luid, adapters.get(luid), self._times.kinds.get(luid, set()), self._names)
            if (uuid := self._names.uuids.get(luid)) is not None:
                info = replace(info, device_id=uuid)
            if luid not in self._found:
                self._found[luid] = _Found(info, uuid is not None)
            elif self._found[luid].info != info:
                self._found[luid].info = info

    def _values(self, luid: str, found: _Found, memory: _Memory, own: _Memory) -> tuple[Value, ...]:
        gaps: dict[str, str] = {}
        problems = self._query.problems if self._query is not None else {}
        busy: int | None = self._times.busiest_ns.get(luid, 0)
        runtime_busy: int | None = self._times.of(luid, self._known_pids)
        broken = self._times.broken(luid)
        if ENGINE in problems:
            busy = runtime_busy = None
            gaps |= dict.fromkeys((_BUSY, _RUNTIME_BUSY), problems[ENGINE])
        elif broken:
            busy, gaps[_BUSY] = None, _JUMPING
            if broken & self._known_pids:
                runtime_busy, gaps[_RUNTIME_BUSY] = None, _JUMPING
        shares = found.info.memory_kind == "shared"
        used, runtime_memory = _in_use(memory, shares), _in_use(own, shares)
        if used is None:
            gaps[_USED] = problems.get(ADAPTER_DEDICATED, _NO_ADAPTER_MEMORY)
        if memory.shared is None:
            gaps[_SHARED] = problems.get(ADAPTER_SHARED, _NO_ADAPTER_MEMORY)
        if PROCESS_DEDICATED in problems:
            runtime_memory, gaps[_RUNTIME_MEMORY] = None, problems[PROCESS_DEDICATED]
        elif runtime_memory is not None and used is not None and runtime_memory > used + _TOLERANCE_BYTES:
            runtime_memory, gaps[_RUNTIME_MEMORY] = None, _MORE_THAN_ALL
        if not self._roots:
            runtime_busy = runtime_memory = None
            gaps |= dict.fromkeys((_RUNTIME_BUSY, _RUNTIME_MEMORY), NO_RUNTIME)
        found.gaps = gaps
        # NVML's figure of the whole device is the better one, and two of them would mix.
        return (busy, runtime_busy, None if found.shared_with_nvml else used, memory.shared, runtime_memory)

    def close(self) -> None:
        """Close the counters."""
        query, self._query, self._found = self._query, None, {}
        if query is not None:
            query.close()


def _in_use(memory: _Memory, shares: bool) -> int | None:
    """Memory in use. An adapter without memory worth speaking of has nearly everything in the host's."""
    if not shares or memory.shared is None:
        return memory.dedicated
    return (memory.dedicated or 0) + memory.shared


def describe_adapter(luid: str, adapter: Adapter | None, engine_kinds: set[str], names: Names) -> DeviceInfo:
    """Say what an adapter is, from DirectX' entry for it if there is one and the kinds of its engines.

    NVIDIA makes no NPUs, but its data-centre GPUs may show engines that only compute.
    """
    if adapter is not None and adapter.vendor_id == NVIDIA:
        npu = False
    elif adapter is not None and any(word in adapter.name.lower() for word in _NPU_WORDS):
        npu = True
    else:
        # An NPU at rest has no engines yet; then it is what DirectX does not know, if there is one.
        npu = is_npu(engine_kinds) if engine_kinds else adapter is None and len(names.npus) == 1
    name, version, own_bytes = f"{'NPU' if npu else 'GPU'} {luid}", "", None
    if adapter is not None:
        name, version, own_bytes = adapter.name, adapter.driver_version, adapter.own_memory_bytes
    elif npu and len(names.npus) == 1:
        name, version = names.npus[0]
    shares = npu or (own_bytes is not None and own_bytes <= _LARGEST_CARVE_OUT_BYTES)
    return DeviceInfo(
        device_id=luid,
        kind="npu" if npu else "gpu",
        display_name=name,
        driver_version=version,
        memory_bytes=None if shares else own_bytes,
        memory_kind="shared" if shares else "dedicated" if own_bytes else "",
    )
