"""When probes are read, under which label, and what is handed on. Nothing here sleeps."""

from __future__ import annotations

import itertools
import threading

import pytest

from benchfleet.samples import BY_NAME
from benchfleet_agent.probes import Targets, describe
from benchfleet_agent.sampler import Label, SampleBatch, Sampler, backoff_ns, next_due, slowdown
from fakes.probes import Bench, FakeClock, FakeProbe

MS = 1_000_000
S = 1_000 * MS
BASELINE = Label("case-1", "", "baseline")
ROUND = Label("case-1", "round-1", "round")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def test_a_batch_survives_the_wire() -> None:
    batch = SampleBatch(
        ROUND,
        "nvidia",
        "GPU-1",
        [10, 20, 30],
        [5, 0, 7],
        {"device_energy_mj": [None, 2**40, 0], "device_power_w": [1.5, None, None]},
    )
    message = batch.to_proto()
    assert list(message.columns[0].integers) == [0, 2**40, 0]
    assert not message.columns[0].doubles
    assert list(message.columns[1].absent) == [1, 2]
    assert SampleBatch.from_proto(type(message).FromString(message.SerializeToString())) == batch


def test_a_phase_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="baseline"):
        Label("", "", "cooking")


@pytest.mark.parametrize(
    ("due", "now", "expected"),
    [
        (0, 0, (100, 0)),
        (0, 100, (100, 0)),
        (0, 101, (200, 1)),
        (0, 200, (200, 1)),
        (0, 250, (300, 2)),
    ],
)
def test_the_grid_never_drifts_and_late_ticks_are_counted(due: int, now: int, expected: tuple[int, int]) -> None:
    assert next_due(due, now, 100) == expected


def test_rates_are_halved_until_the_cost_fits() -> None:
    assert [slowdown(cost, 1_000) for cost in (10, 1_000, 1_001, 3_000, 10**9)] == [1, 1, 2, 4, 64]


def test_backoff_doubles_up_to_half_a_minute() -> None:
    assert [backoff_ns(count) for count in (1, 2, 3, 8, 9, 99)] == [
        200 * MS,
        400 * MS,
        800 * MS,
        25_600 * MS,
        30 * S,
        30 * S,
    ]


def test_readings_keep_their_grid_and_come_in_batches_of_a_second(clock: FakeClock) -> None:
    probe = FakeProbe(clock)
    bench = Bench(probe, clock=clock)
    bench.sampler.set_label(BASELINE)
    bench.run(10 * S)
    periodic = probe.read_ns[1:]
    assert {later - earlier for earlier, later in itertools.pairwise(periodic)} == {100 * MS}
    assert len(bench.batches) == 9
    assert all(batch.sample_ns == sorted(set(batch.sample_ns)) for batch in bench.batches)
    assert all(set(batch.columns) == {"device_energy_mj"} for batch in bench.batches), "power never had a value"
    bench.sampler.flush()
    assert sum(len(batch.sample_ns) for batch in bench.batches) == len(probe.read_ns)
    assert bench.sampler.dropped == 0


def test_late_ticks_are_dropped_and_never_made_up_for(clock: FakeClock) -> None:
    probe = FakeProbe(clock)
    bench = Bench(probe, clock=clock)
    bench.sampler.set_label(BASELINE)
    bench.run(1 * S)
    before = len(probe.read_ns)
    clock.now += 5 * S  # the machine was busy elsewhere
    bench.run(1 * S)
    assert len(probe.read_ns) - before <= 12
    assert 49 <= bench.sampler.dropped <= 51


def test_an_edge_reading_ends_the_old_phase_and_begins_the_new_one(clock: FakeClock) -> None:
    probe = FakeProbe(clock)
    bench = Bench(probe, clock=clock)
    bench.sampler.set_label(BASELINE)
    bench.run(350 * MS)
    count = len(probe.read_ns)
    bench.sampler.set_label(ROUND)
    assert len(probe.read_ns) == count + 1, "one reading serves both"
    assert [batch.label for batch in bench.batches] == [BASELINE], "the old phase is handed on before it returns"
    bench.sampler.flush()
    old, new = bench.batches
    assert new.label == ROUND
    assert old.columns["device_energy_mj"][-1] == new.columns["device_energy_mj"][0]
    assert old.sample_ns[-1] == new.sample_ns[0]
    assert (old.cost_us[-1], new.cost_us[0]) == (200, 0), "paid for once"


def test_every_device_has_its_own_batch(clock: FakeClock) -> None:
    bench = Bench(FakeProbe(clock, device_ids=("a", "b")), clock=clock)
    bench.sampler.set_label(BASELINE)
    bench.sampler.flush()
    assert [batch.device_id for batch in bench.batches] == ["a", "b"]


def test_a_failing_probe_backs_off_is_discovered_anew_and_leaves_the_others_alone(clock: FakeClock) -> None:
    good, bad = (
        FakeProbe(clock, probe_id="good"),
        FakeProbe(clock, probe_id="bad", metrics=("load_cpu_ns", "load_rss_bytes")),
    )
    bench = Bench(good, bad, clock=clock)
    bad.broken = True
    bench.sampler.set_label(BASELINE)
    bench.run(60 * S)
    assert len(good.read_ns) == 601 - bench.sampler.dropped
    assert len(bad.read_ns) < 15
    assert bad.discovered > 5
    gaps = [later - earlier for earlier, later in itertools.pairwise(bad.read_ns)]
    assert max(gaps) <= 31 * S
    assert "the driver fell over" in bench.sampler.unmeasured()["load_cpu_ns"]
    bad.broken = False
    bench.run(31 * S)
    assert "load_cpu_ns" not in bench.sampler.unmeasured()


