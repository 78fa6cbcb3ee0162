"""Clock, heat, throttling and swap from made-up trees, and this machine's own swap counter."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import pytest

from benchfleet.samples import BY_NAME
from benchfleet_agent.probes import Targets, Unavailable
from benchfleet_agent.probes.cpu import METRICS, CpuProbe, parse_cpu_mhz, parse_swapped_in_pages

CPUINFO = """\
processor	: 0
cpu MHz		: 2000.000
flags		: fpu vme aperfmperf avx2
processor	: 1
cpu MHz		: 3000.500
flags		: fpu vme aperfmperf avx2
"""


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def values_of(probe: CpuProbe) -> dict[str, float | int | None]:
    (reading,) = probe.read(Targets())
    return dict(zip(probe.metrics(), reading.values, strict=True))


@pytest.fixture
def probe(tmp_path: Path) -> CpuProbe:
    write(tmp_path, {"proc/vmstat": "nr_free_pages 1\npswpin 25\npswpout 9", "proc/cpuinfo": CPUINFO})
    return CpuProbe(tmp_path)


def test_the_clock_is_the_mean_over_processors_not_over_policies(probe: CpuProbe, tmp_path: Path) -> None:
    cpufreq = "sys/devices/system/cpu/cpufreq/"
    write(
        tmp_path,
        {
            cpufreq + "policy0/scaling_cur_freq": "1000000",
            cpufreq + "policy0/affected_cpus": "0 1 2",
            cpufreq + "policy3/scaling_cur_freq": "3000000",
            cpufreq + "policy3/affected_cpus": "3",
        },
    )
    probe.discover()
    assert values_of(probe)["host_cpu_clock_hz"] == 1.5e9


def test_without_cpufreq_the_clock_comes_from_cpuinfo(probe: CpuProbe) -> None:
    probe.discover()
    assert values_of(probe)["host_cpu_clock_hz"] == pytest.approx(2500.25e6)


def test_a_nominal_clock_is_not_taken_for_the_clock() -> None:
    assert parse_cpu_mhz(CPUINFO.replace("aperfmperf", "tsc_known_freq")) is None


def test_an_absurd_clock_is_left_out(probe: CpuProbe, tmp_path: Path) -> None:
    cpufreq = "sys/devices/system/cpu/cpufreq/"
    write(
        tmp_path,
        {cpufreq + "policy0/scaling_cur_freq": "<unknown>", cpufreq + "policy1/scaling_cur_freq": "999999999999"},
    )
    probe.discover()
    assert values_of(probe)["host_cpu_clock_hz"] is None
    assert "host_cpu_clock_hz" in probe.gaps()


def test_of_intel_the_package_is_read_and_of_several_the_hottest(probe: CpuProbe, tmp_path: Path) -> None:
    hwmon = "sys/class/hwmon/"
    write(
        tmp_path,
        {
            hwmon + "hwmon0/name": "nvme",
            hwmon + "hwmon0/temp1_input": "90000",
            hwmon + "hwmon1/name": "coretemp",
            hwmon + "hwmon1/temp1_label": "Package id 0",
            hwmon + "hwmon1/temp1_input": "61000",
            hwmon + "hwmon1/temp2_label": "Core 0",
            hwmon + "hwmon1/temp2_input": "88000",
            hwmon + "hwmon2/name": "coretemp",
            hwmon + "hwmon2/temp1_label": "Package id 1",
            hwmon + "hwmon2/temp1_input": "63500",
        },
    )
    probe.discover()
    assert values_of(probe)["host_cpu_temperature_c"] == 63.5


def test_of_amd_the_offset_sensor_is_left_out_where_the_true_one_is(probe: CpuProbe, tmp_path: Path) -> None:
    chip = "sys/class/hwmon/hwmon0/"
    write(
        tmp_path,
        {
            chip + "name": "k10temp",
            chip + "temp1_label": "Tctl",
            chip + "temp1_input": "82000",
            chip + "temp2_label": "Tdie",
            chip + "temp2_input": "55000",
        },
    )
    probe.discover()
    assert values_of(probe)["host_cpu_temperature_c"] == 55
    (tmp_path / chip / "temp2_label").write_text("Tccd1\n")
    probe.discover()
    assert values_of(probe)["host_cpu_temperature_c"] == 82


def test_a_thermal_zone_stands_in_and_garbage_is_none(probe: CpuProbe, tmp_path: Path) -> None:
    zones = "sys/class/thermal/"
    write(
        tmp_path,
        {
            zones + "thermal_zone0/type": "acpitz",
            zones + "thermal_zone0/temp": "99000",
            zones + "thermal_zone1/type": "x86_pkg_temp",
            zones + "thermal_zone1/temp": "47000",
        },
    )
    probe.discover()
    assert values_of(probe)["host_cpu_temperature_c"] == 47
    (tmp_path / zones / "thermal_zone1/temp").write_text("-274000\n")
    assert values_of(probe)["host_cpu_temperature_c"] is None
    assert "coretemp" in probe.gaps()["host_cpu_temperature_c"]


def test_throttling_counts_each_core_and_each_package_once(probe: CpuProbe, tmp_path: Path) -> None:
    for cpu, (package, core, of_core, of_package) in enumerate(
        [("0", "0", "5", "7"), ("0", "0", "5", "7"), ("0", "1", "2", "7"), ("1", "0", "1", "3")]
    ):
        base = f"sys/devices/system/cpu/cpu{cpu}/"
        write(
            tmp_path,
            {
                base + "topology/physical_package_id": package,
                base + "topology/core_id": core,
                base + "thermal_throttle/core_throttle_count": of_core,
                base + "thermal_throttle/package_throttle_count": of_package,
            },
        )
    probe.discover()
    assert values_of(probe)["host_cpu_throttle_count"] == 5 + 2 + 1 + 7 + 3
    (tmp_path / "sys/devices/system/cpu/cpu2/thermal_throttle/core_throttle_count").unlink()
    assert values_of(probe)["host_cpu_throttle_count"] is None


def test_swap_is_counted_in_bytes(probe: CpuProbe) -> None:
    probe.discover()
    values = values_of(probe)
    assert values["host_swap_in_bytes"] == 25 * mmap.PAGESIZE
    assert set(probe.gaps()) == {"host_cpu_temperature_c", "host_cpu_throttle_count"}
    assert probe.devices() == ()


def test_swapped_out_pages_are_not_taken_for_those_read_back() -> None:
    assert parse_swapped_in_pages("pswpout 9\nxpswpin 3\n") is None


def test_another_operating_system_is_a_reason(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="Linux"):
        CpuProbe(tmp_path / "nowhere").discover()


@pytest.mark.skipif(sys.platform != "linux", reason="reads this machine's /proc")
def test_this_machine() -> None:
    probe = CpuProbe()
    probe.discover()
    for name, value in values_of(probe).items():
        assert (value is None) == (name in probe.gaps())
        assert value is None or value >= 0
    probe.close()


def test_the_metrics_are_in_the_registry() -> None:
    assert set(METRICS) <= set(BY_NAME)
