"""What NVML's figures mean: numbers, units and cases of refusal, as the comments in NVIDIA's ``nvml.h`` say.

Works on any object with the functions of pynvml; imports nothing of NVIDIA's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

# Field ids and codes of nvml.h by number: the oldest binding supported lacks the newer names.
POWER_AVERAGE, POWER_INSTANT = 185, 186
POWER_TIME, THERMAL_TIME_OLD = 74, 75
SOFTWARE_THERMAL_TIME, HARDWARE_THERMAL_TIME, POWER_BRAKE_TIME = 269, 270, 271
THROTTLE_TIMES = (POWER_TIME, THERMAL_TIME_OLD, SOFTWARE_THERMAL_TIME, HARDWARE_THERMAL_TIME, POWER_BRAKE_TIME)
SCOPE_GPU, SCOPE_MODULE = 0, 1
_AMPERE, _GA100 = 7, (8, 0)

_THROTTLE_BITS = {0x4: 1, 0x8: 4, 0x20: 2, 0x40: 2, 0x80: 8, 0x200: 16, 0x400: 32}
"""nvmlClocksEventReason… → bits of `benchfleet.samples.THROTTLE_REASONS`. Idle, clocks set on request, sync boost
and display clocks slow nothing down against what was asked for."""

_INTEGRATED = re.compile(r"\b(GB10|Thor|Orin|Xavier|Tegra|Jetson|nvgpu)\b", re.IGNORECASE)
_VALUE_MEMBERS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")
"""Members of nvmlValue_t in the order of nvmlValueType_t."""


class NotOffered(Exception):
    """A metric that this GPU or driver does not have."""


class DeviceLost(Exception):
    """A GPU answers nothing any more; the others may."""


class CallFailed(Exception):
    """A call failed for a reason that says nothing of the next one."""


def ask(nvml: Any, call: Callable[[], Any]) -> Any:
    """Call NVML: None when there is no figure this time.

    Raises `NotOffered` when there never is, `DeviceLost` when the GPU failed, `CallFailed` for anything else, and
    NVML's own error when it has to be started again.
    """
    try:
        return call()
    except nvml.NVMLError as error:
        judge(nvml, error.value, error)
        return None


def judge(nvml: Any, code: int, error: object) -> None:
    """Return for a code that says "not now"; else raise as `ask` does."""
    if code in {nvml.NVML_ERROR_NOT_FOUND, nvml.NVML_ERROR_NO_DATA, nvml.NVML_ERROR_NOT_READY}:
        return
    if code in {
        nvml.NVML_ERROR_NOT_SUPPORTED,
        nvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        nvml.NVML_ERROR_NO_PERMISSION,
        nvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
        nvml.NVML_ERROR_INVALID_ARGUMENT,
    }:
        raise NotOffered(f"NVIDIA's driver says {error}") from None
    if code == nvml.NVML_ERROR_UNINITIALIZED and isinstance(error, Exception):
        raise error
    if code in {nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_RESET_REQUIRED}:
        raise DeviceLost(f"NVIDIA's driver says {error}") from None
    raise CallFailed(f"NVIDIA's driver says {error}") from None


class FieldReader:
    """Values of one GPU that NVML keeps under numbers; one call reads many."""

    def __init__(self, nvml: Any, handle: Any, scope: int = SCOPE_GPU) -> None:
        self._nvml = nvml
        self._scope = scope
        self._handle = handle
        self.refused: dict[int, str] = {}
        """Fields the driver does not have, with its words; they are asked for once."""

    def read(self, fields: Sequence[int]) -> dict[int, float]:
        """Read those fields the driver has. Raises `DeviceLost`."""
        wanted = [field for field in fields if field not in self.refused]
        if not wanted:
            return {}
        nvml = self._nvml
        asked = [(field, self._scope) for field in wanted]
        try:
            answers = ask(nvml, lambda: nvml.nvmlDeviceGetFieldValues(self._handle, asked))
        except NotOffered as error:
            self.refused |= dict.fromkeys(wanted, str(error))
            return {}
        except CallFailed:
            return {}
        found: dict[int, float] = {}
        for field, answer in zip(wanted, answers or (), strict=False):
            try:
                if answer.nvmlReturn == nvml.NVML_SUCCESS:
                    found[field] = field_number(answer)
                else:
                    judge(nvml, answer.nvmlReturn, f"code {answer.nvmlReturn} for field {field}")
            except NotOffered as error:
                self.refused[field] = str(error)
            except CallFailed:
                continue
        return found


def field_number(answer: Any) -> float:
    """The value of an ``nvmlFieldValue_t``: which member of the union holds it is told by its type."""
    kind = answer.valueType
    if not 0 <= kind < len(_VALUE_MEMBERS):
        raise NotOffered(f"NVIDIA's driver gives field {answer.fieldId} as a value of unknown type {kind}")
    number: float = getattr(answer.value, _VALUE_MEMBERS[kind])
    return number


def throttle_times_ns(found: dict[int, float]) -> tuple[int | None, int | None]:
    """Return (by power, by heat) nanoseconds slowed down, from fields read; None: the driver does not count it.

    Software and hardware act by themselves and are added: where both act at once, that time counts twice.
    """
    power = [found[field] for field in (POWER_TIME, POWER_BRAKE_TIME) if field in found]
    heat = [found[field] for field in (SOFTWARE_THERMAL_TIME, HARDWARE_THERMAL_TIME) if field in found]
    heat = heat or [found[field] for field in (THERMAL_TIME_OLD,) if field in found]
    return int(sum(power)) if power else None, int(sum(heat)) if heat else None


def throttle_reasons(mask: int) -> int:
    """Translate NVML's clock event reasons to the bits of `benchfleet.samples.THROTTLE_REASONS`."""
    bits = 0
    for reason, bit in _THROTTLE_BITS.items():
        if mask & reason:
            bits |= bit
    return bits


