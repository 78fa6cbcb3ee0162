"""Energy counters from made-up trees: which of them count, wrap-around, and who may read them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchfleet.samples import BY_NAME
from benchfleet_agent.probes import Targets, Unavailable
from benchfleet_agent.probes.rapl import METRICS, Counter, RaplProbe
from benchfleet_agent.probes.sysfs import read_text

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no colons in Windows' file names")

POWERCAP = "sys/class/powercap"


def zone(root: Path, directory: str, name: str, energy_uj: int, highest: int | None = 1_000_000) -> Path:
    path = root / POWERCAP / directory
    path.mkdir(parents=True, exist_ok=True)
    (path / "name").write_text(name + "\n")
    (path / "energy_uj").write_text(f"{energy_uj}\n")
    if highest is not None:
        (path / "max_energy_range_uj").write_text(f"{highest}\n")
    return path


def energies(probe: RaplProbe) -> tuple[object, ...]:
    (reading,) = probe.read(Targets())
    return reading.values


def test_packages_are_summed_and_their_parts_and_mirrors_are_not(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 100)
    zone(tmp_path, "intel-rapl:0:0", "core", 60)
    zone(tmp_path, "intel-rapl:0:1", "uncore", 10)
    zone(tmp_path, "intel-rapl:1", "package-1", 20)
    zone(tmp_path, "intel-rapl:2", "psys", 5_000)
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", 900)
    zone(tmp_path, "intel-rapl:3", "package-0", 101)
    zone(tmp_path, "dtpm", "dtpm", 9)
    probe = RaplProbe(tmp_path)
    probe.discover()
    assert energies(probe) == (120, None)
    assert "dram_energy_uj" in probe.gaps()


def test_memory_is_counted_apart(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 100)
    zone(tmp_path, "intel-rapl:0:1", "dram", 8)
    zone(tmp_path, "intel-rapl:1", "package-1", 100)
    zone(tmp_path, "intel-rapl:1:1", "dram", 5)
    zone(tmp_path, "intel-rapl:3", "package-0", 100)
    zone(tmp_path, "intel-rapl:3:1", "dram", 600)
    zone(tmp_path, "intel-rapl-mmio:0:0", "dram", 77)
    probe = RaplProbe(tmp_path)
    probe.discover()
    assert energies(probe) == (200, 13)
    assert probe.gaps() == {}


def test_a_counter_that_wraps_goes_on_growing(tmp_path: Path) -> None:
    path = zone(tmp_path, "intel-rapl:0", "package-0", 999_000)
    other = zone(tmp_path, "intel-rapl:1", "package-1", 10)
    probe = RaplProbe(tmp_path)
    probe.discover()
    assert energies(probe)[0] == 999_010
    (path / "energy_uj").write_text("500\n")
    (other / "energy_uj").write_text("20\n")
    assert energies(probe)[0] == 999_010 + 1_500 + 10
    probe.close()
    probe.discover()
    assert energies(probe)[0] == 999_010 + 1_500 + 10


def test_a_counter_without_a_range_counts_from_its_reset() -> None:
    counter = Counter(None)
    assert [counter.add(value) for value in (50, 70, 5, 6)] == [50, 70, 75, 76]


def test_a_die_that_mirrors_its_package_counts_once_and_one_of_its_own_counts(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0-die-0", 5_000)
    zone(tmp_path, "intel-rapl:1", "package-0-die-1", 5_000)
    zone(tmp_path, "intel-rapl:2", "package-1-die-0", 5_000)
    zone(tmp_path, "intel-rapl:3", "package-1-die-1", 700)
    probe = RaplProbe(tmp_path)
    probe.discover()
    assert energies(probe)[0] == 5_000 + 5_000 + 700


def test_no_permission_says_how_to_get_it(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 100)

    def refuse(path: Path) -> str:
        if path.name == "energy_uj":
            raise PermissionError(path)
        return read_text(path)

    with pytest.raises(Unavailable) as caught:
        RaplProbe(tmp_path, read=refuse).discover()
    for words in ("CVE-2020-8694", "/etc/udev/rules.d/", 'SUBSYSTEM=="powercap"', "chgrp", "g+r"):
        assert words in str(caught.value)


def test_garbage_is_no_energy(tmp_path: Path) -> None:
    path = zone(tmp_path, "intel-rapl:0", "package-0", 100)
    probe = RaplProbe(tmp_path)
    probe.discover()
    (path / "energy_uj").write_text("-3\n")
    assert energies(probe)[0] is None
    (path / "energy_uj").write_text("150\n")
    assert energies(probe)[0] == 150


def test_a_machine_without_counters_is_a_reason(tmp_path: Path) -> None:
    (tmp_path / POWERCAP).mkdir(parents=True)
    with pytest.raises(Unavailable, match="virtual machine"):
        RaplProbe(tmp_path).discover()
    with pytest.raises(Unavailable, match="Linux"):
        RaplProbe(tmp_path / "nowhere").discover()


def test_the_metrics_are_in_the_registry() -> None:
    assert set(METRICS) <= set(BY_NAME)
