"""Probes that hang, fail or talk nonsense: what it costs, and that the reason is told. Nothing here sleeps."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from benchfleet_agent.probes import Reading, describe
from benchfleet_agent.sampler import Label
from fakes.probes import Bench, FakeClock, FakeProbe, Gate

MS = 1_000_000
S = 1_000 * MS
BASELINE = Label("case-1", "", "baseline")
ROUND = Label("case-1", "round-1", "round")
HOST_METRICS = ("load_cpu_ns", "load_rss_bytes")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@contextmanager
def hung(bench: Bench, probe: FakeProbe) -> Iterator[threading.Thread]:
    """A worker of the sampler that hangs in a reading of ``probe``, noticed by the watch."""
    gate = Gate()
    probe.during = gate
    bench.clock.now += 100 * MS
    worker = threading.Thread(target=bench.sampler.tick, args=(bench.sampler._generation,))
    worker.start()
    assert gate.entered.wait(10)
    bench.clock.now += 2 * S - MS
    bench.sampler.watch()
    assert not any("stalled" in reason for reason in bench.sampler.unmeasured().values()), "two seconds are no hang yet"
    bench.clock.now += MS
    bench.sampler.watch()
    probe.during = lambda: None
    try:
        yield worker
    finally:
        gate.open.set()
        worker.join(10)
    assert not worker.is_alive()


def test_a_hung_reading_costs_its_probe_only_and_only_until_it_returns(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchfleet_agent.sampler._EDGE_PATIENCE_S", 0)
    stuck = FakeProbe(clock, probe_id="stuck", metrics=HOST_METRICS, device_ids=("",))
    good = FakeProbe(clock, probe_id="good")
    bench = Bench(stuck, good, clock=clock)
    bench.sampler.set_label(BASELINE)
    with hung(bench, stuck):
        read = len(good.read_ns)
        bench.run(1 * S)
        assert len(good.read_ns) - read >= 10, "the others keep their schedule"
        bench.sampler.set_label(ROUND)
        reason = bench.sampler.unmeasured()["load_cpu_ns"]
        assert reason == "telemetry stalled: a call of the probe stuck has not returned for 2.0 s"
        hung_count = len(stuck.read_ns)
        clock.now += 1 * S  # all are due
        read = len(good.read_ns)
    assert len(good.read_ns) == read, "the thread that hung does not go on beside the one that took over"
    bench.run(1 * S)
    bench.sampler.flush()
    assert len(stuck.read_ns) > hung_count + 5, "it is read again"
    values = [(b.label, b.columns["load_cpu_ns"]) for b in bench.batches if b.probe_id == "stuck"]
    assert [label for label, _ in values] == [BASELINE, ROUND]
    assert hung_count not in [value for _, column in values for value in column], "no phase gets what lies across"
    assert "load_cpu_ns" in bench.sampler.unmeasured(), "the case has a hole"
    bench.sampler.set_label(Label("case-2", "", "baseline"))
    assert "load_cpu_ns" not in bench.sampler.unmeasured(), "the next case has none"


def test_a_reading_that_came_back_late_is_no_sample(clock: FakeClock) -> None:
    stuck = FakeProbe(clock, probe_id="stuck", metrics=HOST_METRICS, device_ids=("",))
    bench = Bench(stuck, clock=clock)
    bench.sampler.set_label(BASELINE)
    with hung(bench, stuck):
        late = len(stuck.read_ns)
    bench.run(500 * MS)
    bench.sampler.flush()
    values = [value for batch in bench.batches for value in batch.columns["load_cpu_ns"]]
    assert late not in values
    assert late + 1 in values


def test_a_reading_that_hangs_at_an_edge_does_not_hang_the_job(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchfleet_agent.sampler._EDGE_PATIENCE_S", 0)
    monkeypatch.setattr("benchfleet_agent.sampler.STALL_NS", 20 * MS)
    stuck = FakeProbe(clock, probe_id="stuck", metrics=HOST_METRICS, device_ids=("",))
    good = FakeProbe(clock, probe_id="good")
    bench = Bench(stuck, good, clock=clock)
    gate = Gate()
    stuck.during = gate
    bench.sampler.set_label(BASELINE)
    assert len(good.read_ns) == 1
    assert "stalled" in bench.sampler.unmeasured()["load_cpu_ns"]
    bench.sampler.set_label(ROUND)
    stuck.during = lambda: None
    helpers = [thread for thread in threading.enumerate() if thread.name == "sampler-edge"]
    gate.open.set()
    for helper in helpers:
        helper.join(10)
    bench.run(1 * S)
    bench.sampler.flush()
    assert {b.label for b in bench.batches if b.probe_id == "stuck"} == {ROUND}


def test_a_source_that_cannot_be_found_in_time_does_not_hang_the_start(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchfleet_agent.sampler._EDGE_PATIENCE_S", 0)
    monkeypatch.setattr("benchfleet_agent.sampler.DISCOVER_PATIENCE_NS", 20 * MS)
    stuck = FakeProbe(clock, probe_id="stuck", metrics=HOST_METRICS, device_ids=("",))
    gate = Gate()
    stuck.during_discover = gate
    bench = Bench(stuck, FakeProbe(clock, probe_id="good"), clock=clock)
    bench.sampler.set_label(BASELINE)
    assert "stalled" in bench.sampler.unmeasured()["load_cpu_ns"]
    helpers = [thread for thread in threading.enumerate() if thread.name == "sampler-edge"]
    gate.open.set()
    for helper in helpers:
        helper.join(10)
    bench.run(1 * S)
    bench.sampler.flush()
    assert {b.label for b in bench.batches if b.probe_id == "stuck"} == {BASELINE}


def test_what_comes_back_after_the_job_is_closed_and_handed_to_nobody(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchfleet_agent.sampler._EDGE_PATIENCE_S", 0)
    stuck = FakeProbe(clock, probe_id="stuck", metrics=HOST_METRICS, device_ids=("",))
    bench = Bench(stuck, clock=clock)
    bench.sampler.set_label(BASELINE)
    with hung(bench, stuck):
        bench.sampler.stop()
        handed_on, closed = len(bench.batches), stuck.closed
    assert len(bench.batches) == handed_on
    assert stuck.closed == closed + 1


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (math.nan, "nan"),
        (math.inf, "inf"),
        (-5, "cannot be negative"),
        (2**63, str(2**63)),
        ("12", "str is no number"),
    ],
)
def test_an_unusable_value_is_absent_with_a_reason(clock: FakeClock, value: Any, why: str) -> None:
    probe = FakeProbe(clock)
    bench = Bench(probe, clock=clock)
    probe.instead = [Reading("gpu-0", (value, 7.5))]
    bench.sampler.set_label(BASELINE)
    bench.run(1 * S)
    bench.sampler.flush()
    assert bench.batches
    assert all(set(batch.columns) == {"device_power_w"} for batch in bench.batches)
    assert why in bench.sampler.unmeasured()["device_energy_mj"]


def test_frost_is_no_fault(clock: FakeClock) -> None:
    probe = FakeProbe(clock, metrics=("device_temperature_c", "device_power_w"))
    probe.instead = [Reading("gpu-0", (-5.0, 1.0))]
    bench = Bench(probe, clock=clock)
    bench.sampler.set_label(BASELINE)
    assert "device_temperature_c" not in bench.sampler.unmeasured()


@pytest.mark.parametrize(
    ("readings", "why"),
    [
        ([Reading("gpu-0", (1,))], "1 values for its 2 metrics"),
        ([Reading("gpu-0", (1, 2)), Reading("gpu-0", (1, 2))], "two readings of one device"),
        ([42], "AttributeError"),
        (7, "TypeError"),
    ],
)
def test_a_reading_of_the_wrong_shape_costs_one_probe(clock: FakeClock, readings: Any, why: str) -> None:
    bad = FakeProbe(clock, probe_id="bad", metrics=HOST_METRICS)
    good = FakeProbe(clock, probe_id="good")
    bad.instead = readings
    bench = Bench(bad, good, clock=clock)
    bench.sampler.set_label(BASELINE)
    bench.run(1 * S)
    bench.sampler.flush()
    assert {batch.probe_id for batch in bench.batches} == {"good"}
    assert why in bench.sampler.unmeasured()["load_cpu_ns"]


def test_a_metric_nobody_knows_costs_one_probe(clock: FakeClock) -> None:
    odd, good = FakeProbe(clock, probe_id="odd", metrics=("flux", "load_cpu_ns")), FakeProbe(clock, probe_id="good")
    bench = Bench(odd, good, clock=clock)
    bench.sampler.set_label(BASELINE)
    bench.sampler.flush()
    assert {batch.probe_id for batch in bench.batches} == {"good"}
    assert "no metric flux" in bench.sampler.unmeasured()["load_cpu_ns"]


def test_the_reason_of_a_probe_that_reads_beats_that_of_an_absent_driver(clock: FakeClock) -> None:
    absent, reads = FakeProbe(clock, probe_id="absent"), FakeProbe(clock, probe_id="reads")
    absent.unavailable = "no driver of that vendor"
    bench = Bench(reads, absent, clock=clock)
    bench.sampler.set_label(BASELINE)
    assert bench.sampler.unmeasured()["device_power_w"] == "the probe reads gave no value"
    bench = Bench(absent, clock=clock)
    bench.sampler.set_label(BASELINE)
    assert bench.sampler.unmeasured()["device_power_w"] == "no driver of that vendor"


def test_the_latest_values_are_those_of_the_last_three_seconds(clock: FakeClock) -> None:
    host = FakeProbe(clock, probe_id="host", metrics=HOST_METRICS, device_ids=("",))
    card = FakeProbe(clock, probe_id="card", device_ids=("gpu-0", "gpu-1"))
    bench = Bench(host, card, clock=clock)
    assert bench.sampler.latest() == {}
    bench.sampler.set_label(BASELINE)
    assert bench.sampler.latest() == {
        "": {"load_cpu_ns": 1},
        "gpu-0": {"device_energy_mj": 1},
        "gpu-1": {"device_energy_mj": 1},
    }
    card.broken = True
    bench.run(3_200 * MS)
    assert set(bench.sampler.latest()) == {""}
    assert bench.sampler.latest()[""]["load_cpu_ns"] == len(host.read_ns)


def test_describe_does_not_wait_for_a_hung_driver(clock: FakeClock) -> None:
    stuck, good = FakeProbe(clock, probe_id="stuck"), FakeProbe(clock, probe_id="good")
    gate = Gate()
    stuck.during_discover = gate
    described = describe([stuck, good], clock=clock, patience_s=0.05)
    gate.open.set()
    assert [(d.probe_id, d.available) for d in described] == [("stuck", False), ("good", True)]
    assert "telemetry stalled" in (described[0].reason or "")
    assert described[1].reading == {"device_energy_mj@gpu-0": 4.0}
    assert dict(described[1].to_proto().reading) == {"device_energy_mj@gpu-0": 4.0}
    assert described[1].to_proto().verification == "documentation"
