"""NVIDIA GPUs through NVML.

The only module that imports pynvml (the maintained package nvidia-ml-py), and only when used. Units and
pitfalls are those of the comments in NVIDIA's ``nvml.h``. NVML answers one call at a time and talks to
the GPU's own processors, so what is dear is read seldom: temperature once a second, the list of
processes (milliseconds) at the edges of a phase and every 5 s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from benchfleet_agent.probes import DeviceInfo, Reading, Targets, Unavailable, Value
from benchfleet_agent.probes.system import descendants, in_foreign_pid_namespace

METRICS = (
    "device_memory_used_bytes",
    "device_memory_runtime_bytes",
    "device_busy_ratio",
    "device_power_w",
    "device_energy_mj",
    "device_temperature_c",
)
_MEMORY, _RUNTIME_MEMORY, _BUSY, _POWER, _ENERGY, _TEMPERATURE = METRICS

_TEMPERATURE_PERIOD_NS = 1_000_000_000
_PROCESSES_PERIOD_NS = 5_000_000_000
_POWER_SCOPE_GPU = 0

_NO_RUNTIME = "no process of the runtime runs on this host"
_WDDM = "Windows' display driver model (WDDM) keeps the memory of single processes from NVIDIA's driver"
_FOREIGN_IDS = (
    "NVIDIA's driver names processes by the host's ids, which this container does not share; "
    "run the agent with the host's ids (--pid=host)"
)
_ADVICE = {
    _MEMORY: "the driver has no figure (driver older than 510, or a GPU that shares the host's memory)",
    _ENERGY: "the GPU has no energy counter (they came with Volta)",
}


class _NotOffered(Exception):
    """A metric that this GPU or driver does not have."""


@dataclass(slots=True)
class _Gpu:
    """One GPU as found; its gaps grow as calls are refused."""

    handle: Any
    info: DeviceInfo
    gaps: dict[str, str] = field(default_factory=dict)
    instant_power: bool = True
    temperature_due_ns: int = 0
    processes_due_ns: int = 0


class NvidiaProbe:
    """Memory, use, power, energy and temperature of every NVIDIA GPU."""

    probe_id = "nvidia"
    period_ms = 100
    budget_us = 2_000

    def __init__(
        self,
        nvml: ModuleType | Any = None,
        *,
        clock: Callable[[], int] = time.perf_counter_ns,
        tree: Callable[[Sequence[int]], Sequence[int]] = descendants,
        foreign_ids: Callable[[], bool] = in_foreign_pid_namespace,
    ) -> None:
        self._given = nvml
        self._nvml: Any = None
        self._clock = clock
        self._tree = tree
        self._foreign_ids = foreign_ids
        self._gpus: list[_Gpu] = []

    def discover(self) -> None:
        """Load the driver's library and find the GPUs."""
        self.close()
        nvml = self._given if self._given is not None else _pynvml()
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            raise Unavailable(_init_failure(nvml, error)) from None
        self._nvml = nvml
        try:
            driver = _text(nvml.nvmlSystemGetDriverVersion())
            self._gpus = [self._gpu(index, driver) for index in range(nvml.nvmlDeviceGetCount())]
        except nvml.NVMLError as error:
            self.close()
            raise Unavailable(f"NVIDIA's driver answers no questions about its GPUs: {error}") from None
        if not self._gpus:
            self.close()
            raise Unavailable("NVIDIA's driver is installed but reports no GPU; check that one is visible here")

    def _gpu(self, index: int, driver: str) -> _Gpu:
        nvml = self._nvml
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        total: int | None = None
        with suppress(_NotOffered):
            total = self._ask(lambda: nvml.nvmlDeviceGetMemoryInfo(handle).total)
        info = DeviceInfo(
            device_id=_text(nvml.nvmlDeviceGetUUID(handle)),
            kind="gpu",
            display_name=_text(nvml.nvmlDeviceGetName(handle)),
            driver_version=driver,
            memory_bytes=total,
        )
        return _Gpu(handle, info)

    def metrics(self) -> tuple[str, ...]:
        """Names of the values read."""
        return METRICS

    def devices(self) -> tuple[DeviceInfo, ...]:
        """The GPUs found."""
        return tuple(gpu.info for gpu in self._gpus)

    def gaps(self) -> Mapping[str, str]:
        """Metrics some GPU does not offer; with several GPUs the reason names the one."""
        gaps: dict[str, str] = {}
        for gpu in self._gpus:
            for name, reason in gpu.gaps.items():
                gaps[name] = reason if len(self._gpus) == 1 else f"{gpu.info.device_id}: {reason}"
        return gaps

    def read(self, targets: Targets) -> Sequence[Reading]:
        """Read every GPU; temperature and processes when they are due."""
        return self._read(targets, edge=False)

    def read_at_edge(self, targets: Targets) -> Sequence[Reading]:
        """Read every GPU with everything."""
        return self._read(targets, edge=True)

    def _read(self, targets: Targets, *, edge: bool) -> Sequence[Reading]:
        if self._nvml is None:
            raise Unavailable("the NVIDIA probe was not discovered")
        return [Reading(gpu.info.device_id, self._values(gpu, targets, edge)) for gpu in self._gpus]

    def _values(self, gpu: _Gpu, targets: Targets, edge: bool) -> tuple[Value, ...]:
        now = self._clock()
        runtime_memory = temperature = None
        if edge or now >= gpu.processes_due_ns:
            gpu.processes_due_ns = now + _PROCESSES_PERIOD_NS
            # Without a runtime there is nothing to attribute yet: not a refusal, so asked again.
            gpu.gaps.pop(_RUNTIME_MEMORY, None)
            runtime_memory = self._metric(gpu, _RUNTIME_MEMORY, lambda: self._runtime_memory(gpu.handle, targets))
        if edge or now >= gpu.temperature_due_ns:
            gpu.temperature_due_ns = now + _TEMPERATURE_PERIOD_NS
            temperature = self._metric(gpu, _TEMPERATURE, lambda: self._temperature(gpu.handle))
        return (
            self._metric(gpu, _MEMORY, lambda: self._memory(gpu.handle)),
            runtime_memory,
            self._metric(gpu, _BUSY, lambda: self._busy(gpu.handle)),
            self._metric(gpu, _POWER, lambda: self._power(gpu)),
            self._metric(gpu, _ENERGY, lambda: self._energy(gpu.handle)),
            temperature,
        )

    def _metric(self, gpu: _Gpu, name: str, read: Callable[[], Value]) -> Value:
        """Read one metric; one that was refused is not asked for again until the next `discover`."""
        if name in gpu.gaps:
            return None
        try:
            value: Value = self._ask(read)
        except _NotOffered as error:
            gpu.gaps[name] = str(error) if name == _RUNTIME_MEMORY else f"{_ADVICE.get(name, 'not offered')}: {error}"
            return None
        return value

    def _ask(self, call: Callable[[], Any]) -> Any:
        """Call NVML: None when there is no figure this time, `_NotOffered` when there never is."""
        nvml = self._nvml
        try:
            return call()
        except nvml.NVMLError as error:
            if error.value in {nvml.NVML_ERROR_NOT_FOUND, nvml.NVML_ERROR_NO_DATA, nvml.NVML_ERROR_NOT_READY}:
                return None
            if error.value in {
                nvml.NVML_ERROR_NOT_SUPPORTED,
                nvml.NVML_ERROR_FUNCTION_NOT_FOUND,
                nvml.NVML_ERROR_NO_PERMISSION,
                nvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
                nvml.NVML_ERROR_INVALID_ARGUMENT,
            }:
                raise _NotOffered(f"NVIDIA's driver says {error}") from None
            raise

    def _memory(self, handle: Any) -> int:
        # Version 1 adds the driver's own reserve (hundreds of MB) to what is in use; only version 2 keeps it apart.
        nvml = self._nvml
        return int(nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2).used)

    def _busy(self, handle: Any) -> float:
        return float(self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu) / 100

    def _power(self, gpu: _Gpu) -> float:
        # The plain call is a 1 s average from Ampere on; the field is what is drawn now.
        nvml = self._nvml
        if gpu.instant_power:
            with suppress(nvml.NVMLError):
                (answer,) = nvml.nvmlDeviceGetFieldValues(
                    gpu.handle, [(nvml.NVML_FI_DEV_POWER_INSTANT, _POWER_SCOPE_GPU)]
                )
                if answer.nvmlReturn == nvml.NVML_SUCCESS:
                    return float(answer.value.uiVal) / 1e3
            gpu.instant_power = False
        return float(nvml.nvmlDeviceGetPowerUsage(gpu.handle)) / 1e3

    def _energy(self, handle: Any) -> int:
        return int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle))

    def _temperature(self, handle: Any) -> float:
        return float(self._nvml.nvmlDeviceGetTemperature(handle, self._nvml.NVML_TEMPERATURE_GPU))

    def _runtime_memory(self, handle: Any, targets: Targets) -> int:
        if not targets.runtime_pids:
            raise _NotOffered(_NO_RUNTIME)
        nvml = self._nvml
        processes = list(nvml.nvmlDeviceGetComputeRunningProcesses(handle))
        with suppress(nvml.NVMLError):  # data-centre parts have no graphics list
            processes += nvml.nvmlDeviceGetGraphicsRunningProcesses(handle)
        if not processes:
            if self._foreign_ids():
                raise _NotOffered(_FOREIGN_IDS)
            return 0
        ours = {*targets.runtime_pids, *self._tree(targets.runtime_pids)}
        # One process may be in both lists, with the same figure.
        used = {process.pid: process.usedGpuMemory for process in processes if process.pid in ours}
        if any(size is None for size in used.values()):
            raise _NotOffered(_WDDM)
        if not used and self._foreign_ids():
            raise _NotOffered(_FOREIGN_IDS)
        return sum(used.values())

    def close(self) -> None:
        """Let the driver's library go."""
        nvml, self._nvml, self._gpus = self._nvml, None, []
        if nvml is not None:
            with suppress(nvml.NVMLError):
                nvml.nvmlShutdown()