def usage_is_average(nvml: Any, handle: Any) -> bool:
    """Whether ``nvmlDeviceGetPowerUsage`` is a mean over 1 s: from Ampere on, except GA100 (A100, A30).

    A driver that does not know the GPU's architecture is older than Ampere.
    """
    try:
        architecture = ask(nvml, lambda: nvml.nvmlDeviceGetArchitecture(handle))
        if architecture is None or architecture < _AMPERE:
            return False
        return tuple(ask(nvml, lambda: nvml.nvmlDeviceGetCudaComputeCapability(handle)) or ()) != _GA100
    except (NotOffered, CallFailed):
        return False


def memory_bandwidth_bytes_per_s(bus_width_bits: int | None, max_clock_mhz: int | None) -> float | None:
    """Return what the memory can move in theory: clock × 2 transfers × bus width.

    The formula is that of NVIDIA's article "How to Query Device Properties and Handle Errors in CUDA C/C++"
    (2.0 * memoryClockRate * (memoryBusWidth / 8)). The driver's memory clock of
    GDDR and HBM alike is such that two transfers a cycle give the data sheet's figure: 10501 MHz and 384 bits
    are 1008 GB/s (RTX 4090), 2619 MHz and 5120 bits 3352 GB/s (H100 SXM), 5001 MHz and 256 bits 320 GB/s (T4).
    None where either is unknown. Not meant for memory shared with the CPU, whose clock is told differently.
    """
    if not bus_width_bits or not max_clock_mhz:
        return None
    return max_clock_mhz * 1e6 * 2 * bus_width_bits / 8


def is_integrated(name: str) -> bool:
    """Whether a GPU is known to have one memory with the CPU (DGX Spark, Jetson).

    The name alone proves nothing: together with a refused memory figure it does.
    """
    return _INTEGRATED.search(name) is not None


def share(percent: int) -> float | None:
    """A percentage as a ratio; None for what is none (drivers do give 4294967295)."""
    return percent / 100 if 0 <= percent <= 100 else None


def runtime_share(samples: Iterable[Any], pids: Collection[int], since_us: int) -> float | None:
    """Return the share of time kernels of these processes ran, from ``nvmlProcessUtilizationSample_t`` records.

    The newest record of each process counts, records older than ``since_us`` (long ended processes linger in the
    driver's buffer) do not. 0.0 when none of the processes is named: the driver lists only those that used the GPU.
    None for an impossible figure.
    """
    newest: dict[int, Any] = {}
    for sample in samples:
        if sample.pid in pids and sample.timeStamp >= since_us:
            kept = newest.get(sample.pid)
            if kept is None or sample.timeStamp > kept.timeStamp:
                newest[sample.pid] = sample
    shares = [share(sample.smUtil) for sample in newest.values()]
    total = sum(value for value in shares if value is not None)
    return None if None in shares else min(total, 1.0)
