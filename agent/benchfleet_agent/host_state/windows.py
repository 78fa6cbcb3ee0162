"""Power plan, battery saver, clock limit and sleep on Windows.

Functions and structures are those of Microsoft's documentation: PowerGetActiveScheme, PowerReadFriendlyName,
SYSTEM_POWER_STATUS, PROCESSOR_POWER_INFORMATION, QueryInterruptTime and QueryUnbiasedInterruptTime (100 ns; the
second leaves out the time asleep). Tried on nothing yet.
"""

from __future__ import annotations

import contextlib
import struct
import sys
from typing import Protocol

from benchfleet_agent.host_state import Facts
from benchfleet_agent.probes import Unavailable
from benchfleet_agent.probes.windows_power import (
    POWER_STATUS,
    PROCESSOR,
    PowerApi,
    load_power_api,
    parse_power_status,
)

_NAME_BYTES = 1_024
_HIGHEST_CLOCK_MHZ = 20_000


class PlanApi(Protocol):
    """The calls that the probe of Windows' power does not make. Raises `OSError` where one is refused."""

    def plan_name(self) -> bytes:
        """Name of the active power plan, UTF-16 with a zero at its end."""

    def interrupt_times(self) -> tuple[int, int]:
        """(QueryInterruptTime, QueryUnbiasedInterruptTime), in units of 100 ns."""


class WindowsFacts:
    """Facts from Windows' power functions; one call that fails does not harm the others."""

    def __init__(self, power: PowerApi | None = None, plan: PlanApi | None = None) -> None:
        self._power = power if power is not None else load_power_api()
        self._plan = plan if plan is not None else load_plan_api()

    def read(self) -> Facts:
        """Read all."""
        plan = ""
        saver: bool | None = None
        has_battery: bool | None = None
        limit_hz: float | None = None
        asleep_ns: int | None = None
        with contextlib.suppress(OSError):
            plan = parse_plan_name(self._plan.plan_name())
        with contextlib.suppress(OSError, struct.error):
            status = self._power.power_status()
            saver, has_battery = parse_battery_saver(status), parse_power_status(status).has_battery
        with contextlib.suppress(OSError, struct.error):
            limit_hz = parse_clock_limit_hz(self._power.processors())
        with contextlib.suppress(OSError):
            biased, unbiased = self._plan.interrupt_times()
            asleep_ns = (biased - unbiased) * 100
        return Facts(plan, saver, limit_hz, asleep_ns, has_battery)


def parse_plan_name(data: bytes) -> str:
    """Read the name of a power plan, as Windows shows it in its own language."""
    return data.decode("utf-16-le", "replace").split("\0", 1)[0].strip()[:100]


def parse_battery_saver(data: bytes) -> bool:
    """Whether battery saver is on, from SYSTEM_POWER_STATUS. Raises `struct.error`."""
    return bool(POWER_STATUS.unpack(data)[3] == 1)


def parse_clock_limit_hz(data: bytes) -> float | None:
    """Return the highest MaxMhz of a PROCESSOR_POWER_INFORMATION array in Hz; None: not told."""
    whole = len(data) - len(data) % PROCESSOR.size
    limits = [most for _, most, *_ in PROCESSOR.iter_unpack(data[:whole]) if 0 < most <= _HIGHEST_CLOCK_MHZ]
    return max(limits) * 1e6 if limits else None


def load_plan_api() -> PlanApi:
    """Load powrprof.dll, kernel32.dll and kernelbase.dll. Raises `Unavailable`."""
    if sys.platform != "win32":
        raise Unavailable("only on Windows")
    import ctypes

    class Calls:
        """The real calls."""

        def __init__(self) -> None:
            self._power = ctypes.WinDLL("powrprof.dll")
            self._power.PowerGetActiveScheme.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
            self._power.PowerReadFriendlyName.argtypes = [ctypes.c_void_p] * 6
            self._unbiased = ctypes.WinDLL("kernel32.dll").QueryUnbiasedInterruptTime
            self._unbiased.argtypes, self._unbiased.restype = [ctypes.c_void_p], ctypes.c_int
            self._biased = ctypes.WinDLL("kernelbase.dll").QueryInterruptTime
            self._biased.argtypes, self._biased.restype = [ctypes.c_void_p], None
            self._free = ctypes.WinDLL("kernel32.dll").LocalFree
            self._free.argtypes, self._free.restype = [ctypes.c_void_p], ctypes.c_void_p

        def plan_name(self) -> bytes:
            scheme = ctypes.c_void_p()
            if status := self._power.PowerGetActiveScheme(None, ctypes.byref(scheme)):
                raise OSError(f"PowerGetActiveScheme failed with error {status}")
            try:
                buffer = ctypes.create_string_buffer(_NAME_BYTES)
                size = ctypes.c_uint32(_NAME_BYTES)
                if status := self._power.PowerReadFriendlyName(None, scheme, None, None, buffer, ctypes.byref(size)):
                    raise OSError(f"PowerReadFriendlyName failed with error {status}")
                return buffer.raw[: size.value]
            finally:
                self._free(scheme)

        def interrupt_times(self) -> tuple[int, int]:
            biased, unbiased = ctypes.c_uint64(), ctypes.c_uint64()
            self._biased(ctypes.byref(biased))
            if not self._unbiased(ctypes.byref(unbiased)):
                raise OSError("QueryUnbiasedInterruptTime failed")
            return biased.value, unbiased.value

    try:
        return Calls()
    except (OSError, AttributeError) as error:
        raise Unavailable(f"Windows' power functions cannot be loaded: {error}") from None
