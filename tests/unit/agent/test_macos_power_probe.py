"""A Mac's battery, heat and power from made-up answers: signs, units, self-tests, and a helper that breaks."""

from __future__ import annotations

import plistlib
import struct
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from benchfleet_agent.probes import DeviceInfo, Reading, Targets, Unavailable
from benchfleet_agent.probes.isolated import HelperFailed
from benchfleet_agent.probes.macos_iokit import RecordedRegistry
from benchfleet_agent.probes.macos_power import METRICS, Battery, MacPowerProbe, parse_battery, thermal_state
from benchfleet_agent.probes.macos_soc import (
    SMC,
    Channel,
    EnergyTest,
    MacSocProbe,
    PowerTest,
    SmcKey,
    gpu_energy_mj,
    parse_smc_float,
    parse_smc_key,
    smc_request,
)

GPU = "AGXAcceleratorG17X"
FLT = 0x666C7420
DRAINING = {
    "BatteryInstalled": True,
    "ExternalConnected": False,
    "CurrentCapacity": 83,
    "MaxCapacity": 100,
    "InstantAmperage": 2**64 - 1_100,
    "Amperage": 2**64 - 1_050,
    "Voltage": 12_400,
}
CHARGING = {**DRAINING, "ExternalConnected": True, "InstantAmperage": 2_400, "Amperage": 2_380}


def registry(battery: dict[str, Any] | None) -> RecordedRegistry:
    accelerator = {"IOObjectClass": GPU, "IORegistryEntryID": 5, "PerformanceStatistics": {}, "model": "Apple M5 Pro"}
    return RecordedRegistry(
        {
            "AppleSmartBattery": b"" if battery is None else plistlib.dumps([battery]),
            "IOAccelerator": plistlib.dumps([accelerator]),
        }
    )


@pytest.mark.parametrize(
    ("properties", "expected"),
    [
        (DRAINING, Battery(True, 0.83, 13.64)),
        ({**DRAINING, "InstantAmperage": 0}, Battery(True, 0.83, 13.02)),
        ({**DRAINING, "InstantAmperage": -1_100}, Battery(True, 0.83, 13.64)),
        (CHARGING, Battery(False, 0.83, None)),
        ({"ExternalConnected": True, "CurrentCapacity": 5_103, "MaxCapacity": 5_000}, Battery(False, 1.0, None)),
        ({"Voltage": 12_400, "Amperage": -500_000, "MaxCapacity": 0}, Battery(None, None, None)),
        ({"BatteryInstalled": False, "ExternalConnected": True}, None),
        ({}, None),
    ],
)
def test_the_battery_is_read(properties: dict[str, Any], expected: Battery | None) -> None:
    assert parse_battery(properties) == expected


class FakeObjectiveC:
    def __init__(self, state: int, information: int = 1) -> None:
        self.state, self.information = state, information

    def objc_getClass(self, name: bytes) -> bytes:  # noqa: N802
        assert name == b"NSProcessInfo"
        return name

    def sel_registerName(self, name: bytes) -> bytes:  # noqa: N802
        return name

    def message(self, receiver: bytes, selector: bytes) -> int:
        assert selector == b"processInfo"
        return self.information

    def number_message(self, receiver: int, selector: bytes) -> int:
        assert (receiver, selector) == (1, b"thermalState")
        return self.state


@pytest.mark.parametrize(("state", "expected"), [(0, 0), (3, 3), (4, None), (-1, None)])
def test_the_thermal_state_has_four_levels(state: int, expected: int | None) -> None:
    assert thermal_state(FakeObjectiveC(state)) == expected


def test_no_process_information_is_no_thermal_state() -> None:
    assert thermal_state(FakeObjectiveC(0, information=0)) is None


class FakeSoc:
    """The helper's probe: what it answers, or what it raises."""

    probe_id, period_ms, budget_us = "macos_soc", 1_000, 5_000

    def __init__(self, answers: Sequence[Reading] = (), broken: Exception | None = None) -> None:
        self.answers, self.broken, self.closed = answers, broken, 0
        self.reasons: dict[str, str] = {}

    def discover(self) -> None:
        if isinstance(self.broken, Unavailable):
            raise self.broken

    def metrics(self) -> tuple[str, ...]:
        return ("system_power_w", "device_energy_mj")

    def devices(self) -> tuple[DeviceInfo, ...]:
        return ()

    def gaps(self) -> dict[str, str]:
        return self.reasons

    def read(self, targets: Targets) -> Sequence[Reading]:
        if self.broken is not None:
            raise self.broken
        return self.answers

    def close(self) -> None:
        self.closed += 1


