"""Windows' power structures from made-up bytes: battery, mains, clock, and what Windows does not know."""

from __future__ import annotations

import sys

import pytest

from benchfleet_agent.probes import Targets, Unavailable
from benchfleet_agent.probes.windows_power import (
    BATTERY_STATE,
    POWER_STATUS,
    PROCESSOR,
    PowerStatus,
    WindowsPowerProbe,
    parse_clock_hz,
    parse_discharge_w,
    parse_power_status,
)

NOT_KNOWN = 0xFFFFFFFF
UNKNOWN_RATE = -(2**31)


def battery(rate_mw: int, *, present: bool = True, discharging: bool = True) -> bytes:
    return BATTERY_STATE.pack(not discharging, present, False, discharging, 1, 60_000, 30_000, rate_mw, 0, 0, 0)


def processors(*clocks_mhz: int) -> bytes:
    return b"".join(PROCESSOR.pack(number, 3_800, mhz, 3_800, 2, 1) for number, mhz in enumerate(clocks_mhz))


class FakeApi:
    """Bytes of each structure; an exception instead is raised."""

    def __init__(self, status: bytes, state: bytes | OSError, clocks: bytes | OSError) -> None:
        self.status, self.state, self.clocks = status, state, clocks

    def power_status(self) -> bytes:
        return self.status

    def battery_state(self) -> bytes:
        return given(self.state)

    def processors(self) -> bytes:
        return given(self.clocks)


def given(answer: bytes | OSError) -> bytes:
    if isinstance(answer, OSError):
        raise answer
    return answer


ON_BATTERY = POWER_STATUS.pack(0, 1, 83, 0, 7_200, NOT_KNOWN)
ON_MAINS = POWER_STATUS.pack(1, 8, 100, 0, NOT_KNOWN, NOT_KNOWN)
DESKTOP = POWER_STATUS.pack(1, 128, 255, 0, NOT_KNOWN, NOT_KNOWN)


def values(api: FakeApi) -> tuple[tuple[object, ...], dict[str, str]]:
    probe = WindowsPowerProbe(api)
    probe.discover()
    (reading,) = probe.read(Targets())
    return reading.values, dict(probe.gaps())


def test_structures_have_the_documented_sizes() -> None:
    assert (POWER_STATUS.size, BATTERY_STATE.size, PROCESSOR.size) == (12, 32, 24)


def test_fields_lie_at_the_documented_offsets() -> None:
    state = bytearray(32)
    state[1] = state[3] = 1  # BatteryPresent, Discharging
    state[16:20] = (-14_250).to_bytes(4, "little", signed=True)  # Rate
    assert parse_discharge_w(bytes(state)) == 14.25
    processor = bytearray(24)
    processor[8:12] = (2_400).to_bytes(4, "little")  # CurrentMhz
    assert parse_clock_hz(bytes(processor)) == 2.4e9


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (ON_BATTERY, PowerStatus(True, True, 0.83)),
        (ON_MAINS, PowerStatus(False, True, 1.0)),
        (DESKTOP, PowerStatus(False, False, None)),
        (POWER_STATUS.pack(255, 255, 255, 0, 0, 0), PowerStatus(None, True, None)),
    ],
)
def test_the_power_status_is_read(data: bytes, expected: PowerStatus) -> None:
    assert parse_power_status(data) == expected


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (battery(-14_250), 14.25),
        (battery(25_000, discharging=False), None),
        (battery(-14_250, present=False), None),
        (battery(UNKNOWN_RATE), None),
        (battery(0), None),
    ],
)
def test_discharge_is_read_in_watts(data: bytes, expected: float | None) -> None:
    assert parse_discharge_w(data) == expected


def test_the_clock_is_the_mean_of_the_processors_that_tell_one() -> None:
    assert parse_clock_hz(processors(2_000, 3_000, 0)) == 2.5e9
    assert parse_clock_hz(processors(0, NOT_KNOWN)) is None
    assert parse_clock_hz(b"") is None
    assert parse_clock_hz(processors(2_000) + b"\0\0\0") == 2e9


def test_a_laptop_on_its_battery() -> None:
    assert values(FakeApi(ON_BATTERY, battery(-14_250), processors(1_800))) == ((1, 0.83, 14.25, 1.8e9), {})


def test_a_laptop_on_mains_draws_nothing_from_its_battery() -> None:
    found, gaps = values(FakeApi(ON_MAINS, battery(0, discharging=False), processors(1_800)))
    assert found == (0, 1.0, None, 1.8e9)
    assert "pull the mains plug" in gaps["battery_discharge_w"]


def test_a_desktop_has_no_battery_but_a_clock() -> None:
    found, gaps = values(FakeApi(DESKTOP, OSError("unused"), processors(4_000)))
    assert found == (0, None, None, 4e9)
    assert gaps["battery_ratio"] == gaps["battery_discharge_w"]
    assert "no battery" in gaps["battery_ratio"]


def test_calls_that_fail_are_reasons_and_harm_no_other() -> None:
    found, gaps = values(FakeApi(ON_BATTERY, OSError("status 0xC0000022"), OSError("status 0xC0000002")))
    assert found == (1, 0.83, None, None)
    assert "0xC0000022" in gaps["battery_discharge_w"]
    assert "0xC0000002" in gaps["host_cpu_clock_hz"]


def test_a_status_of_another_length_makes_the_probe_unavailable() -> None:
    probe = WindowsPowerProbe(FakeApi(b"\0" * 11, b"", b""))
    with pytest.raises(Unavailable, match="power status"):
        probe.discover()
    with pytest.raises(Unavailable, match="not discovered"):
        probe.read(Targets())


@pytest.mark.skipif(sys.platform == "win32", reason="there the calls are")
def test_elsewhere_the_probe_says_only_on_windows() -> None:
    with pytest.raises(Unavailable, match="only on Windows"):
        WindowsPowerProbe().discover()
