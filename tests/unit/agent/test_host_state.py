from __future__ import annotations

import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchfleet_agent.host_state import (
    Facts,
    HostState,
    Reading,
    background_ratio,
    slept_ns,
    state_between,
    throttle_reasons,
)
from benchfleet_agent.host_state.at_rest import OLDEST_NS, WINDOW_S, HostAtRest, cheap_probes
from benchfleet_agent.host_state.macos import MacFacts
from benchfleet_agent.host_state.readers import HostStates, LinuxFacts, facts_reader, linux_low_power_mode
from benchfleet_agent.host_state.windows import (
    WindowsFacts,
    parse_battery_saver,
    parse_clock_limit_hz,
    parse_plan_name,
)
from benchfleet_agent.probes import BrokenProbe, DeviceInfo, Targets, Unavailable, Value
from benchfleet_agent.probes import Reading as ProbeReading
from benchfleet_agent.probes.windows_power import POWER_STATUS, PROCESSOR

S = 1_000_000_000
OURS = Targets(runtime_pids=(7,), load_pid=8)


def reading(
    at_s: float, targets: Targets = OURS, *, facts: Facts | None = None, device: dict[str, Value] | None = None,
    **host: Value,
) -> Reading:  # fmt: skip
    """Processor times in seconds (``busy``, ``total``, ``runtime``, ``load``, ``agent``); other metrics as they are."""
    counters = {"busy": "host_cpu_busy_ns", "total": "host_cpu_total_ns", "runtime": "runtime_cpu_ns",
                "load": "load_cpu_ns", "agent": "agent_cpu_ns"}  # fmt: skip
    values = {
        counters.get(name, name): value * S if name in counters and value is not None else value
        for name, value in host.items()
    }
    return Reading(int(at_s * S), {"": values, "gpu0": device or {}}, facts or Facts(), targets)


def test_background_is_what_is_busy_less_our_own_processes() -> None:
    before = reading(0, busy=100, total=1000, runtime=50, load=1, agent=2)
    now = reading(10, busy=116, total=1040, runtime=60, load=1.5, agent=2.5)

    assert background_ratio(before, now) == pytest.approx((16 - 10 - 0.5 - 0.5) / 40)


def test_background_of_a_machine_that_only_works_for_us_is_not_below_zero() -> None:
    before = reading(0, busy=100, total=1000, runtime=50, load=1, agent=2)
    now = reading(10, busy=110, total=1040, runtime=60.02, load=1, agent=2)

    assert background_ratio(before, now) == 0


def test_without_a_runtime_or_load_process_of_ours_only_the_agent_is_taken_out() -> None:
    before = reading(0, Targets(), busy=0, total=0, agent=0)
    now = reading(1, Targets(), busy=3, total=4, agent=1)

    assert background_ratio(before, now) == 0.5


@pytest.mark.parametrize(
    "now",
    [
        reading(0.1, busy=101, total=1000.4, runtime=50, load=1, agent=2),
        reading(10, Targets((9,), 8), busy=116, total=1040, runtime=60, load=1, agent=2),
        reading(10, busy=116, total=1040, load=1, agent=2),
        reading(10, busy=116, total=1040, runtime=3, load=1, agent=2),
        reading(10, busy=116, total=1000, runtime=60, load=1, agent=2),
        reading(10, runtime=60, load=1, agent=2),
    ],
    ids=["too short", "another process", "runtime not told", "runtime began anew", "clock stood", "host not told"],
)
def test_background_is_absent_where_two_readings_cannot_tell_it(now: Reading) -> None:
    assert background_ratio(reading(0, busy=100, total=1000, runtime=50, load=1, agent=2), now) is None


@pytest.mark.parametrize(
    ("before", "now", "slept"),
    [(5, 5 + 42 * S, 42 * S), (5, 5, 0), (5, 5 + 3_000_000, 0), (5, 4, 0), (None, 5, None), (5, None, None)],
)
def test_sleep_is_told_but_not_what_reading_two_clocks_takes(
    before: int | None, now: int | None, slept: int | None
) -> None:
    assert slept_ns(before, now) == slept


def test_a_state_holds_what_was_read_and_nothing_else() -> None:
    now = reading(
        3,
        facts=Facts("balanced, powersave", True, 5e9, 70 * S, True),
        device={"device_temperature_c": 81, "device_throttle_reasons": 3},
        on_battery=1,
        battery_ratio=0.5,
        host_cpu_clock_hz=2.5e9,
        host_cpu_temperature_c=66.0,
        host_thermal_pressure=2,
        host_available_bytes=123,
    )
    before = reading(0, facts=Facts(asleep_ns=60 * S))

    assert state_between(before, now) == HostState(
        on_battery=True,
        battery_ratio=0.5,
        power_plan="balanced, powersave",
        low_power_mode=True,
        cpu_clock_hz=2.5e9,
        cpu_clock_limit_hz=5e9,
        cpu_temperature_c=66.0,
        device_temperature_c=81.0,
        thermal_pressure="serious",
        background_cpu_ratio=None,
        available_bytes=123,
        suspended_ns=10 * S,
        throttle_reasons=("power", "thermal"),
        has_battery=True,
    )


