"""A Mac's battery, mains, thermal pressure and, as far as it can be had, power.

Battery and mains are the registry's ``AppleSmartBattery`` (mA, mV), thermal pressure is
``NSProcessInfo.thermalState``; both need no rights. Power of the whole machine and energy of the GPU come
from interfaces Apple does not document, which a helper process reads (`macos_soc`).
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchfleet_agent.probes import DeviceInfo, Probe, Reading, Targets, Unavailable, failure_text, gaps_of
from benchfleet_agent.probes.isolated import IsolatedProbe
from benchfleet_agent.probes.macos_iokit import IoKitRegistry, Registry, declare

METRICS = (
    "on_battery",
    "battery_ratio",
    "battery_discharge_w",
    "host_thermal_pressure",
    "system_power_w",
    "device_energy_mj",
)
_ON_BATTERY, _RATIO, _DISCHARGE, _THERMAL, _POWER, _ENERGY = METRICS
BATTERY = "AppleSmartBattery"
_BATTERY_KEYS = (
    "BatteryInstalled",
    "ExternalConnected",
    "CurrentCapacity",
    "MaxCapacity",
    "InstantAmperage",
    "Amperage",
    "Voltage",
)
_HIGHEST_POWER_W = 1_000
_FIRST_SOC_SPEC = "macos_soc:MacSocProbe"
_NO_BATTERY = "no battery: this Mac has none"
_NO_THERMAL = "macOS does not tell its thermal state"


@dataclass(frozen=True, slots=True)
class Battery:
    """``AppleSmartBattery``. None: not told."""

    on_battery: bool | None
    ratio: float | None
    discharge_w: float | None
    """None also while nothing is drawn."""


def parse_battery(properties: Mapping[str, Any]) -> Battery | None:
    """Read the properties of ``AppleSmartBattery``; None where no battery is installed.

    Charge is in percent of 100 on Apple silicon and in mAh on Intel: the ratio is the same. What leaves the
    battery is a negative current, which the registry may show as an unsigned number of 64 bits.
    """
    if properties.get("BatteryInstalled") is False or not properties:
        return None
    external = properties.get("ExternalConnected")
    now, full = _whole(properties.get("CurrentCapacity")), _whole(properties.get("MaxCapacity"))
    current_ma = _whole(properties.get("InstantAmperage")) or _whole(properties.get("Amperage"))
    voltage_mv = _whole(properties.get("Voltage"))
    watts = None
    if current_ma is not None and voltage_mv is not None and current_ma < 0 < voltage_mv:
        watts = -current_ma * voltage_mv / 1e6
    return Battery(
        on_battery=None if not isinstance(external, bool) else not external,
        ratio=min(now / full, 1.0) if now is not None and full and now >= 0 and full > 0 else None,
        discharge_w=watts if watts is not None and watts <= _HIGHEST_POWER_W else None,
    )


def _whole(value: object) -> int | None:
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return value - 2**64 if value >= 2**63 else value


def thermal_state(library: Any = None) -> int | None:
    """Ask ``NSProcessInfo`` for the thermal state: 0 nominal, 1 fair, 2 serious, 3 critical; None: not told.

    Raises `Unavailable` where this is no macOS or the Objective-C runtime cannot be loaded.
    """
    objc = library if library is not None else _load_objc()
    information = objc.message(objc.objc_getClass(b"NSProcessInfo"), objc.sel_registerName(b"processInfo"))
    if not information:
        return None
    state = objc.number_message(information, objc.sel_registerName(b"thermalState"))
    return int(state) if 0 <= state <= 3 else None


class _ObjectiveC:
    """The two ways of sending a message that are needed: for an object, and for a whole number."""

    def __init__(self) -> None:
        pointer = ctypes.c_void_p
        ctypes.CDLL("/System/Library/Frameworks/Foundation.framework/Foundation")
        library = ctypes.CDLL("/usr/lib/libobjc.A.dylib")
        declare(
            library,
            {"objc_getClass": ([ctypes.c_char_p], pointer), "sel_registerName": ([ctypes.c_char_p], pointer)},
        )
        self.objc_getClass, self.sel_registerName = library.objc_getClass, library.sel_registerName
        # The function has no type of its own: it takes that of the method called.
        address = ctypes.cast(library.objc_msgSend, pointer).value or 0
        self.message = ctypes.CFUNCTYPE(pointer, pointer, pointer)(address)
        self.number_message = ctypes.CFUNCTYPE(ctypes.c_long, pointer, pointer)(address)


def _load_objc() -> _ObjectiveC:
    if sys.platform != "darwin":
        raise Unavailable("only on macOS")
    try:
        return _ObjectiveC()
    except (OSError, AttributeError) as error:
        raise Unavailable(f"the Objective-C runtime cannot be loaded: {error}") from None


class MacPowerProbe:
    """Battery, mains, thermal pressure, and power as far as it can be believed."""

    probe_id = "macos_power"
    period_ms = 1_000
    budget_us = 5_000
    verification = "documentation"

    def __init__(
        self,
        registry: Registry | None = None,
        thermal: Callable[[], int | None] | None = None,
        soc: Probe | None = None,
    ) -> None:
        self._given, self._given_thermal = registry, thermal
        self._soc: Probe = soc if soc is not None else IsolatedProbe(_FIRST_SOC_SPEC)
        self._registry: Registry | None = None
        self._thermal: Callable[[], int | None] = lambda: None
        self._gaps: dict[str, str] = {}
        self._soc_problem: str | None = None

    def discover(self) -> None:
        """Load the libraries and start the helper. What the helper lacks is a gap."""
        self.close()
        registry = self._given if self._given is not None else IoKitRegistry()
        if self._given_thermal is not None:
            self._thermal = self._given_thermal
        else:
            objc = _load_objc()
            self._thermal = lambda: thermal_state(objc)
        self._soc_problem = None
        try:
            self._soc.discover()
        except Exception as error:  # noqa: BLE001 - it is the helper that may break; battery and heat go on
            self._soc_problem = failure_text(error)
        self._registry = registry

    def metrics(self) -> tuple[str, ...]:
        """Names of the values read."""
        return METRICS

    def devices(self) -> tuple[DeviceInfo, ...]:
        """None of its own: the GPU whose energy is read is the probe ``macos_gpu``'s."""
        return ()

    def gaps(self) -> Mapping[str, str]:
        """What the last reading lacked."""
        return self._gaps

    def read(self, targets: Targets) -> Sequence[Reading]:
        """Read the battery, the thermal state and what the helper tells."""
        if self._registry is None:
            raise Unavailable("the probe of the Mac's power was not discovered")
        gaps: dict[str, str] = {}
        battery = self._battery(self._registry, gaps)
        thermal = self._thermal()
        if thermal is None:
            gaps[_THERMAL] = _NO_THERMAL
        of_soc = self._read_soc(targets, gaps)
        power_w, _ = of_soc.pop("", (None, None))
        self._gaps = gaps
        host = (
            None if battery.on_battery is None else int(battery.on_battery),
            battery.ratio,
            battery.discharge_w,
            thermal,
            power_w,
            None,
        )
        of_devices = [Reading(device_id, (*(None,) * 5, energy_mj)) for device_id, (_, energy_mj) in of_soc.items()]
        return [Reading("", host), *of_devices]

    @staticmethod
    def _battery(registry: Registry, gaps: dict[str, str]) -> Battery:
        battery = None
        for entry in registry.services(BATTERY):
            values = {key: registry.value(entry, key) for key in _BATTERY_KEYS}
            battery = battery or parse_battery({key: value for key, value in values.items() if value is not None})
        if battery is None:
            gaps |= dict.fromkeys(METRICS[:3], _NO_BATTERY)
            return Battery(None, None, None)
        if battery.on_battery is None:
            gaps[_ON_BATTERY] = "the battery does not say whether mains are connected"
        if battery.ratio is None:
            gaps[_RATIO] = "the battery does not tell its charge"
        if battery.discharge_w is None:
            gaps[_DISCHARGE] = (
                "the battery does not tell its current and voltage"
                if battery.on_battery
                else "nothing is drawn from the battery; pull the mains plug to measure the whole machine"
            )
        return battery

    def _read_soc(self, targets: Targets, gaps: dict[str, str]) -> dict[str, tuple[Any, ...]]:
        """Return (power in W, energy in mJ) by device, empty for the host."""
        if self._soc_problem is None:
            try:
                readings = self._soc.read(targets)
            except Unavailable as error:
                self._soc_problem = failure_text(error)
            except Exception as error:  # noqa: BLE001 - it crashed or hung, and is started again later
                gaps |= dict.fromkeys((_POWER, _ENERGY), failure_text(error))
                return {}
            else:
                gaps |= gaps_of(self._soc)
                return {reading.device_id: reading.values for reading in readings}
        gaps |= dict.fromkeys((_POWER, _ENERGY), self._soc_problem)
        return {}

    def close(self) -> None:
        """End the helper."""
        self._registry = None
        self._soc.close()
