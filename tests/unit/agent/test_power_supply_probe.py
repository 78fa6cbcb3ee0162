"""Battery and mains from made-up trees."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchfleet.samples import BY_NAME
from benchfleet_agent.probes import Targets, Unavailable
from benchfleet_agent.probes.power_supply import METRICS, PowerSupplyProbe, Supply, on_battery

BATTERY = {"type": "Battery", "status": "Discharging"}


def supply(root: Path, name: str, **files: str) -> None:
    path = root / "sys/class/power_supply" / name
    path.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        (path / file).write_text(text + "\n")


def read(root: Path) -> tuple[tuple[object, ...], dict[str, str]]:
    probe = PowerSupplyProbe(root)
    probe.discover()
    (reading,) = probe.read(Targets())
    return reading.values, dict(probe.gaps())


def test_a_discharging_battery(tmp_path: Path) -> None:
    supply(tmp_path, "BAT0", **BATTERY, energy_now="30000000", energy_full="40000000", power_now="12500000")
    supply(tmp_path, "AC", type="Mains", online="0")
    assert read(tmp_path) == ((1, 0.75, 12.5), {})


def test_power_from_current_and_voltage_and_charge_from_ampere_hours(tmp_path: Path) -> None:
    supply(
        tmp_path,
        "BAT1",
        **BATTERY,
        charge_now="1000000",
        charge_full="4000000",
        current_now="-2000000",
        voltage_now="12000000",
    )
    assert read(tmp_path) == ((1, 0.25, 24.0), {})


def test_on_mains_nothing_is_drawn_and_that_is_said(tmp_path: Path) -> None:
    supply(tmp_path, "BAT0", type="Battery", status="Charging", capacity="81", power_now="30000000")
    supply(tmp_path, "ADP1", type="Mains", online="1")
    values, gaps = read(tmp_path)
    assert values == (0, 0.81, None)
    assert "mains" in gaps["battery_discharge_w"]


def test_a_weak_adapter_leaves_the_machine_on_mains_while_the_battery_drains(tmp_path: Path) -> None:
    supply(tmp_path, "BAT0", **BATTERY, capacity="50", power_now="3000000")
    supply(tmp_path, "AC", type="Mains", online="1")
    assert read(tmp_path)[0] == (0, 0.5, 3.0)


def test_garbage_is_none_with_a_reason(tmp_path: Path) -> None:
    supply(tmp_path, "BAT0", **BATTERY, capacity="250", energy_now="1", energy_full="0", power_now="99999999999999")
    values, gaps = read(tmp_path)
    assert values == (1, None, None)
    assert set(gaps) == {"battery_ratio", "battery_discharge_w"}


def test_two_batteries(tmp_path: Path) -> None:
    supply(tmp_path, "BAT0", **BATTERY, capacity="40", power_now="5000000")
    supply(tmp_path, "BAT1", **BATTERY, capacity="60", power_now="1000000")
    assert read(tmp_path)[0] == (1, 0.5, 6.0)


def test_the_battery_of_a_mouse_is_none_of_the_machine(tmp_path: Path) -> None:
    supply(tmp_path, "hid-mouse", **BATTERY, scope="Device", capacity="9")
    with pytest.raises(Unavailable, match="no battery"):
        PowerSupplyProbe(tmp_path).discover()


def test_a_battery_taken_out_is_a_reason(tmp_path: Path) -> None:
    supply(tmp_path, "BAT0", **BATTERY, capacity="40")
    probe = PowerSupplyProbe(tmp_path)
    probe.discover()
    (tmp_path / "sys/class/power_supply/BAT0/type").write_text("Unknown\n")
    with pytest.raises(Unavailable, match="taken out"):
        probe.read(Targets())


@pytest.mark.parametrize(
    ("supplies", "expected"),
    [
        ([("Mains", "", False), ("Battery", "Unknown", False)], True),
        ([("Battery", "Unknown", False)], None),
        ([("Battery", "Full", False)], False),
        ([("USB", "", True), ("Battery", "Discharging", False)], True),
        ([("USB", "", True), ("Battery", "Unknown", False)], False),
        ([("Mains", "", False), ("USB", "", True), ("Battery", "Charging", False)], False),
    ],
)
def test_where_the_power_comes_from(supplies: list[tuple[str, str, bool]], expected: bool | None) -> None:
    assert on_battery([Supply(kind, status, online, None, None) for kind, status, online in supplies]) is expected


def test_another_operating_system_is_a_reason(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="Linux"):
        PowerSupplyProbe(tmp_path).discover()


def test_the_metrics_are_in_the_registry() -> None:
    assert set(METRICS) <= set(BY_NAME)
