from __future__ import annotations

from typing import Any

import pytest

from benchfleet_controller.host_rules import Trouble, of_case, troubles

GHZ = 1e9
BUSY: dict[str, Any] = {"busy_ns": 80, "total_ns": 100, "runtime_ns": 78, "load_ns": 1, "agent_ns": 1}


def after(**state: Any) -> dict[str, Any]:
    return {"state_after": state}


@pytest.mark.parametrize(
    ("row", "trouble", "told"),
    [
        (after(suspended_ns=42_000_000_000), Trouble.SUSPENDED, "slept 42 s"),
        ({"state_before": {"on_battery": False}, **after(on_battery=True)}, Trouble.POWER_CHANGED, "changed between"),
        ({"on_battery_least": 0, "on_battery_most": 1}, Trouble.POWER_CHANGED, "changed between"),
        (after(on_battery=True), Trouble.ON_BATTERY, "ran on battery"),
        (after(low_power_mode=True, power_plan="powersave"), Trouble.LOW_POWER_MODE, "saved power (powersave)"),
        ({"thermal_throttled_ratio": 0.02}, Trouble.THROTTLED, "heat slowed a device down in 2%"),
        ({"throttled_ratio": 0.5, "throttle_reasons": 3}, Trouble.THROTTLED, "(power, thermal) in 50%"),
        ({"cpu_throttle_count": 7}, Trouble.THROTTLED, "for their heat 7 times"),
        (after(thermal_pressure="serious"), Trouble.THROTTLED, "thermal pressure was serious"),
        (
            BUSY | {"cpu_clock_hz": 2 * GHZ} | after(cpu_clock_hz=4 * GHZ, cpu_clock_limit_hz=4 * GHZ),
            Trouble.THROTTLED,
            "processors ran at 2.0 of 4.0 GHz",
        ),
        (BUSY | {"runtime_ns": 60}, Trouble.BACKGROUND_LOAD, "other programs used 18%"),
        (after(background_cpu_ratio=0.3), Trouble.BACKGROUND_LOAD, "other programs used 30%"),
        ({"memory_pressure_ratio": 0.2}, Trouble.MEMORY_PRESSURE, "waited for memory in 20%"),
        ({"available_least_bytes": 100 << 20}, Trouble.MEMORY_PRESSURE, "100 MiB of memory were left"),
        (
            {"readings": [{"largest_gap_s": 3.0, "samples": 100}], "duration_s": 10.0},
            Trouble.TELEMETRY_STALLED,
            "for 3.0 s",
        ),
    ],
)
def test_each_trouble(row: dict[str, Any], trouble: Trouble, told: str) -> None:
    (found,) = troubles(row)
    assert found.trouble is trouble
    assert told in found.message


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"state_before": None, "state_after": None},
        # What happened before the round is told by the state before it.
        {"state_before": {"suspended_ns": 42_000_000_000, "background_cpu_ratio": 0.9}},
        {"state_before": {"on_battery": False}, **after(on_battery=False), "on_battery_least": 0},
        {"thermal_throttled_ratio": 0.01},
        # Counters are exact; a mask that was seen once is not held against them.
        {"power_throttled_ratio": 0.0, "throttled_ratio": 0.5, "throttle_reasons": 1},
        BUSY | {"busy_ns": 30, "runtime_ns": 28, "cpu_clock_hz": GHZ} | after(cpu_clock_limit_hz=4 * GHZ),  # idle
        BUSY | after(cpu_clock_hz=GHZ, cpu_clock_limit_hz=4 * GHZ),  # slow once the work was done
        BUSY | {"runtime_ns": 69},
        BUSY | after(background_cpu_ratio=0.3),  # telemetry saw the round itself
        # One probe is read that seldom, whatever another's pace.
        {
            "readings": [{"largest_gap_s": 3.0, "samples": 5}, {"largest_gap_s": 0.1, "samples": 100}],
            "duration_s": 10.0,
        },
        {"readings": [{"largest_gap_s": None, "samples": 1}], "duration_s": 10.0},
        BUSY | {"duration_s": 0.1},  # ticks of 10 ms say nothing of so short a time
    ],
)
def test_quiet_and_unknown_hosts_are_no_trouble(row: dict[str, Any]) -> None:
    assert troubles(row) == ()


def test_the_rounds_of_a_case_are_counted_once_each_and_the_worst_is_told() -> None:
    hot, hotter = {"thermal_throttled_ratio": 0.02}, {"thermal_throttled_ratio": 0.3}
    slept = after(suspended_ns=9_000_000_000) | hot
    stalled = {"readings": [{"largest_gap_s": 3.0, "samples": 100}], "duration_s": 10.0}
    found = of_case([{}, hot, hotter, slept, stalled])
    assert (found["rounds_invalid"], found["rounds_suspicious"]) == (1, 2)
    assert found["round_troubles"] == [
        {"trouble": "suspended", "rounds": [4], "worst": "the machine slept 9 s"},
        {"trouble": "throttled", "rounds": [2, 3, 4], "worst": "heat slowed a device down in 30% of its time"},
        {"trouble": "telemetry_stalled", "rounds": [5], "worst": "no reading came for 3.0 s"},
    ]
