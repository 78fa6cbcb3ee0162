"""What charts draw of a run: thinned out without losing peaks, and on the clock of the case."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from benchfleet_controller.store import Store, StoreError
from fakes.events import JobEvents, commit_events, ok_request, spec
from fakes.lab import lab_store


def _store(path: Path, job: JobEvents) -> Store:
    job.case_finished("c1")
    job.job_finished()
    store = Store(path / "bench.duckdb")
    commit_events(store, job.job_id, job.events)
    return store


def _job() -> JobEvents:
    job = JobEvents()
    job.job_started(spec("c1"))
    job.case_started("c1")
    return job


def test_thinning_keeps_the_least_and_the_most(tmp_path: Path) -> None:
    job = _job()
    values: list[float | None] = [1000.0 + place % 10 for place in range(9000)]
    values[4321], values[6789] = 9999.0, 1.0
    job.samples("c1", "r1", "round", [place / 100 for place in range(9000)], runtime_rss_bytes=values)
    timeline = _store(tmp_path, job).timeline("r1")
    assert timeline.readings_total == 9000
    assert 1000 <= len(timeline.readings) <= 2000
    drawn = {row["value"]: row["at_s"] for row in timeline.readings}
    assert drawn[9999.0] == pytest.approx(43.21)
    assert drawn[1.0] == pytest.approx(67.89)
    times = [row["at_s"] for row in timeline.readings]
    assert times == sorted(times)
    assert (times[0], times[-1]) == pytest.approx((0.0, 89.99), abs=0.2)


def test_few_readings_are_all_kept(tmp_path: Path) -> None:
    job = _job()
    job.samples("c1", "r1", "round", [1.0, 2.0, 3.0], device_id="gpu0", device_busy_ratio=[0.5, 0.5, None])
    timeline = _store(tmp_path, job).timeline("r1")
    assert [(row["series"], row["device_id"], row["at_s"], row["value"]) for row in timeline.readings] == [
        ("device_busy_ratio", "gpu0", 0.0, 0.5),
        ("device_busy_ratio", "gpu0", 1.0, 0.5),
    ]


def test_processors_are_busy_by_the_difference_of_their_counters(tmp_path: Path) -> None:
    job = _job()
    job.samples(
        "c1", "r1", "round", [5.0, 6.0, 7.0], host_cpu_busy_ns=[0.0, 1e9, 4e9], host_cpu_total_ns=[0.0, 4e9, 8e9]
    )
    timeline = _store(tmp_path, job).timeline("r1")
    assert [(row["at_s"], row["value"]) for row in timeline.readings] == [(1.0, 0.25), (2.0, 0.75)]


def test_a_case_begins_with_whatever_came_first(tmp_path: Path) -> None:
    job = _job()
    job.samples("c1", "", "baseline", [100.0], runtime_rss_bytes=[1.0])
    job.round("c1", "w", 0, 101.0, 102.0, [ok_request("q0", 101.0, [0.1], 101.2)], warmup=True)
    job.round("c1", "r1", 1, 103.0, 105.0, [ok_request("q1", 103.5, [0.1, 0.3], 104.0)])
    timeline = _store(tmp_path, job).timeline("r1")
    assert [(row["kind"], row["number"], row["start_s"], row["end_s"]) for row in timeline.spans] == [
        ("warmup", 1, 1.0, 2.0),
        ("counted", 1, 3.0, 5.0),
    ]
    (request,) = timeline.measured
    assert (request.request_id, request.start_s, request.end_s) == ("q1", 3.5, 4.0)
    assert request.largest_gap_s == pytest.approx(0.2)
    assert (request.first_in_round, request.first_after_load) == (True, False)


def test_only_ok_requests_of_counted_rounds_are_drawn(tmp_path: Path) -> None:
    timeline = lab_store(tmp_path / "bench.duckdb").timeline("r1")
    assert timeline.requests_total == len(timeline.requests) == 4 * 4 * 4
    assert {row["n"] for row in timeline.spreads} == {16}
    assert {row["metric"] for row in timeline.spreads} == {"ttft_s", "e2e_s", "tpot_s"}


def test_too_many_requests_are_chosen_evenly_with_the_extremes(tmp_path: Path) -> None:
    job = _job()
    sent = [ok_request(f"q{n:04}", n, [0.1, 0.2], n + 0.2 + n / 10_000) for n in range(5000)]
    job.round("c1", "r1", 0, 0.0, 6000.0, sent)
    timeline = _store(tmp_path, job).timeline("r1")
    assert timeline.requests_total == 5000
    assert 1000 < len(timeline.requests) <= 2001
    latencies = [row["e2e_s"] for row in timeline.requests]
    assert (min(latencies), max(latencies)) == pytest.approx((0.2, 0.6999))
    assert timeline.spreads[0]["n"] == 5000


def test_the_fastest_the_median_and_the_slowest_request_show_their_tokens(tmp_path: Path) -> None:
    job = _job()
    sent = [ok_request(f"q{n}", n, [0.1, 0.1 + n], n + 0.2 + n) for n in (3, 1, 2, 5, 4)]
    job.round("c1", "r1", 0, 0.0, 60.0, sent)
    timeline = _store(tmp_path, job).timeline("r1")
    ends = {row["which"]: (row["request_id"], row["at_s"], row["chunks"]) for row in timeline.arrivals}
    assert ends == {"fastest": ("q1", 1.1, 2), "median": ("q3", 3.1, 2), "slowest": ("q5", 5.1, 2)}


def test_a_long_answer_keeps_its_first_and_last_token(tmp_path: Path) -> None:
    job = _job()
    job.round("c1", "r1", 0, 0.0, 60.0, [ok_request("q", 0.0, [n / 100 for n in range(1, 3001)], 31.0)])
    arrivals = _store(tmp_path, job).timeline("r1").arrivals
    assert len(arrivals) <= 202
    assert [(row["chunks"], row["at_s"]) for row in (arrivals[0], arrivals[-1])] == [(1, 0.01), (3000, 30.0)]


def test_a_run_of_another_name_is_not_in_it(tmp_path: Path) -> None:
    timeline = lab_store(tmp_path / "bench.duckdb").timeline("r2")
    assert not any((timeline.spreads, timeline.requests, timeline.readings, timeline.arrivals, timeline.spans))


def test_parquet_holds_the_case_results_with_their_types(tmp_path: Path) -> None:
    store = lab_store(tmp_path / "bench.duckdb")
    target = tmp_path / "it's a report.parquet"
    store.write_parquet(target, ["r1"])
    sql = "SELECT host, requests, ttft_p50_s FROM read_parquet($path)"
    found = duckdb.execute(sql, {"path": str(target)}).fetchall()
    expected = [(row["host"], row["requests"], row["ttft_p50_s"]) for row in store.case_results(["r1"])]
    assert found == expected
    assert len(found) == 4
    types = dict(duckdb.execute("SELECT name, type FROM parquet_schema($path)", {"path": str(target)}).fetchall())
    assert (types["ttft_p50_s"], types["ram_peak_bytes"], types["host"]) == ("DOUBLE", "INT64", "BYTE_ARRAY")


def test_parquet_of_other_runs_is_left_out(tmp_path: Path) -> None:
    store = lab_store(tmp_path / "bench.duckdb")
    store.write_parquet(tmp_path / "none.parquet", ["r2"])
    store.write_parquet(tmp_path / "all.parquet")
    count = "SELECT count(*) FROM read_parquet($path)"
    for name, rows in (("none", 0), ("all", 4)):
        assert duckdb.execute(count, {"path": str(tmp_path / f"{name}.parquet")}).fetchall() == [(rows,)]


def test_parquet_into_no_directory_is_a_store_error(tmp_path: Path) -> None:
    store = lab_store(tmp_path / "bench.duckdb")
    with pytest.raises(StoreError, match="nowhere"):
        store.write_parquet(tmp_path / "nowhere" / "x.parquet", ["r1"])
