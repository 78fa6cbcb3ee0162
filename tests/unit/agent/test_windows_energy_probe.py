"""Windows' energy meters from recorded names: which count, units, mirrors, resets, and where there are none."""

from __future__ import annotations

import sys

import pytest

from benchfleet_agent.probes import Targets, Unavailable
from benchfleet_agent.probes.windows_energy import ENERGY, WindowsEnergyProbe, microjoules, mirrors, parse_meters
from benchfleet_agent.probes.windows_pdh import Instance
from fakes.pdh import FakePdh, Values

J = 277_777_778  # pWh in a joule
INTEL: Values = {
    "RAPL_Package0_PKG": 2_200_000 * J,
    "RAPL_Package0_PP0": 2_000_000 * J,
    "RAPL_Package0_PP1": 60 * J,
    "RAPL_Package0_DRAM": 0,
    "_Total": 0,
}


def discovered(values: Values) -> tuple[FakePdh, WindowsEnergyProbe]:
    pdh = FakePdh({ENERGY: values})
    probe = WindowsEnergyProbe(pdh)
    probe.discover()
    return pdh, probe


def energies(probe: WindowsEnergyProbe) -> tuple[object, ...]:
    (reading,) = probe.read(Targets())
    return reading.values


def test_picowatt_hours_become_microjoules() -> None:
    assert microjoules(2_500) == 9
    assert microjoules(1_000_000_000_000) == 3_600_000_000  # 1 Wh


def test_only_packages_and_their_memory_that_count_are_taken() -> None:
    instances = [Instance(name, value) for name, value in INTEL.items() if isinstance(value, int)]
    instances += [Instance("rapl_package1_dram", 5), Instance("RAPL_Package0_Core3_CORE", 9), Instance("", 7)]
    assert parse_meters(instances) == {"PKG": {"RAPL_PACKAGE0_PKG": 2_200_000 * J}, "DRAM": {"RAPL_PACKAGE1_DRAM": 5}}


def test_a_laptop_has_package_energy_and_no_memory_meter() -> None:
    pdh, probe = discovered(INTEL)
    (start, dram) = energies(probe)
    assert (dram, "dram_energy_uj" in probe.gaps()) == (None, True)
    pdh.counters[ENERGY] = {**INTEL, "RAPL_Package0_PKG": 2_200_015 * J}
    assert energies(probe)[0] == pytest.approx(start + 15_000_000, abs=10)  # type: ignore[operator]


def test_sockets_are_summed_and_mirrors_are_not() -> None:
    server = {
        "RAPL_Package0_PKG": 1_000 * J,
        "RAPL_Package0_DRAM": 100 * J,
        "RAPL_Package1_PKG": 1_000 * J + J // 20,
        "RAPL_Package1_DRAM": 100 * J,
        "RAPL_Package2_PKG": 1_200 * J,
        "RAPL_Package2_DRAM": 50 * J,
    }
    _, probe = discovered(server)
    package, dram = energies(probe)
    assert package == pytest.approx(2_200_000_000, abs=20)
    assert dram == pytest.approx(150_000_000, abs=20)
    assert not probe.gaps()


def test_packages_are_mirrors_within_a_tenth_of_a_joule() -> None:
    assert mirrors({"A": 10 * J, "B": 10 * J + J // 20, "C": 10 * J + J}) == {"B"}


def test_a_meter_that_begins_anew_goes_on_growing() -> None:
    pdh, probe = discovered({"RAPL_Package0_PKG": 100 * J})
    first = energies(probe)[0]
    pdh.counters[ENERGY] = {"RAPL_Package0_PKG": 2 * J}
    assert energies(probe)[0] == pytest.approx(first + 2_000_000, abs=10)  # type: ignore[operator]
    probe.discover()
    assert energies(probe)[0] == pytest.approx(first + 2_000_000, abs=10)  # type: ignore[operator]


def test_a_package_that_is_missing_for_a_moment_makes_the_sum_unknown() -> None:
    both: Values = {"RAPL_Package0_PKG": 100 * J, "RAPL_Package1_PKG": 300 * J}
    pdh, probe = discovered(both)
    assert energies(probe)[0] == pytest.approx(400_000_000, abs=10)
    pdh.counters[ENERGY] = {"RAPL_Package0_PKG": 101 * J, "RAPL_Package1_PKG": (0xC0000BBA, 0)}
    assert energies(probe) == (None, None)
    pdh.counters[ENERGY] = {"RAPL_Package0_PKG": 102 * J, "RAPL_Package1_PKG": 303 * J}
    assert energies(probe)[0] == pytest.approx(405_000_000, abs=10)


def test_meters_of_other_things_are_named_in_the_reason() -> None:
    pdh = FakePdh({ENERGY: {"Apu Power": 7, "_Total": 0}})
    with pytest.raises(Unavailable, match=r"Windows 11.*virtual machine\. Meters found: Apu Power, _Total"):
        WindowsEnergyProbe(pdh).discover()
    assert pdh.open_queries == 0


def test_without_the_counter_set_the_reason_says_windows_11() -> None:
    pdh = FakePdh({})
    with pytest.raises(Unavailable, match=r"Windows 11.*0xC0000BB8"):
        WindowsEnergyProbe(pdh).discover()
    assert pdh.open_queries == 0


def test_no_data_is_unavailable() -> None:
    with pytest.raises(Unavailable, match="Meters found: none"):
        WindowsEnergyProbe(FakePdh({ENERGY: {}})).discover()


def test_reading_needs_discovery_and_a_failing_call_is_a_reason() -> None:
    pdh, probe = discovered(INTEL)
    pdh.array_status = 0xC0000BC6
    with pytest.raises(Unavailable, match="0xC0000BC6"):
        probe.read(Targets())
    probe.close()
    assert pdh.open_queries == 0
    with pytest.raises(Unavailable, match="not discovered"):
        probe.read(Targets())


@pytest.mark.skipif(sys.platform == "win32", reason="there pdh.dll is")
def test_elsewhere_the_probe_says_only_on_windows() -> None:
    with pytest.raises(Unavailable, match="only on Windows"):
        WindowsEnergyProbe().discover()
