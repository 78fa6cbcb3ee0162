"""Battery, mains and the processor's clock on Windows: GetSystemPowerStatus and CallNtPowerInformation.

Structures are those of Microsoft's documentation (SYSTEM_POWER_STATUS, SYSTEM_BATTERY_STATE,
PROCESSOR_POWER_INFORMATION). The clock is the power manager's: on many machines it stays at the nominal
one while the processor runs above it.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from benchfleet_agent.probes import DeviceInfo, Reading, Targets, Unavailable, Value

METRICS = ("on_battery", "battery_ratio", "battery_discharge_w", "host_cpu_clock_hz")
_ON_BATTERY, _RATIO, _DISCHARGE, _CLOCK = METRICS
POWER_STATUS = struct.Struct("<BBBBII")
"""ACLineStatus, BatteryFlag, BatteryLifePercent, SystemStatusFlag, BatteryLifeTime, BatteryFullLifeTime."""
BATTERY_STATE = struct.Struct("<????3xBIIiIII")
"""AcOnLine, BatteryPresent, Charging, Discharging; Tag; MaxCapacity, RemainingCapacity (mWh), Rate (mW),
EstimatedTime, DefaultAlert1, DefaultAlert2."""
PROCESSOR = struct.Struct("<6I")
"""Number, MaxMhz, CurrentMhz, MhzLimit, MaxIdleState, CurrentIdleState."""
_BATTERY_STATE_LEVEL, _PROCESSOR_LEVEL = 5, 11
_BUFFER_TOO_SMALL = 0xC0000023
_UNKNOWN = 255
_FLAG_NO_BATTERY = 128
_HIGHEST_POWER_MW = 1_000_000
_HIGHEST_CLOCK_MHZ = 20_000
_MOST_PROCESSORS = 4_096
_NO_BATTERY = "no battery: this machine has none that Windows knows of"


@dataclass(frozen=True, slots=True)
class PowerStatus:
    """SYSTEM_POWER_STATUS. None: Windows does not know."""

    on_battery: bool | None
    has_battery: bool
    ratio: float | None


class PowerApi(Protocol):
    """The calls, each giving back a structure's bytes. Raises `OSError` where a call is refused."""

    def power_status(self) -> bytes:
        """SYSTEM_POWER_STATUS."""

    def battery_state(self) -> bytes:
        """SYSTEM_BATTERY_STATE."""

    def processors(self) -> bytes:
        """PROCESSOR_POWER_INFORMATION of every logical processor (of the agent's processor group)."""


def parse_power_status(data: bytes) -> PowerStatus:
    """Read SYSTEM_POWER_STATUS. Raises `struct.error` for bytes of another length."""
    line, flag, percent, *_ = POWER_STATUS.unpack(data)
    has_battery = flag == _UNKNOWN or not flag & _FLAG_NO_BATTERY
    return PowerStatus(
        on_battery={0: True, 1: False}.get(line),
        has_battery=has_battery,
        ratio=percent / 100 if has_battery and percent <= 100 else None,
    )


def parse_discharge_w(data: bytes) -> float | None:
    """Return the power drawn from the battery of a SYSTEM_BATTERY_STATE in watts; None: nothing is, or not told.

    The rate is signed: what leaves the battery is negative. 0x80000000 means unknown. Raises `struct.error`.
    """
    _, present, _, discharging, _, _, _, rate_mw, *_ = BATTERY_STATE.unpack(data)
    if not present or not discharging or not -_HIGHEST_POWER_MW <= rate_mw < 0:
        return None
    return float(abs(rate_mw)) / 1e3


def parse_clock_hz(data: bytes) -> float | None:
    """Return the mean clock of the processors of a PROCESSOR_POWER_INFORMATION array; None: not told."""
    whole = len(data) - len(data) % PROCESSOR.size
    clocks = [mhz for _, _, mhz, *_ in PROCESSOR.iter_unpack(data[:whole]) if 0 < mhz <= _HIGHEST_CLOCK_MHZ]
    return sum(clocks) / len(clocks) * 1e6 if clocks else None


