"""Events in, rows and results out: exactly once, and with the numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pytest

from benchfleet.v1 import event_pb2, job_pb2
from benchfleet_controller.store import SequenceGap, Store, StoreError, StoreFull, condensed, queries
from fakes.events import JobEvents, commit_events, failed_request, host, ok_request, spec


def whole_job() -> JobEvents:
    """One case: a warm-up round, two counted ones (three ok requests, one failed), telemetry on CPU and GPU."""
    job = JobEvents()
    job.job_started(spec("c1"))
    job.case_started("c1")
    job.progress("c1")
    job.loaded("c1")
    job.samples("c1", "", "baseline", [0.1], device_id="gpu0", device_memory_used_bytes=[100])
    job.round("c1", "w", 0, 1, 9, [ok_request("w1", 1, [5.0, 6.0], 9)], warmup=True)
    job.round(
        "c1", "r1", 1, 10, 12,
        [ok_request("q1", 10, [0.1, 0.2, 0.3], 10.4), ok_request("q2", 11, [0.2, 0.4, 0.6], 11.8, prompt_tokens=30)],
    )  # fmt: skip
    job.samples(
        "c1", "r1", "round", [10, 11, 12], runtime_rss_bytes=[1000, 3000, None], runtime_cpu_ns=[0, 10**9, 2 * 10**9]
    )
    job.samples(
        "c1", "r1", "round", [10, 11, 13], device_id="gpu0", probe_id="g",
        device_busy_ratio=[0.0, 1.0, 0.25], device_memory_used_bytes=[150, 400, 300],
        device_energy_mj=[1000, 2000, 7000],
    )  # fmt: skip
    job.round("c1", "r2", 2, 20, 21, [ok_request("q3", 20, [0.3, 0.5], 20.6), failed_request("q4", 20.7)])
    job.case_finished("c1", unmeasured={"device_power_w": "no sensor"})
    job.job_finished()
    return job


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "bench.duckdb", wait_s=0.0)


def count(store: Store, table: str) -> int:
    return int(store._read(lambda c: c.execute(f"SELECT count(*) FROM {table}").fetchall())[0][0])


def test_results_are_those_worked_out_by_hand(store: Store) -> None:
    job = whole_job()
    assert commit_events(store, "j1", job.events) == len(job.events)
    (case,) = store.case_results()
    expected = {
        "host": "h1.lab", "device": "cpu", "runtime": "foundry", "model": "tiny", "variant": "tiny-cpu:1",
        "status": "succeeded", "reason": None, "rounds": 2, "requests": 4, "failed": 1,
        "ttft_avg_s": 0.2, "ttft_p50_s": 0.2, "ttft_p95_s": 0.29,
        "e2e_avg_s": (0.4 + 0.8 + 0.6) / 3, "e2e_p50_s": 0.6, "e2e_p95_s": 0.78,
        "itl_p50_s": 0.2, "tpot_avg_s": (0.1 + 0.2 + 0.2) / 3,
        "decode_tokens_per_s": (2 + 2 + 1) / (0.2 + 0.4 + 0.2), "decode_basis": "output",
        "prefill_tokens_per_s": (10 + 30 + 10) / (0.1 + 0.2 + 0.3),
        "output_tokens_per_s": 8 / 3, "output_tokens": 8, "prompt_tokens": 50,
        "tokens_source": "usage", "accounting": "consistent", "load_s": 0.5, "cold_ttft_s": 5.0,
        "ram_peak_bytes": 3000, "vram_peak_bytes": 300, "gpu_busy_ratio": (1.0 * 1 + 0.25 * 2) / 3,
        "cpu_busy_ratio": 2 / 2 / 4, "energy_j": 6.0, "samples": 7,
        "execution_provider": "CPU", "stamp_source": "socket", "run_id": "r1", "job_id": "j1", "case_id": "c1",
    }  # fmt: skip
    assert store.case_results(itl=False) == [case]
    assert case["unmeasured"] == {"device_power_w": "no sensor"}
    assert {name: case[name] for name in expected} == pytest.approx(expected)


def test_the_servers_own_times_are_kept_apart_from_ours(store: Store) -> None:
    job = JobEvents()
    job.job_started(spec("c1", "c2"))
    told: dict[str, Any] = {"server_prefill_s": 0.08, "server_decode_s": 0.2, "server_prefill_token_count": 9}
    for case_id, fields in (("c1", {**told, "server_decode_token_count": 4}), ("c2", {})):
        job.case_started(case_id)
        job.round(case_id, f"{case_id}-r", 0, 10, 12, [ok_request(f"{case_id}-q", 10, [0.1, 0.3], 10.4, **fields)])
        job.case_finished(case_id)
    job.job_finished()
    commit_events(store, "j1", job.events)
    rows = store._read(
        lambda c: c.execute(
            "SELECT server_prefill_s, server_decode_s, server_prefill_tokens, server_decode_tokens "
            "FROM requests ORDER BY request_id"
        ).fetchall()
    )
    assert rows == [(0.08, 0.2, 9, 4), (None, None, None, None)]
    first, second = store.case_results()
    assert (first["server_prefill_avg_s"], first["server_decode_tokens_per_s"]) == pytest.approx((0.08, 20.0))
    assert (second["server_prefill_avg_s"], second["server_decode_tokens_per_s"]) == (None, None)


@pytest.mark.parametrize(("told", "unloads"), [((True, False, True), 2), ((False,), 0), ((None,), None)])
def test_models_unloaded_in_pauses_are_counted(
    store: Store, told: tuple[bool | None, ...], unloads: int | None
) -> None:
    job = JobEvents()
    job.job_started(spec("c1"))
    job.case_started("c1")
    for number, unloaded in enumerate(told):
        job.round("c1", f"r{number}", number, 10, 12, [ok_request(f"q{number}", 10, [0.1], 10.4)])
        if unloaded is not None:
            started = next(e for e in reversed(job.events) if e.WhichOneof("kind") == "round_started")
            started.round_started.model_unloaded = unloaded
    commit_events(store, "j1", job.events)
    (case,) = store.case_results()
    assert case["unloads"] == unloads


def test_what_is_condensed_at_the_end_is_what_the_rows_say_and_running_jobs_are_seen(store: Store) -> None:
    job = whole_job()
    commit_events(store, "j1", job.events)
    (kept,) = store.case_results()
    rounds = store.round_values_of(["ttft_p50_s", "output_tokens_per_s", "itl_p50_s"])

    def forget(connection: duckdb.DuckDBPyConnection) -> None:
        for one in condensed.TABLES:
            assert connection.execute(f"SELECT count(*) FROM {one.table}").fetchall() != [(0,)]
            connection.execute(f"DELETE FROM {one.table}")

    store._write(forget)
    (asked,) = store.case_results()
    numbers = {name: value for name, value in kept.items() if isinstance(value, float)}
    assert {name: asked[name] for name in numbers} == pytest.approx(numbers)
    assert {**asked, **numbers} == kept
    again = store.round_values_of(["ttft_p50_s", "output_tokens_per_s", "itl_p50_s"])
    for name, values in rounds.items():
        assert (again[name].value.tolist(), again[name].weight.tolist()) == (
            values.value.tolist(), values.weight.tolist(),
        )  # fmt: skip
    view = store._read(lambda connection: queries.rows(connection, "FROM case_results"))
    assert view[0]["ttft_p50_s"] == kept["ttft_p50_s"]
    assert (store.case_results(itl=False)[0]["itl_p50_s"], kept["itl_p50_s"]) == (
        None,
        pytest.approx(kept["itl_p50_s"]),
    )


def test_unmeasured_is_null(store: Store) -> None:
    job = JobEvents()
    job.job_started(spec("c1"))
    job.case_started("c1")
    job.round("c1", "r1", 0, 0, 1, [failed_request("q1", 0)])
    commit_events(store, "j1", job.events)
    (case,) = store.case_results()
    for name in ("ttft_p50_s", "e2e_avg_s", "itl_p50_s", "decode_tokens_per_s", "output_tokens_per_s", "output_tokens",
                 "load_s", "ram_peak_bytes", "vram_peak_bytes", "gpu_busy_ratio", "cpu_busy_ratio", "energy_j",
                 "tokens_source"):  # fmt: skip
        assert case[name] is None, name
    assert (case["requests"], case["failed"], case["samples"], case["status"]) == (1, 1, 0, "running")


def test_an_answer_in_one_piece_has_latency_but_no_token_times(store: Store) -> None:
    job = JobEvents()
    job.job_started(spec("c1"))
    whole = ok_request("q1", 0, [], 2, tokens=8, visible_token_count=None, accounting="not_streamed")
    job.round("c1", "r1", 0, 0, 2, [whole])
    commit_events(store, "j1", job.events)
    (case,) = store.case_results()
    assert (case["e2e_p50_s"], case["output_tokens_per_s"]) == (2.0, 4.0)
    assert case["ttft_p50_s"] is None
    assert case["decode_tokens_per_s"] is None


@pytest.mark.parametrize(
    ("fields", "rate", "basis"),
    [
        (
            {"tokens": 30, "visible_token_count": 3, "hidden_token_count": 27, "accounting": "hidden_tokens"},
            10,
            "visible",
        ),
        ({"tokens": 9, "visible_token_count": None, "accounting": "several_tokens_per_chunk"}, 40, "output"),
        # The first chunk holds a third of the text: 6 of 9 tokens came after it, in 0.2 s.
        (
            {
                "tokens": 9,
                "visible_token_count": None,
                "accounting": "several_tokens_per_chunk",
                "piece_length": [8] * 3,
            },
            30,
            "output",
        ),
        (
            {
                "tokens": 9,
                "visible_token_count": None,
                "accounting": "several_tokens_per_chunk",
                "piece_length": [0, 4, 8],
                "other_length": [8, 4, 0],
            },
            30,
            "output",
        ),
        ({"tokens": 3, "piece_length": [9, 1, 1]}, 10, "output"),  # a chunk a token: how long they are says nothing
        ({"tokens": 9, "visible_token_count": None, "accounting": "fewer_chunks_than_tokens"}, 10, "chunks"),
        ({"tokens": 2, "visible_token_count": None, "accounting": "more_chunks_than_tokens"}, 5, "output"),
    ],
)
def test_rates_say_which_tokens_they_divide(store: Store, fields: dict[str, object], rate: float, basis: str) -> None:
    job = JobEvents()
    job.job_started(spec("c1"))
    job.round("c1", "r1", 0, 0, 1, [ok_request("q1", 0, [0.1, 0.2, 0.3], 1, **fields)])  # type: ignore[arg-type]
    commit_events(store, "j1", job.events)
    (case,) = store.case_results()
    assert case["decode_tokens_per_s"] == pytest.approx(rate)
    assert case["decode_basis"] == basis
    assert (case["prefill_tokens_per_s"] is None) == (basis == "visible")  # TTFT held unseen tokens


def test_every_split_and_every_repetition_gives_the_same_rows(tmp_path: Path) -> None:
    events = whole_job().events
    whole = Store(tmp_path / "whole.duckdb")
    commit_events(whole, "j1", events)
    pieces = Store(tmp_path / "pieces.duckdb")
    for end in range(1, len(events) + 1):
        assert commit_events(pieces, "j1", events[max(0, end - 3) : end]) == end
    assert commit_events(pieces, "j1", events) == len(events)
    for table in ("runs", "jobs", "cases", "rounds", "requests", "samples", "hosts"):
        assert count(pieces, table) == count(whole, table), table
    assert pieces.case_results() == whole.case_results()


def test_a_gap_is_refused_and_changes_nothing(store: Store) -> None:
    events = whole_job().events
    commit_events(store, "j1", events[:4])
    with pytest.raises(SequenceGap, match="event 6 came where 5 was expected"):
        commit_events(store, "j1", events[5:])
    assert store.committed_sequence("j1") == 4
    with pytest.raises(StoreError, match="JobStarted"):
        store.commit_many({"unknown": [event_pb2.Event(sequence=1)]})


def test_a_failure_inside_the_transaction_keeps_rows_and_sequence_together(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchfleet_controller.store import ingest

    events = whole_job().events
    commit_events(store, "j1", events[:6])

    def broken(*_: object) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(ingest, "sample_columns", broken)
        with pytest.raises(RuntimeError):
            commit_events(store, "j1", events)
    assert (store.committed_sequence("j1"), count(store, "requests")) == (6, 0)
    commit_events(store, "j1", events)
    assert count(store, "requests") == 5


def test_several_jobs_share_a_transaction(store: Store) -> None:
    jobs = {f"j{n}": JobEvents(f"j{n}") for n in range(3)}
    for name, job in jobs.items():
        job.job_started(spec(f"c-{name}"), host(f"h-{name}"))
        job.round(f"c-{name}", f"r-{name}", 0, 0, 1, [ok_request(f"q-{name}", 0, [0.1, 0.2], 1)])
    assert store.commit_many({name: job.events for name, job in jobs.items()}) == dict.fromkeys(jobs, 4)
    assert [case["ttft_p50_s"] for case in store.case_results(["r1"])] == [0.1, 0.1, 0.1]


@pytest.mark.parametrize(
    ("state", "name", "reason"),
    [(job_pb2.JOB_STATE_FAILED, "failed", "agent_restarted"), (job_pb2.JOB_STATE_CANCELLED, "cancelled", "cancelled")],
)
def test_a_job_that_ends_early_closes_its_cases(store: Store, state: int, name: str, reason: str) -> None:
    job = JobEvents()
    job.job_started(spec("done", "running", "waiting"))
    job.case_started("done")
    job.case_finished("done")
    job.case_started("running")
    job.job_finished(state, failure=event_pb2.Failure(reason=reason, message="it stopped"))
    commit_events(store, "j1", job.events)
    assert [(c["status"], c["reason"]) for c in store.case_results()] == [
        ("succeeded", None), ("failed", reason), ("skipped", reason),
    ]  # fmt: skip
    assert store.run_jobs("r1")[0].state == name


def test_a_hostile_sample_message_does_not_shift_others(store: Store) -> None:
    job = JobEvents()
    job.job_started(spec("c1"))
    bad = event_pb2.SamplesRecorded(case_id="c1", phase="round", probe_id="p", sample_ns=[1, 2], cost_us=[1, 2, 3])
    bad.columns.add(metric="runtime_rss_bytes", integers=[7], absent=[9])
    bad.columns.add(metric="of_a_later_agent", integers=[1, 2])
    job.add(samples_recorded=bad)
    job.samples("c1", "", "loaded", [3], runtime_rss_bytes=[5], device_busy_ratio=[0.5])
    commit_events(store, "j1", job.events)
    rows = store._read(
        lambda c: c.execute("SELECT runtime_rss_bytes, cost_us FROM samples ORDER BY sample_ns").fetchall()
    )
    assert rows == [(7, 1), (None, 2), (5, 5)]


def test_readings_come_as_integers_in_one_message_and_as_doubles_in_the_next(store: Store) -> None:
    job = JobEvents()
    job.job_started(spec("c1"))
    carried: list[tuple[int, list[dict[str, Any]]]] = [
        (1, [{"integers": [10, 20]}]),
        (3, [{"doubles": [30.0, 40.0]}]),
        (5, [{"integers": [0, 0]}, {"doubles": [50.0, 0.0], "absent": [1]}]),  # twice: the later one counts
        (7, [{"doubles": [0.0, 0.0], "absent": [0]}, {"integers": [70, 80]}]),
    ]
    for first, columns in carried:
        message = event_pb2.SamplesRecorded(case_id="c1", phase="round", probe_id="p", sample_ns=[first, first + 1])
        message.cost_us.extend([1, 1])
        for column in columns:
            message.columns.add(metric="runtime_rss_bytes", **column)
        job.add(samples_recorded=message)
    commit_events(store, "j1", job.events)
    rows = store._read(lambda c: c.execute("SELECT runtime_rss_bytes FROM samples ORDER BY sample_ns").fetchall())
    assert [row[0] for row in rows] == [10, 20, 30, 40, 50, None, 70, 80]


def test_a_backlog_is_stored_by_several_transactions_of_one_opening(store: Store) -> None:
    events = whole_job().events
    told: list[dict[str, int]] = []

    def more(committed: dict[str, int]) -> dict[str, list[event_pb2.Event]] | None:
        told.append(committed)
        return {"j1": events[4:]} if len(told) == 1 else None

    assert store.commit_many({"j1": events[:4]}, more) == {"j1": len(events)}
    assert told == [{"j1": 4}, {"j1": len(events)}]
    assert count(store, "requests") == 5


def test_what_was_stored_before_a_transaction_that_fails_is_kept(store: Store) -> None:
    events = whole_job().events

    with pytest.raises(SequenceGap):
        store.commit_many({"j1": events[:6]}, lambda _: {"j1": events[8:]})
    assert store.committed_sequence("j1") == 6


def test_a_disk_that_fills_during_a_backlog_costs_a_new_file_nothing_that_was_stored(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchfleet_controller.store import ingest

    events = whole_job().events

    def full(*_: object) -> None:
        raise StoreFull("the disk is full")

    def more(_: dict[str, int]) -> dict[str, list[event_pb2.Event]]:
        monkeypatch.setattr(ingest, "sample_columns", full)
        return {"j1": events[6:]}

    with pytest.raises(StoreFull):
        store.commit_many({"j1": events[:6]}, more)
    assert store.committed_sequence("j1") == 6