def test_a_host_that_tells_nothing_has_an_empty_state() -> None:
    state = state_between(None, Reading(0, {}, Facts(), Targets()))

    assert state == HostState()
    assert not state.to_proto().ListFields()


def test_a_state_goes_to_the_wire_with_zero_and_false_kept_apart_from_absent() -> None:
    state = HostState(on_battery=False, suspended_ns=0, background_cpu_ratio=0.0, throttle_reasons=("board",))
    message = state.to_proto()

    assert [message.HasField(name) for name in ("on_battery", "suspended_ns", "background_cpu_ratio")] == [True] * 3
    assert not message.HasField("low_power_mode")
    assert list(message.throttle_reasons) == ["board"]


def test_reasons_of_several_devices_are_named_once() -> None:
    assert throttle_reasons([1, 16, 1, 0]) == ("power", "board")


@pytest.mark.parametrize(
    ("state", "mains"),
    [
        (HostState(on_battery=False), True),
        (HostState(on_battery=True), False),
        (HostState(has_battery=False), True),
        (HostState(has_battery=True), None),
        (HostState(), None),
    ],
)
def test_a_machine_without_a_battery_is_on_mains(state: HostState, mains: bool | None) -> None:
    assert state.on_mains is mains


def test_each_state_counts_from_the_one_before_and_a_new_series_from_none() -> None:
    clock = iter([0, 5 * S, 6 * S])
    asleep = iter([10 * S, 13 * S, 99 * S])
    states = HostStates(dict, Targets, lambda: Facts(asleep_ns=next(asleep)), clock_ns=lambda: next(clock))

    assert states.take().suspended_ns is None
    assert states.take().suspended_ns == 3 * S
    assert states.anew().take().suspended_ns is None


