"""Battery and mains of a Linux machine, from ``/sys/class/power_supply``.

Names and units are those of the kernel's documentation, ``sysfs-class-power`` (µW, µA, µV, µWh, µAh).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchfleet_agent.probes import DeviceInfo, Reading, Targets, Unavailable
from benchfleet_agent.probes.sysfs import names_in, number_of, require_sysfs, text_of

METRICS = ("on_battery", "battery_ratio", "battery_discharge_w")
_ON_BATTERY, _RATIO, _DISCHARGE = METRICS
_HIGHEST_POWER_W = 1_000


@dataclass(frozen=True, slots=True)
class Supply:
    """One supply as its files have it. None or empty: not told."""

    kind: str
    """``Battery``, ``Mains``, ``USB``, …"""
    status: str
    """Of a battery: ``Charging``, ``Discharging``, ``Not charging``, ``Full``, ``Unknown``."""
    online: bool
    """Of mains and USB."""
    ratio: float | None
    """Charge of a battery, 0 to 1."""
    discharge_w: float | None
    """Power drawn from a battery; None also while nothing is."""


def on_battery(supplies: Sequence[Supply]) -> bool | None:
    """Whether the machine lives on its battery; None: the supplies do not say.

    Some adapters are listed as USB, whose ports may also give power away: there the battery decides.
    """
    batteries = {supply.status for supply in supplies if supply.kind == "Battery"}
    mains = [supply.online for supply in supplies if supply.kind == "Mains"]
    if any(mains):
        return False
    if "Discharging" in batteries:
        return True
    if batteries & {"Charging", "Full", "Not charging"} or any(s.online for s in supplies if s.kind == "USB"):
        return False
    return True if mains else None


class PowerSupplyProbe:
    """Whether the machine runs on its battery, how full that is and what is drawn from it."""

    probe_id = "power_supply"
    period_ms = 1_000
    budget_us = 5_000  # embedded controllers answer slowly, but hardly use the processor
    verification = "documentation"

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._directory = root / "sys/class/power_supply"
        self._gaps: dict[str, str] = {}

    def discover(self) -> None:
        """Find the battery."""
        require_sysfs(self._root, "the battery")
        if not self._batteries(self._supplies()):
            raise Unavailable("no battery: this machine has none that the kernel knows of")

    def _supplies(self) -> list[Supply]:
        paths = (self._directory / name for name in names_in(self._directory))
        # "Device": the battery of a mouse or a headset.
        return [_supply(path) for path in paths if text_of(path / "scope") != "Device"]

    @staticmethod
    def _batteries(supplies: Sequence[Supply]) -> list[Supply]:
        return [supply for supply in supplies if supply.kind == "Battery"]

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
        """Read all supplies. Of several batteries the mean charge and the sum of their power count."""
        supplies = self._supplies()
        batteries = self._batteries(supplies)
        if not batteries:
            raise Unavailable("no battery: it was taken out")
        draining = on_battery(supplies)
        ratios = [battery.ratio for battery in batteries if battery.ratio is not None]
        drawn = [battery.discharge_w for battery in batteries if battery.discharge_w is not None]
        self._gaps = {}
        if draining is None:
            self._gaps[_ON_BATTERY] = "neither the battery nor a mains adapter says where the power comes from"
        if not ratios:
            self._gaps[_RATIO] = "the battery does not tell its charge"
        if not drawn:
            self._gaps[_DISCHARGE] = (
                "the battery does not tell its power or its current and voltage"
                if any(battery.status == "Discharging" for battery in batteries)
                else "nothing is drawn from the battery; pull the mains plug to measure the whole machine"
            )
        values = (
            None if draining is None else int(draining),
            sum(ratios) / len(ratios) if ratios else None,
            sum(drawn) if drawn else None,
        )
        return [Reading("", values)]

    def close(self) -> None:
        """Nothing is held."""


def _supply(path: Path) -> Supply:
    kind = text_of(path / "type")
    if kind != "Battery":
        return Supply(kind, "", text_of(path / "online") not in {"", "0"}, None, None)
    status = text_of(path / "status")
    return Supply(kind, status, False, _ratio(path), _discharge_w(path) if status == "Discharging" else None)


def _ratio(path: Path) -> float | None:
    for what in ("energy", "charge"):
        now, full = number_of(path / f"{what}_now"), number_of(path / f"{what}_full", lowest=1)
        if now is not None and full is not None:
            return min(now / full, 1.0)
    percent = number_of(path / "capacity")
    return percent / 100 if percent is not None and percent <= 100 else None


def _discharge_w(path: Path) -> float | None:
    """Return watts; some drivers give what leaves the battery a minus sign."""
    lowest = -(10**12)
    power = number_of(path / "power_now", lowest=lowest)
    watts = None if power is None else abs(power) / 1e6
    if watts is None:
        current = number_of(path / "current_now", lowest=lowest)
        voltage = number_of(path / "voltage_now", lowest=1)
        watts = None if current is None or voltage is None else abs(current) * voltage / 1e12
    return watts if watts is not None and watts <= _HIGHEST_POWER_W else None