def load_power_api() -> PowerApi:
    """Load kernel32.dll and powrprof.dll. Raises `Unavailable`."""
    if sys.platform != "win32":
        raise Unavailable("only on Windows")
    import ctypes

    class Calls:
        """The real calls."""

        def __init__(self) -> None:
            self._status = ctypes.WinDLL("kernel32.dll", use_last_error=True).GetSystemPowerStatus
            self._status.argtypes, self._status.restype = [ctypes.c_void_p], ctypes.c_int
            self._information = ctypes.WinDLL("powrprof.dll").CallNtPowerInformation
            pointer, size = ctypes.c_void_p, ctypes.c_uint32
            self._information.argtypes = [ctypes.c_int, pointer, size, pointer, size]
            self._information.restype = size

        def power_status(self) -> bytes:
            buffer = ctypes.create_string_buffer(POWER_STATUS.size)
            if not self._status(buffer):
                raise OSError(f"GetSystemPowerStatus failed with error {ctypes.get_last_error()}")
            return buffer.raw

        def battery_state(self) -> bytes:
            return self._ask(_BATTERY_STATE_LEVEL, BATTERY_STATE.size)

        def processors(self) -> bytes:
            # The call does not say how much it needs; what it leaves empty is left out when read.
            count = os.cpu_count() or 1
            while True:
                try:
                    return self._ask(_PROCESSOR_LEVEL, count * PROCESSOR.size)
                except BufferError:
                    if (count := 2 * count) > _MOST_PROCESSORS:
                        raise OSError("CallNtPowerInformation wants ever larger buffers") from None

        def _ask(self, level: int, size: int) -> bytes:
            buffer = ctypes.create_string_buffer(size)
            status = self._information(level, None, 0, buffer, size)
            if status == _BUFFER_TOO_SMALL:
                raise BufferError
            if status:
                raise OSError(f"CallNtPowerInformation({level}) failed with status 0x{status:08X}")
            return buffer.raw

    try:
        return Calls()
    except (OSError, AttributeError) as error:
        raise Unavailable(f"Windows' power functions cannot be loaded: {error}") from None


class WindowsPowerProbe:
    """Whether the machine runs on its battery, how full that is, what is drawn from it, and the processor's clock."""

    probe_id = "windows_power"
    period_ms = 1_000
    budget_us = 5_000  # batteries answer slowly, but hardly use the processor
    verification = "documentation"

    def __init__(self, api: PowerApi | None = None) -> None:
        self._given = api
        self._api: PowerApi | None = None
        self._gaps: dict[str, str] = {}

    def discover(self) -> None:
        """Load the functions and ask once."""
        self._api = self._given if self._given is not None else load_power_api()
        try:
            parse_power_status(self._api.power_status())
        except (OSError, struct.error) as error:
            self.close()
            raise Unavailable(f"Windows does not tell its power status: {error}") from None

    def metrics(self) -> tuple[str, ...]:
        """Names of the values read."""
        return METRICS

    def devices(self) -> tuple[DeviceInfo, ...]:
        """None: the host is no device."""
        return ()

    def gaps(self) -> Mapping[str, str]:
        """What the last reading lacked."""
        return self._gaps

    def read(self, targets: Targets) -> Sequence[Reading]:
        """Read status, battery and processors; one call that fails does not harm the others."""
        if self._api is None:
            raise Unavailable("the probe of Windows' power was not discovered")
        status = parse_power_status(self._api.power_status())
        gaps: dict[str, str] = {}
        if status.on_battery is None:
            gaps[_ON_BATTERY] = "Windows does not know whether mains are connected"
        discharge_w: Value = None
        if not status.has_battery:
            gaps |= dict.fromkeys((_RATIO, _DISCHARGE), _NO_BATTERY)
        else:
            if status.ratio is None:
                gaps[_RATIO] = "the battery does not tell its charge"
            discharge_w = self._discharge_w(status, gaps)
        clock_hz: Value = None
        try:
            clock_hz = parse_clock_hz(self._api.processors())
            if clock_hz is None:
                gaps[_CLOCK] = "Windows tells no clock of this processor"
        except (OSError, struct.error) as error:
            gaps[_CLOCK] = f"Windows does not tell the processor's clock: {error}"
        self._gaps = gaps
        on_battery = None if status.on_battery is None else int(status.on_battery)
        return [Reading("", (on_battery, status.ratio, discharge_w, clock_hz))]

    def _discharge_w(self, status: PowerStatus, gaps: dict[str, str]) -> float | None:
        assert self._api is not None
        try:
            watts = parse_discharge_w(self._api.battery_state())
        except (OSError, struct.error) as error:
            gaps[_DISCHARGE] = f"Windows does not tell the battery's state: {error}"
            return None
        if watts is None:
            gaps[_DISCHARGE] = (
                "the battery does not tell its power"
                if status.on_battery
                else "nothing is drawn from the battery; pull the mains plug to measure the whole machine"
            )
        return watts

    def close(self) -> None:
        """Let the functions go."""
        self._api = None