def sysfs(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / "sys" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


CPUFREQ = "devices/system/cpu/cpufreq"


def test_linux_tells_profile_governors_and_the_fastest_processors_limit(tmp_path: Path) -> None:
    root = sysfs(
        tmp_path,
        {
            "firmware/acpi/platform_profile": "low-power",
            f"{CPUFREQ}/policy0/scaling_governor": "powersave",
            f"{CPUFREQ}/policy0/scaling_driver": "intel_pstate",
            f"{CPUFREQ}/policy0/cpuinfo_max_freq": "5200000",
            f"{CPUFREQ}/policy8/scaling_governor": "powersave",
            f"{CPUFREQ}/policy8/cpuinfo_max_freq": "3900000",
            "class/power_supply/BAT0/type": "Battery",
        },
    )

    assert LinuxFacts(root, lambda: 5).read() == Facts("low-power, powersave", True, 5.2e9, 5, True)


def test_linux_in_a_virtual_machine_tells_only_that_there_is_no_battery(tmp_path: Path) -> None:
    root = sysfs(tmp_path, {"class/power_supply/hid-mouse/type": "Battery"})
    (root / "sys/class/power_supply/hid-mouse/scope").write_text("Device\n")

    assert LinuxFacts(root, lambda: None).read() == Facts(has_battery=False)
    assert LinuxFacts(tmp_path / "no sys", lambda: None).read() == Facts()


@pytest.mark.parametrize(
    ("profile", "governors", "self_scaling", "mode"),
    [
        ("balanced", ["powersave"], False, False),
        ("low-power", [], False, True),
        ("", ["powersave"], True, False),
        ("", ["powersave"], False, True),
        ("", ["schedutil"], False, False),
        ("", [], False, None),
    ],
)
def test_powersave_saves_power_only_where_it_is_no_name_for_scaling(
    profile: str, governors: list[str], self_scaling: bool, mode: bool | None
) -> None:
    assert linux_low_power_mode(profile, governors, self_scaling=self_scaling) is mode


class FakePower:
    """Windows' power functions with given bytes."""

    def __init__(self, status: bytes, processors: bytes) -> None:
        self._status, self._processors = status, processors

    def power_status(self) -> bytes:
        return self._status

    def battery_state(self) -> bytes:
        raise OSError

    def processors(self) -> bytes:
        return self._processors


class FakePlan:
    def plan_name(self) -> bytes:
        return "Höchstleistung\0\0rest".encode("utf-16-le")

    def interrupt_times(self) -> tuple[int, int]:
        return 5_000_000_000, 2_000_000_000


class RefusingPlan:
    def plan_name(self) -> bytes:
        raise OSError("access denied")

    def interrupt_times(self) -> tuple[int, int]:
        raise OSError("gone")


ON_BATTERY_SAVING = POWER_STATUS.pack(0, 1, 50, 1, 0, 0)
TWO_PROCESSORS = PROCESSOR.pack(0, 2900, 1200, 2900, 2, 1) + PROCESSOR.pack(1, 4700, 1200, 4700, 2, 1)


def test_windows_tells_plan_saver_limit_sleep_and_battery() -> None:
    found = WindowsFacts(FakePower(ON_BATTERY_SAVING, TWO_PROCESSORS), FakePlan()).read()

    assert found == Facts("Höchstleistung", True, 4.7e9, 300 * S, True)


def test_windows_calls_that_fail_leave_the_others_alone() -> None:
    found = WindowsFacts(FakePower(POWER_STATUS.pack(1, 128, 255, 0, 0, 0), b""), RefusingPlan()).read()

    assert found == Facts(low_power_mode=False, has_battery=False)


def test_windows_structures_of_another_size_are_refused() -> None:
    with pytest.raises(struct.error):
        parse_battery_saver(b"\0")
    assert parse_clock_limit_hz(b"\0" * 11) is None
    assert parse_plan_name(b"\xff") == "\ufffd"


class FakeRegistry:
    def __init__(self, *installed: object) -> None:
        self._installed = installed

    def services(self, class_name: str) -> Any:
        assert class_name == "AppleSmartBattery"
        return iter(self._installed)

    def value(self, entry: Any, key: str) -> Any:
        return entry

    def children(self, entry: Any) -> Any:
        return iter(())

    def class_name(self, entry: Any) -> str:
        return ""

    def entry_id(self, entry: Any) -> int:
        return 0


@pytest.mark.parametrize(("installed", "has_battery"), [((), False), ((True,), True), ((False,), False)])
def test_a_mac_tells_low_power_mode_sleep_and_battery(installed: tuple[bool, ...], has_battery: bool) -> None:
    found = MacFacts(FakeRegistry(*installed), lambda: True, lambda: 9).read()

    assert found == Facts(low_power_mode=True, asleep_ns=9, has_battery=has_battery)


def test_a_system_whose_libraries_are_missing_tells_nothing() -> None:
    for platform in {"win32", "darwin", "plan9"} - {sys.platform}:
        assert facts_reader(platform)() == Facts()


@pytest.mark.skipif(sys.platform != "linux", reason="its clocks")
def test_linux_tells_how_long_it_slept_since_it_started() -> None:
    asleep_ns = facts_reader()().asleep_ns

    assert asleep_ns is not None
    assert asleep_ns > -1_000_000_000


class FakeSystem:
    """A probe of processor time: half of it busy with other things."""

    probe_id = "system"
    period_ms = 100
    budget_us = 1_000

    def __init__(self) -> None:
        self.total_ns = 0

    def discover(self) -> None:
        pass

    def metrics(self) -> tuple[str, ...]:
        return "host_cpu_busy_ns", "host_cpu_total_ns", "agent_cpu_ns"

    def devices(self) -> tuple[DeviceInfo, ...]:
        return ()

    def read(self, targets: Targets) -> Sequence[ProbeReading]:
        self.total_ns += 4 * S
        return [ProbeReading("", (self.total_ns // 2, self.total_ns, 0))]

    def close(self) -> None:
        pass


class Slept:
    """A clock that moves when it is slept on."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.sleeps: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now_s += seconds

    def ns(self) -> int:
        return int(self.now_s * S)


def at_rest(clock: Slept) -> HostAtRest:
    probes = (FakeSystem(), BrokenProbe("cpu", "no sensors"))
    return HostAtRest(probes, Facts, sleep=clock.sleep, clock_ns=clock.ns)


def test_a_host_at_rest_looks_for_a_moment_when_nothing_recent_is_known() -> None:
    clock = Slept()
    host = at_rest(clock)

    assert host.state(measuring=False).background_cpu_ratio == 0.5
    clock.now_s += 5
    assert host.state(measuring=False).background_cpu_ratio == 0.5
    clock.now_s += OLDEST_NS / S + 1
    assert host.state(measuring=False).background_cpu_ratio == 0.5
    assert clock.sleeps == [WINDOW_S, WINDOW_S]


def test_a_host_that_measures_is_not_kept_and_says_nothing_of_background() -> None:
    clock = Slept()
    host = at_rest(clock)
    host.state(measuring=False)
    clock.sleeps.clear()

    for _ in range(2):
        clock.now_s += 1
        assert host.state(measuring=True).background_cpu_ratio is None
    assert clock.sleeps == []
    clock.now_s += 1
    assert host.state(measuring=False).background_cpu_ratio == 0.5
    assert clock.sleeps == [WINDOW_S]


def test_no_probe_of_a_host_at_rest_asks_a_gpu() -> None:
    for platform in ("linux", "win32", "darwin", "plan9"):
        probes = cheap_probes(platform)
        assert probes[0].probe_id == "system"
        assert not [probe for probe in probes if "nvidia" in probe.probe_id]


@pytest.mark.skipif(sys.platform == "darwin", reason="it is there")
def test_the_objective_c_runtime_is_only_on_macos() -> None:
    from benchfleet_agent.host_state.macos import load_low_power_mode

    with pytest.raises(Unavailable, match="macOS"):
        load_low_power_mode()