def read(probe: MacPowerProbe) -> dict[str, dict[str, object]]:
    return {r.device_id: dict(zip(METRICS, r.values, strict=True)) for r in probe.read(Targets())}


def power_probe(soc: FakeSoc, battery: dict[str, Any] | None = DRAINING, thermal: int | None = 1) -> MacPowerProbe:
    probe = MacPowerProbe(registry(battery), lambda: thermal, soc)
    probe.discover()
    return probe


def test_everything_at_once_on_a_battery() -> None:
    probe = power_probe(FakeSoc([Reading("", (18.5, None)), Reading(GPU, (None, 1_234))]))
    found = read(probe)
    assert found[""] == {
        "on_battery": 1,
        "battery_ratio": 0.83,
        "battery_discharge_w": pytest.approx(13.64),
        "host_thermal_pressure": 1,
        "system_power_w": 18.5,
        "device_energy_mj": None,
    }
    assert [value for value in found[GPU].values() if value is not None] == [1_234]
    assert not probe.gaps()


def test_a_desktop_mac_has_reasons_for_its_battery_and_heat() -> None:
    probe = power_probe(FakeSoc([Reading("", (18.5, None))]), battery=None, thermal=None)
    assert read(probe)[""]["system_power_w"] == 18.5
    gaps = probe.gaps()
    assert {name for name, reason in gaps.items() if "no battery" in reason} == set(METRICS[:3])
    assert "thermal state" in gaps["host_thermal_pressure"]


def test_on_mains_nothing_is_drawn() -> None:
    probe = power_probe(FakeSoc(), battery=CHARGING)
    assert read(probe)[""]["battery_discharge_w"] is None
    assert "pull the mains plug" in probe.gaps()["battery_discharge_w"]


@pytest.mark.parametrize("broken", [Unavailable("no PSTR here"), HelperFailed("the helper was killed by SIGSEGV")])
def test_a_helper_that_breaks_costs_power_and_energy_alone(broken: Exception) -> None:
    probe = power_probe(FakeSoc(broken=broken))
    assert read(probe)[""]["battery_ratio"] == 0.83
    assert probe.gaps()["system_power_w"] == probe.gaps()["device_energy_mj"]
    assert str(broken) in probe.gaps()["system_power_w"]


def test_a_helper_that_comes_back_is_read_again() -> None:
    soc = FakeSoc([Reading("", (18.5, None))], broken=HelperFailed("it was lost"))
    probe = power_probe(soc)
    read(probe)
    soc.broken = None
    assert read(probe)[""]["system_power_w"] == 18.5


def test_the_helpers_reasons_are_handed_on_and_it_is_closed() -> None:
    soc = FakeSoc([Reading("", (None, None))])
    soc.reasons["system_power_w"] = "stands still"
    probe = power_probe(soc)
    read(probe)
    assert probe.gaps() == {"system_power_w": "stands still"}
    before = soc.closed
    probe.close()
    assert soc.closed == before + 1
    with pytest.raises(Unavailable, match="not discovered"):
        probe.read(Targets())


def answer(result: int = 0, size: int = 0, kind: int = 0, data: bytes = b"") -> bytes:
    return SMC.pack(0, size, kind, 0, result, 0, 0, 0, data)


def test_the_controllers_structure_has_80_bytes_with_its_fields_in_place() -> None:
    assert SMC.size == 80
    request = smc_request(0x50535452, SmcKey(4, FLT))
    assert request[0:4] == b"RTSP"  # PSTR, little-endian
    assert struct.unpack_from("<II", request, 28) == (4, FLT)
    assert (request[42], smc_request(0x50535452)[42]) == (5, 9)
    filled = bytearray(80)
    filled[28:36] = struct.pack("<II", 4, FLT)
    filled[48:52] = struct.pack("<f", 18.5)
    assert parse_smc_key(bytes(filled)) == SmcKey(4, FLT)
    assert parse_smc_float(bytes(filled), SmcKey(4, FLT)) == 18.5
    filled[40] = 0x84  # result: no such key
    assert parse_smc_key(bytes(filled)) is None
    assert parse_smc_float(bytes(filled), SmcKey(4, FLT)) is None


def test_a_value_of_another_type_is_not_taken_for_a_float() -> None:
    assert parse_smc_float(answer(data=b"\x12\x80\0\0"), SmcKey(2, 0x73703738)) is None  # sp78