def test_a_missing_driver_is_a_reason_and_is_asked_for_again(clock: FakeClock) -> None:
    probe = FakeProbe(clock)
    probe.unavailable = "no driver; install one"
    bench = Bench(probe, clock=clock)
    bench.sampler.set_label(BASELINE)
    bench.run(20 * S)
    assert not probe.read_ns
    assert probe.discovered == 1
    assert bench.sampler.unmeasured()["device_energy_mj"] == "no driver; install one"
    probe.unavailable = None
    bench.run(20 * S)
    assert probe.read_ns
    assert "device_energy_mj" not in bench.sampler.unmeasured()


def test_unmeasured_speaks_of_the_latest_case_and_of_every_metric(clock: FakeClock) -> None:
    bench = Bench(FakeProbe(clock), clock=clock)
    bench.sampler.set_label(BASELINE)
    unmeasured = bench.sampler.unmeasured()
    assert set(unmeasured) == set(BY_NAME) - {"device_energy_mj"}
    assert unmeasured["device_power_w"] == "the probe fake gave no value"
    assert unmeasured["host_cpu_busy_ns"] == "no probe of this agent measures it"


def test_a_probe_over_its_budget_is_read_less_often(clock: FakeClock) -> None:
    probe = FakeProbe(clock, took_us=3_500)
    bench = Bench(probe, clock=clock)
    bench.sampler.set_label(BASELINE)
    bench.run(8 * S)
    assert probe.read_ns[-1] - probe.read_ns[-2] == 400 * MS, "3.5 ms within a budget of 1 ms a period"
    assert len(probe.read_ns) < 35
    assert bench.sampler.dropped == 0, "a lowered rate is no lateness"


def test_a_slow_probe_keeps_its_own_period(clock: FakeClock) -> None:
    fast, slow = FakeProbe(clock), FakeProbe(clock, probe_id="slow", period_ms=1_000)
    bench = Bench(fast, slow, clock=clock, fast_period_ms=50)
    bench.sampler.set_label(BASELINE)
    bench.run(10 * S)
    assert 199 <= len(fast.read_ns) <= 202
    assert 10 <= len(slow.read_ns) <= 11


def test_nothing_is_read_before_the_first_label_and_stop_hands_on_the_rest(clock: FakeClock) -> None:
    probe = FakeProbe(clock)
    bench = Bench(probe, clock=clock)
    bench.run(1 * S)
    assert not probe.read_ns
    bench.sampler.set_targets(Targets((7,), 8))
    bench.sampler.set_label(BASELINE)
    bench.sampler.stop()
    assert probe.targets == [Targets((7,), 8)]
    assert [batch.label for batch in bench.batches] == [BASELINE]
    assert probe.closed


def test_a_batch_that_cannot_be_handed_on_is_counted(clock: FakeClock) -> None:
    def refuse(batch: SampleBatch) -> None:
        raise OSError("disk full")

    sampler = Sampler([FakeProbe(clock)], refuse, clock=clock, wait=lambda stopping, _: stopping.wait())
    sampler.start()
    sampler.set_label(BASELINE)
    sampler.stop()
    assert sampler.dropped >= 1


def test_a_hung_reading_does_not_hang_the_edge_and_is_given_to_no_phase(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchfleet_agent.sampler._EDGE_PATIENCE_S", 0)
    probe = FakeProbe(clock)
    bench = Bench(probe, clock=clock)
    bench.sampler.set_label(BASELINE)
    clock.now += 100 * MS
    probe.during = lambda: bench.sampler.set_label(ROUND)  # the edge comes while the driver is busy
    bench.sampler.tick()
    probe.during = lambda: None
    assert bench.sampler.dropped == 1
    bench.run(300 * MS)
    bench.sampler.flush()
    old, new = bench.batches
    assert (old.label, old.columns["device_energy_mj"]) == (BASELINE, [1]), "the reading across the edge is neither's"
    assert (new.label, new.columns["device_energy_mj"][0]) == (ROUND, 3)


def test_the_thread_samples_and_stops(clock: FakeClock) -> None:
    probe = FakeProbe(clock)
    enough = threading.Event()

    def advance(stopping: threading.Event, seconds: float) -> bool:
        clock.now += round(seconds * S)
        if len(probe.read_ns) > 50:
            enough.set()
            return stopping.wait()
        return stopping.is_set()

    batches: list[SampleBatch] = []
    sampler = Sampler([probe], batches.append, clock=clock, wait=advance)
    sampler.start()
    sampler.set_label(BASELINE)
    assert enough.wait(10)
    sampler.stop()
    assert sum(len(batch.sample_ns) for batch in batches) == len(probe.read_ns) > 50
    assert not any(thread.name == "sampler" for thread in threading.enumerate())


def test_describe_times_probes_and_survives_missing_ones(clock: FakeClock) -> None:
    good, missing, broken = (FakeProbe(clock, probe_id=name) for name in ("good", "missing", "broken"))
    missing.unavailable, broken.broken = "no driver", True
    described = describe([good, missing, broken], clock=clock)
    assert [(d.probe_id, d.available, d.reason, d.cost_us) for d in described] == [
        ("good", True, None, 200.0),
        ("missing", False, "no driver", None),
        ("broken", False, "RuntimeError: the driver fell over", None),
    ]
    assert described[0].devices[0].device_id == "gpu-0"
    assert good.closed == missing.closed == broken.closed == 1
    message = described[1].to_proto()
    assert not message.HasField("cost_us")
    assert message.unavailable_reason == "no driver"
