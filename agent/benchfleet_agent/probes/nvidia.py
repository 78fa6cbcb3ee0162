"""NVIDIA GPUs through NVML.

What its figures mean is in `benchfleet_agent.probes.nvml_fields`. NVML answers one call at a time and talks to
the GPU's own processors, so what is dear is read seldom: temperature, limits and the processes' shares once a
second, the lists of processes (milliseconds) at the edges of a phase only.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any

from benchfleet_agent.probes import DeviceInfo, Reading, Targets, Unavailable, Value
from benchfleet_agent.probes import nvml_fields as fields
from benchfleet_agent.probes.nvml_fields import CallFailed, DeviceLost, FieldReader, NotOffered, ask
from benchfleet_agent.probes.nvml_library import init_failure, load, text
from benchfleet_agent.probes.nvml_processes import FOREIGN_IDS, WDDM, RuntimeProcesses
from benchfleet_agent.probes.system import descendants, in_foreign_pid_namespace, machine_facts

METRICS = (
    "device_memory_used_bytes",
    "device_memory_reserved_bytes",
    "device_memory_runtime_bytes",
    "device_busy_ratio",
    "device_memory_busy_ratio",
    "device_runtime_busy_ratio",
    "device_power_w",
    "device_power_average_w",
    "device_power_limit_w",
    "device_energy_mj",
    "device_temperature_c",
    "device_clock_hz",
    "device_memory_clock_hz",
    "device_throttle_reasons",
    "device_power_throttle_ns",
    "device_thermal_throttle_ns",
    "device_module_power_w",
)
_MEMORY, _RESERVED, _RUNTIME_MEMORY, _BUSY, _MEMORY_BUSY, _RUNTIME_BUSY, _POWER, _AVERAGE_POWER = METRICS[:8]
_LIMIT, _ENERGY, _TEMPERATURE, _CLOCK, _MEMORY_CLOCK, _THROTTLE, _POWER_TIME, _HEAT_TIME, _MODULE_POWER = METRICS[8:]
_OF_INSTANCES = frozenset({_MEMORY, _RESERVED, _RUNTIME_MEMORY})

_SLOW_PERIOD_NS = 1_000_000_000
_RETRY_NS = 5_000_000_000
_LONGEST_RETRY_NS = 60_000_000_000
_MOST_FAILURES = 5
_CLOCK_SM, _CLOCK_MEMORY = 1, 2

_log = logging.getLogger(__name__)
_NO_RUNTIME = "no process of the runtime runs on this host"
_UNIFIED = "this GPU has one memory with the CPU, of which the driver has no figure; host_available_bytes tells of it"
_MIG = "NVML has it for the whole GPU, not for an instance of MIG"
_WITH_RESERVE = "the driver does not tell its own reserve; device_memory_used_bytes holds it (driver older than 510)"
_OWN_POWER = "the driver tells the GPU's own power"
_ONLY_AVERAGE = "the driver gives the average over 1 s only (device_power_average_w)"
_ONLY_INSTANT = "the driver gives what is drawn now only (device_power_w)"
_PASSING = frozenset({_NO_RUNTIME, WDDM, FOREIGN_IDS})
_ADVICE = {
    _MEMORY: "the driver does not tell what is in use",
    _RUNTIME_MEMORY: "the driver does not list processes",
    _ENERGY: "the GPU has no energy counter (they came with Volta)",
    _POWER_TIME: "the driver does not count it",
    _HEAT_TIME: "the driver does not count it",
}


@dataclass(slots=True)
class _Gpu:
    """One GPU or MIG instance as found; its gaps grow as calls are refused."""

    handle: Any
    info: DeviceInfo
    fields: FieldReader
    module_fields: FieldReader
    """Those of the module that the GPU is on."""
    instance: bool = False
    usage_metric: str = _POWER
    """What ``nvmlDeviceGetPowerUsage`` gives on this GPU."""
    whole_memory: bool = False
    """The driver tells what is in use only together with its own reserve."""
    gaps: dict[str, str] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    """Calls that failed in a row without saying that there never is an answer, by metric."""
    slow_due_ns: int = 0
    lost: str | None = None
    retry_due_ns: int = 0
    retry_ns: int = _RETRY_NS


class NvidiaProbe:
    """Memory, use, power, energy, clocks, heat and throttling of every NVIDIA GPU."""

    probe_id = "nvidia"
    period_ms = 100
    budget_us = 2_000
    verification = "a fake library"

    def __init__(
        self,
        nvml: ModuleType | Any = None,
        *,
        clock: Callable[[], int] = time.perf_counter_ns,
        wall_clock: Callable[[], int] = time.time_ns,
        tree: Callable[[Sequence[int]], Sequence[int]] = descendants,
        foreign_ids: Callable[[], bool] = in_foreign_pid_namespace,
        host_memory: Callable[[], int] = lambda: machine_facts().memory_bytes,
    ) -> None:
        self._host_memory = host_memory
        self._given = nvml
        self._nvml: Any = None
        self._clock = clock
        self._processes = RuntimeProcesses(clock, wall_clock, tree, foreign_ids)
        self._gpus: list[_Gpu] = []

    def discover(self) -> None:
        """Load the driver's library and find the GPUs and their MIG instances."""
        self.close()
        nvml = self._given if self._given is not None else load()
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            raise Unavailable(init_failure(nvml, error)) from None
        self._nvml = nvml
        try:
            driver = text(nvml.nvmlSystemGetDriverVersion())
            count = nvml.nvmlDeviceGetCount()
        except nvml.NVMLError as error:
            self.close()
            raise Unavailable(f"NVIDIA's driver answers no questions about its GPUs: {error}") from None
        why = "NVIDIA's driver is installed but reports no GPU; check that one is visible here"
        for index in range(count):
            try:
                self._gpus += self._find(index, driver)
            except (nvml.NVMLError, DeviceLost) as error:
                why = f"NVIDIA's driver answers no questions about its GPU {index}: {error}"
                _log.warning("%s", why)
        if not self._gpus:
            self.close()
            raise Unavailable(why)

    def _find(self, index: int, driver: str) -> list[_Gpu]:
        """The GPU of an index, followed by its instances when MIG divides it."""
        nvml = self._nvml
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        mig, _ = self._if_offered(lambda: nvml.nvmlDeviceGetMigMode(handle)) or (0, 0)
        found = [self._gpu(handle, driver, divided=bool(mig))]
        slots = self._if_offered(lambda: nvml.nvmlDeviceGetMaxMigDeviceCount(handle)) if mig else 0
        for slot in range(slots or 0):
            instance = self._if_offered(partial(nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, slot))
            if instance is not None:
                found.append(self._gpu(instance, driver, instance=True))
        return found

    def _gpu(self, handle: Any, driver: str, *, divided: bool = False, instance: bool = False) -> _Gpu:
        nvml = self._nvml
        name = text(nvml.nvmlDeviceGetName(handle))
        total, kind, gaps = None, "", {}
        try:
            total = ask(nvml, lambda: nvml.nvmlDeviceGetMemoryInfo(handle).total) or None
            kind = "dedicated" if total else ""
        except NotOffered:
            if fields.is_integrated(name):
                kind, total = "unified", self._host_memory()
                gaps = {_MEMORY: _UNIFIED, _RESERVED: _UNIFIED}
        except CallFailed as error:
            _log.warning("the memory of %s is not known: %s", name, error)
        bandwidth = None
        if kind == "dedicated" and not instance:
            bandwidth = fields.memory_bandwidth_bytes_per_s(
                self._if_offered(lambda: nvml.nvmlDeviceGetMemoryBusWidth(handle)),
                self._if_offered(lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, _CLOCK_MEMORY)),
            )
        if instance:
            gaps |= dict.fromkeys(set(METRICS) - _OF_INSTANCES, _MIG)
        info = DeviceInfo(
            device_id=text(nvml.nvmlDeviceGetUUID(handle)),
            kind="gpu",
            display_name=f"{name} (divided by MIG; work runs on its instances)" if divided else name,
            driver_version=driver,
            memory_bytes=None if divided else total,
            memory_kind=kind,
            memory_bandwidth_bytes_per_s=None if divided else bandwidth,
        )
        average = not instance and fields.usage_is_average(nvml, handle)
        return _Gpu(
            handle,
            info,
            FieldReader(nvml, handle),
            FieldReader(nvml, handle, fields.SCOPE_MODULE),
            instance=instance,
            usage_metric=_AVERAGE_POWER if average else _POWER,
            gaps=gaps,
        )

    def _if_offered(self, call: Callable[[], Any]) -> Any:
        try:
            return ask(self._nvml, call)
        except (NotOffered, CallFailed):
            return None

    def metrics(self) -> tuple[str, ...]:
        """Names of the values read."""
        return METRICS

    def devices(self) -> tuple[DeviceInfo, ...]:
        """The GPUs and MIG instances found, those lost since included."""
        return tuple(gpu.info for gpu in self._gpus)

    def gaps(self) -> Mapping[str, str]:
        """Metrics no GPU offers; those only some lack as ``metric@device_id``."""
        gaps: dict[str, str] = {}
        for name in METRICS:
            lacking = {gpu.info.device_id: reason for gpu in self._gpus if (reason := gpu.lost or gpu.gaps.get(name))}
            if len(lacking) == len(self._gpus):
                gaps[name] = next(iter(lacking.values()))
            else:
                gaps |= {f"{name}@{device_id}": reason for device_id, reason in lacking.items()}
        return gaps

    def read(self, targets: Targets) -> Sequence[Reading]:
        """Read every GPU; what is slow once a second."""
        return self._read(targets, edge=False)

    def read_at_edge(self, targets: Targets) -> Sequence[Reading]:
        """Read every GPU with everything."""
        return self._read(targets, edge=True)

    def _read(self, targets: Targets, *, edge: bool) -> Sequence[Reading]:
        if self._nvml is None:
            raise Unavailable("the NVIDIA probe was not discovered")
        readings = []
        for gpu in self._gpus:
            if gpu.lost is not None and not self._found_again(gpu):
                continue
            try:
                readings.append(Reading(gpu.info.device_id, self._values(gpu, targets, edge)))
            except DeviceLost as error:
                self._lose(gpu, str(error))
        if not readings:
            raise Unavailable(next(gpu.lost for gpu in self._gpus if gpu.lost) or "")
        return readings

    def _lose(self, gpu: _Gpu, reason: str) -> None:
        gpu.lost = f"the GPU stopped answering ({reason}); look for Xid messages in the system's log"
        gpu.retry_due_ns = self._clock() + gpu.retry_ns
        gpu.retry_ns = min(2 * gpu.retry_ns, _LONGEST_RETRY_NS)
        _log.warning("%s: %s", gpu.info.device_id, gpu.lost)

    def _found_again(self, gpu: _Gpu) -> bool:
        if self._clock() < gpu.retry_due_ns:
            return False
        nvml, uuid = self._nvml, gpu.info.device_id
        try:
            gpu.handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
            nvml.nvmlDeviceGetName(gpu.handle)
        except nvml.NVMLError as error:
            self._lose(gpu, f"NVIDIA's driver says {error}")
            return False
        gpu.fields = FieldReader(nvml, gpu.handle)
        gpu.module_fields = FieldReader(nvml, gpu.handle, fields.SCOPE_MODULE)
        gpu.lost, gpu.retry_ns = None, _RETRY_NS
        _log.info("%s answers again", uuid)
        return True

    def _values(self, gpu: _Gpu, targets: Targets, edge: bool) -> tuple[Value, ...]:
        now = self._clock()
        slow = edge or now >= gpu.slow_due_ns
        if slow:
            gpu.slow_due_ns = now + _SLOW_PERIOD_NS
            self._processes.look(targets.runtime_pids, relist=edge and gpu is self._gpus[0])
        found: dict[str, Value] = {}
        self._read_memory(gpu, found)
        if edge:
            found[_RUNTIME_MEMORY] = self._of_runtime(gpu, _RUNTIME_MEMORY, targets, self._processes.memory_bytes)
        if not gpu.instance:
            self._read_whole(gpu, found, slow=slow)
            if slow:
                found[_RUNTIME_BUSY] = self._of_runtime(gpu, _RUNTIME_BUSY, targets, self._processes.busy_ratio)
        if _MEMORY in gpu.gaps:
            gpu.gaps[_RESERVED] = gpu.gaps[_MEMORY]
        values = tuple(found.get(name) for name in METRICS)
        if gpu.failures and all(value is None for value in values):
            raise DeviceLost("every call fails")
        return values

    def _read_memory(self, gpu: _Gpu, found: dict[str, Value]) -> None:
        """What is in use. Version 1 adds the driver's own reserve (hundreds of MB); only version 2 keeps it apart."""
        nvml, handle = self._nvml, gpu.handle
        if not gpu.whole_memory and _MEMORY not in gpu.gaps:
            version = nvml.nvmlMemory_v2
            memory = self._metric(gpu, _MEMORY, lambda: nvml.nvmlDeviceGetMemoryInfo(handle, version=version))
            if memory is not None:
                found |= {_MEMORY: int(memory.used), _RESERVED: int(memory.reserved)}
            # Refused: an old driver. Five failures in a row are a gap like any other.
            gpu.whole_memory = _MEMORY in gpu.gaps and _MEMORY not in gpu.failures
            if gpu.whole_memory:
                del gpu.gaps[_MEMORY]
                gpu.gaps[_RESERVED] = _WITH_RESERVE
        if gpu.whole_memory:
            memory = self._metric(gpu, _MEMORY, lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
            if memory is not None:
                found[_MEMORY] = int(memory.used)

    def _read_whole(self, gpu: _Gpu, found: dict[str, Value], *, slow: bool) -> None:
        """What only a whole GPU has."""
        nvml, handle = self._nvml, gpu.handle
        use = self._metric(gpu, _BUSY, lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
        if use is not None:
            found |= {_BUSY: fields.share(use.gpu), _MEMORY_BUSY: fields.share(use.memory)}
        elif _BUSY in gpu.gaps:
            gpu.gaps[_MEMORY_BUSY] = gpu.gaps[_BUSY]
        self._read_fields(gpu, found, slow=slow)
        found[_ENERGY] = self._metric(gpu, _ENERGY, lambda: int(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)))
        found[_CLOCK] = self._metric(gpu, _CLOCK, lambda: nvml.nvmlDeviceGetClockInfo(handle, _CLOCK_SM) * 1e6)
        found[_MEMORY_CLOCK] = self._metric(
            gpu, _MEMORY_CLOCK, lambda: nvml.nvmlDeviceGetClockInfo(handle, _CLOCK_MEMORY) * 1e6
        )
        found[_THROTTLE] = self._metric(gpu, _THROTTLE, lambda: fields.throttle_reasons(self._event_reasons(handle)))
        if slow:
            found[_TEMPERATURE] = self._metric(
                gpu, _TEMPERATURE, lambda: float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
            )
            found[_LIMIT] = self._metric(gpu, _LIMIT, lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3)

    def _read_fields(self, gpu: _Gpu, found: dict[str, Value], *, slow: bool) -> None:
        power = {fields.POWER_INSTANT: _POWER, fields.POWER_AVERAGE: _AVERAGE_POWER}
        answers = gpu.fields.read([*power, *(fields.THROTTLE_TIMES if slow else ())])
        for number, name in power.items():
            if number in answers:
                found[name] = answers[number] / 1e3
            elif number in gpu.fields.refused:
                self._read_usage(gpu, name, found)
        self._read_module_power(gpu, found)
        if slow:
            found[_POWER_TIME], found[_HEAT_TIME] = fields.throttle_times_ns(answers)
            for name, numbers in (
                (_POWER_TIME, (fields.POWER_TIME, fields.POWER_BRAKE_TIME)),
                (_HEAT_TIME, fields.THROTTLE_TIMES[1:4]),
            ):
                if all(number in gpu.fields.refused for number in numbers):
                    gpu.gaps[name] = f"{_ADVICE[name]}: {gpu.fields.refused[numbers[0]]}"

    def _read_usage(self, gpu: _Gpu, name: str, found: dict[str, Value]) -> None:
        """Power by the older call, which on some GPUs is what is drawn now and on others an average."""
        if name != gpu.usage_metric:
            gpu.gaps[name] = _ONLY_AVERAGE if name == _POWER else _ONLY_INSTANT
            return
        found[name] = self._metric(gpu, name, lambda: self._nvml.nvmlDeviceGetPowerUsage(gpu.handle) / 1e3)

    def _read_module_power(self, gpu: _Gpu, found: dict[str, Value]) -> None:
        """Power of the module of GPU and CPU, where the driver has no other; never taken for the GPU's own."""
        if not {_POWER, _AVERAGE_POWER} <= gpu.gaps.keys():
            gpu.gaps[_MODULE_POWER] = _OWN_POWER
            return
        if gpu.gaps.get(_MODULE_POWER) == _OWN_POWER:
            del gpu.gaps[_MODULE_POWER]
        if _MODULE_POWER in gpu.gaps:
            return
        number = fields.POWER_INSTANT
        answers = gpu.module_fields.read([number])
        if number in answers:
            found[_MODULE_POWER] = answers[number] / 1e3
        elif number in gpu.module_fields.refused:
            gpu.gaps[_MODULE_POWER] = f"nor of a module with it: {gpu.module_fields.refused[number]}"

    def _event_reasons(self, handle: Any) -> int:
        nvml = self._nvml
        try:
            return int(nvml.nvmlDeviceGetCurrentClocksEventReasons(handle))
        except nvml.NVMLError as error:
            if error.value != nvml.NVML_ERROR_FUNCTION_NOT_FOUND:
                raise
        return int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))  # its name before driver 535

    def _metric(self, gpu: _Gpu, name: str, read: Callable[[], Any]) -> Any:
        """Read one metric; one that was refused is not asked for again until the next `discover`."""
        if name in gpu.gaps:
            return None
        try:
            answer = ask(self._nvml, read)
        except NotOffered as error:
            reason = str(error)
            gpu.gaps[name] = reason if reason in _PASSING else f"{_ADVICE.get(name, 'not offered')}: {reason}"
            return None
        except CallFailed as error:
            gpu.failures[name] = gpu.failures.get(name, 0) + 1
            if gpu.failures[name] >= _MOST_FAILURES:
                gpu.gaps[name] = f"the call failed {_MOST_FAILURES} times in a row: {error}"
            return None
        gpu.failures.pop(name, None)
        return answer

    def _of_runtime(self, gpu: _Gpu, name: str, targets: Targets, read: Callable[[Any, Any], Value]) -> Value:
        """Read a metric of the runtime's processes; what could not be attributed once is tried again."""
        if not targets.runtime_pids:
            gpu.gaps.setdefault(name, _NO_RUNTIME)
            return None
        if gpu.gaps.get(name) in _PASSING:
            del gpu.gaps[name]
        value: Value = self._metric(gpu, name, lambda: read(self._nvml, gpu.handle))
        return value

    def close(self) -> None:
        """Let the driver's library go."""
        nvml, self._nvml, self._gpus = self._nvml, None, []
        if nvml is not None:
            with suppress(nvml.NVMLError):
                nvml.nvmlShutdown()