def _pynvml() -> ModuleType:
    try:
        import pynvml
    except ImportError as error:
        raise Unavailable(f"pynvml cannot be imported ({error}); install it with pip install nvidia-ml-py") from None
    if not hasattr(pynvml, "nvmlInitWithFlags"):
        raise Unavailable(
            "the module pynvml comes from the abandoned package nvidia-ml-py3; "
            "pip uninstall nvidia-ml-py3, then pip install --force-reinstall nvidia-ml-py"
        )
    return pynvml


def _init_failure(nvml: Any, error: Exception) -> str:
    code = getattr(error, "value", None)
    if code == nvml.NVML_ERROR_LIBRARY_NOT_FOUND:
        return (
            "no NVIDIA driver library was found (libnvidia-ml.so.1, on Windows nvml.dll): "
            "install NVIDIA's driver if this host has an NVIDIA GPU"
        )
    if code == nvml.NVML_ERROR_DRIVER_NOT_LOADED:
        return "NVIDIA's driver is installed but not loaded; load it (modprobe nvidia) or restart the host"
    if code == nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
        return "NVIDIA's library and kernel module are of different versions; restart the host after a driver update"
    if code == nvml.NVML_ERROR_NO_PERMISSION:
        return "this user may not open the NVIDIA devices; give it access to /dev/nvidia*"
    return f"NVIDIA's driver library does not start: {error}"


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