def test_only_the_gpus_energy_is_taken_in_its_unit() -> None:
    channels = [
        Channel("GPU Energy", "mJ", 5_000),
        Channel("DIE0 GPU Energy", "mJ", 9),
        Channel("GPU SRAM", "mJ", 70),
        Channel("CPU Energy", "mJ", 0),
    ]
    assert gpu_energy_mj(channels) == 5_000
    assert gpu_energy_mj([Channel("DIE_0_GPU Energy", "uJ", 2_500), Channel("DIE_1_GPU Energy", "nJ", 1_000_000)]) == 3
    assert gpu_energy_mj([Channel("GPU Energy", "furlongs", 1)]) is None
    assert gpu_energy_mj([]) is None


def after(test: EnergyTest, *readings: tuple[float, int]) -> list[int | None]:
    return [test.add(value, int(second * 1e9)) for second, value in readings]


def test_energy_is_believed_when_it_moves_and_never_falls() -> None:
    test = EnergyTest()
    assert after(test, (0, 500), (1, 500), (2, 900), (3, 100), (4, 150)) == [None, None, 400, 400, 450]
    assert test.reason is None


def test_energy_that_stands_still_is_not_believed() -> None:
    test = EnergyTest()
    assert after(test, (0, 0), (5, 0), (11, 0)) == [None, None, None]
    assert "stands still" in (test.reason or "")
    assert after(test, (12, 300)) == [300]


def test_batches_of_energy_are_no_peaks_but_a_kilowatt_is() -> None:
    test = EnergyTest()
    assert after(test, (0, 0), (0.01, 110_000)) == [None, 110_000]  # 2.2 s at 50 W at once
    assert after(test, (10, 50_000_000)) == [None]
    assert "cannot be" in (test.reason or "")


def test_power_out_of_range_or_without_any_movement_is_not_believed() -> None:
    test = PowerTest()
    assert test.add(18.5) == 18.5
    assert [test.add(value) for value in (0.0, 4e4, float("nan"))] == [None] * 3
    assert "cannot be" in (test.reason or "")
    found = [test.add(7.25) for _ in range(31)]
    assert (found[29], found[30]) == (7.25, None)
    assert "stands still" in (test.reason or "")
    assert test.add(7.3) == 7.3


class FakeSocApi:
    def __init__(self, watts: float | None, channels: list[Channel] | None) -> None:
        self.watts, self.channels, self.closed = watts, channels, False

    def smc(self, request: bytes) -> bytes | None:
        if self.watts is None:
            return None
        return answer(size=4, kind=FLT) if request[42] == 9 else answer(data=struct.pack("<f", self.watts))

    def energy(self) -> Sequence[Channel] | None:
        return self.channels

    def close(self) -> None:
        self.closed = True


def test_the_helper_reads_power_of_the_machine_and_energy_of_its_gpu() -> None:
    api = FakeSocApi(18.5, [Channel("GPU Energy", "mJ", 5_000)])
    now_s = [0.0]
    probe = MacSocProbe(api, registry(None), clock=lambda: int(now_s[0] * 1e9))
    probe.discover()
    assert [device.device_id for device in probe.devices()] == [GPU]
    assert probe.read(Targets()) == [Reading("", (18.5, None)), Reading(GPU, (None, None))]
    assert "not moved yet" in probe.gaps()["device_energy_mj"]
    now_s[0], api.channels = 2.2, [Channel("GPU Energy", "mJ", 5_400)]
    assert probe.read(Targets()) == [Reading("", (18.5, None)), Reading(GPU, (None, 400))]
    assert not probe.gaps()
    probe.close()
    assert api.closed
    with pytest.raises(Unavailable, match="not discovered"):
        probe.read(Targets())


def test_the_helper_does_with_one_source_and_not_without() -> None:
    probe = MacSocProbe(FakeSocApi(18.5, None), registry(None))
    probe.discover()
    assert probe.read(Targets())[0].values == (18.5, None)
    assert "no channel" in probe.gaps()["device_energy_mj"]
    with pytest.raises(Unavailable, match=r"PSTR.*IOReport"):
        MacSocProbe(FakeSocApi(None, None), registry(None)).discover()


@pytest.mark.skipif(sys.platform == "darwin", reason="there the frameworks are")
def test_elsewhere_the_probes_say_only_on_macos() -> None:
    for probe in (MacPowerProbe(), MacSocProbe()):
        with pytest.raises(Unavailable, match="only on macOS"):
            probe.discover()
    with pytest.raises(Unavailable, match="only on macOS"):
        thermal_state()
