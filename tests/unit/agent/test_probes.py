"""Which probes there are, which of them are chosen, and how they are listed."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import pytest

from benchfleet.quantities import quantity
from benchfleet.samples import BY_NAME
from benchfleet_agent import probes as probes_package
from benchfleet_agent.probes import (
    PROBES,
    BrokenProbe,
    DeviceInfo,
    Probe,
    ProbeDescription,
    Unavailable,
    choose,
    default_probes,
    describe,
    make_probe,
)
from benchfleet_agent.probes.listing import as_json, as_text, carry_out

HERE = Path(probes_package.__file__).parent
DESCRIPTION = ProbeDescription(
    probe_id="nvidia",
    available=True,
    reason=None,
    cost_us=212.4,
    metrics=("device_power_w", "device_clock_hz"),
    period_ms=100,
    devices=(DeviceInfo("GPU-1", "gpu", "Fake", "610.57", 8 * 2**30, "dedicated", 1e12),),
    gaps={"device_energy_mj": "no counter", "device_busy_ratio": "no counter"},
    reading={"device_power_w@GPU-1": 250.5, "device_clock_hz@GPU-1": 2.52e9},
    verification="a fake library",
)


def of_every_platform() -> dict[str, Probe]:
    """Those of whose modules exist; the others stand in as broken ones, which is another test's business."""
    return {spec: make_probe(spec) for _, spec in PROBES if (HERE / f"{spec.partition(':')[0]}.py").exists()}


def test_every_probe_can_be_made_on_every_platform_and_declares_known_metrics() -> None:
    for spec, probe in of_every_platform().items():
        assert not isinstance(probe, BrokenProbe), (spec, describe([probe]))
        assert set(probe.metrics()) <= set(BY_NAME), spec
        assert len(set(probe.metrics())) == len(probe.metrics()), spec
        assert probe.period_ms >= 100, spec
        assert probe.probe_id == spec.partition(":")[0], "settings know it by its module's name on every platform"
    ids = [probe.probe_id for probe in of_every_platform().values()]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(
    ("platform", "has", "has_not"),
    [("linux", "pressure", "macos_gpu"), ("win32", "windows_counters", "rapl"), ("darwin", "macos_gpu", "rapl")],
)
def test_a_platform_gets_its_own_probes_and_the_common_ones(platform: str, has: str, has_not: str) -> None:
    ids = {probe.probe_id for probe in default_probes(platform)}
    assert {"system", "nvidia", has} <= ids
    assert has_not not in ids


@pytest.mark.parametrize("spec", ["no_such_module:Probe", "system:NoSuchProbe", "fakes.broken_module:Probe"])
def test_a_probe_that_cannot_be_loaded_is_unavailable_with_the_reason(spec: str) -> None:
    (description,) = describe([make_probe(spec)])
    assert not description.available
    assert "cannot be loaded" in (description.reason or "")
    assert re.search("no_such_module|NoSuchProbe|broken_module", description.reason or "")
    assert description.probe_id == spec.partition(":")[0].rpartition(".")[2]


def test_a_broken_probe_reads_nothing() -> None:
    probe = BrokenProbe("rapl", "gone")
    with pytest.raises(Unavailable, match="gone"):
        probe.read(probes_package.Targets())
    assert (probe.metrics(), probe.devices()) == ((), ())
    probe.close()


def test_probes_can_be_left_out_and_read_less_often() -> None:
    chosen = choose(default_probes("linux"), frozenset({"nvidia"}), {"system": 500, "pressure": 60_000})
    periods = {probe.probe_id: probe.period_ms for probe in chosen}
    assert "nvidia" not in periods
    assert (periods["system"], periods["pressure"]) == (500, 60_000)
    assert [probe.probe_id for probe in choose(default_probes())] == [probe.probe_id for probe in default_probes()]


def test_machines_of_several_platforms_share_their_settings() -> None:
    mine = default_probes("linux")
    chosen = choose(mine, frozenset({"macos_gpu"}), {"windows_counters": 1_000})
    assert chosen == mine


@pytest.mark.parametrize("where", ["disabled", "periods"])
def test_an_unknown_probe_is_refused_naming_what_comes_near(where: str) -> None:
    disabled, periods = (frozenset({"nvidai"}), {}) if where == "disabled" else (frozenset[str](), {"nvidai": 500})
    with pytest.raises(ValueError, match="no probe 'nvidai'; did you mean nvidia"):
        choose(default_probes("linux"), disabled, periods)


@pytest.mark.parametrize("period_ms", [-1, 0, 99, 60_001])
def test_an_impossible_period_is_refused_naming_the_bounds(period_ms: int) -> None:
    with pytest.raises(ValueError, match="between 100 and 60000 ms"):
        choose(default_probes("linux"), periods_ms={"system": period_ms})


def test_the_json_has_stable_keys_and_null_for_what_is_absent() -> None:
    row = as_json(DESCRIPTION)
    assert list(row) == [
        "id", "available", "reason", "cost_us", "metrics", "period_ms", "reading", "gaps", "devices", "verification"
    ]  # fmt: skip
    assert json.loads(json.dumps(row)) == row
    assert row["devices"][0]["memory_bandwidth_bytes_per_s"] == 1e12
    absent = as_json(ProbeDescription("x", False, "none", None, (), 100))
    assert (absent["cost_us"], absent["reason"], absent["verification"]) == (None, "none", "documentation")


def test_the_text_says_what_it_costs_what_it_read_and_what_is_missing() -> None:
    assert as_text(DESCRIPTION).splitlines() == [
        "nvidia: every 100 ms, 212 µs a reading, tried on a fake library",
        "  gpu GPU-1: Fake, 8.0 GiB dedicated memory",
        "  device_power_w@GPU-1        250.5 W",
        "  device_clock_hz@GPU-1      2.52 GHz",
        "  missing device_energy_mj, device_busy_ratio: no counter",
    ]
    assert "board power" in as_text(DESCRIPTION, explained=True)
    missing = ProbeDescription("nvidia", False, "no driver; install it", None, ("device_power_w",), 100)
    assert as_text(missing) == "nvidia: not available: no driver; install it"
    assert "board power" in as_text(missing, explained=True)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(512, "bytes", "512 B"), (3 * 2**30, "bytes", "3.0 GiB"), (2**60, "bytes", "1048576.0 TiB"),
     (0.375, "ratio", "38 %"), (2e9, "ns", "2.00 s"), (61.0, "c", "61 °C"), (7, "1", "7"),
     (5, "mask", "5 (bits)"), (1500, "mj", "1.50 J")],
)  # fmt: skip
def test_quantities_for_people(value: float, unit: str, text: str) -> None:
    assert quantity(value, unit) == text


def test_the_command_lists_one_probe_or_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert carry_out(argparse.Namespace(name="system", format="json")) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["id"], row["available"]) == ("system", True)
    assert row["reading"]["host_available_bytes"] > 0
    assert carry_out(argparse.Namespace(name=None, format="table")) == 0
    out = capsys.readouterr().out
    assert all(f"{probe.probe_id}: " in out for probe in default_probes())
    assert carry_out(argparse.Namespace(name="sistem", format="table")) == 2
    assert "did you mean system?" in capsys.readouterr().err
