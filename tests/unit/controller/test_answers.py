"""What `show` and `report` say of a run, from a real database."""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchfleet.v1 import event_pb2
from benchfleet_controller import results
from benchfleet_controller.capacity import Limits
from benchfleet_controller.commands import UsageError
from benchfleet_controller.commands.answers import limits_of, report_data, run_text, show
from benchfleet_controller.report import CASE_COLUMNS, render_report
from benchfleet_controller.report.cases import INTERVAL_NOTE
from benchfleet_controller.results import results_of
from benchfleet_controller.store import Store
from fakes.events import JobEvents, S, commit_events, failed_request, ok_request, spec

GIB = 1 << 30


def _answer(name: str, start_s: float, ttft_s: float, gap_s: float = 0.1, chunks: int = 3, **fields: Any) -> Any:
    offsets = [ttft_s + gap_s * index for index in range(chunks)]
    return ok_request(name, start_s, offsets, start_s + offsets[-1] + 0.1, **fields)


def _case(job: JobEvents, case_id: str, rounds: Sequence[Sequence[Any]], wall_s: float = 10.0) -> None:
    """A case whose round n is ``rounds[n]``, each taking ``wall_s``."""
    job.case_started(case_id)
    job.loaded(case_id)
    for index, requests in enumerate(rounds):
        job.round(case_id, f"{case_id}-r{index}", index, wall_s * index, wall_s * (index + 1), requests)
    job.case_finished(case_id)


def _certificate(job: JobEvents, concurrency: int, ttft_error_ns: int, stamps: str = "socket") -> None:
    job.add(
        certificate_recorded=event_pb2.CertificateRecorded(
            concurrency=concurrency, request_count=6, stamp_source=stamps, ttft_error_p50_ns=ttft_error_ns // 2,
            ttft_error_p99_ns=ttft_error_ns, itl_error_p99_ns=20_000, jitter_ns=10_000, cpu_per_token_ns=300_000,
            rss_bytes=50 << 20,
        )
    )  # fmt: skip


def _store(path: Path, job: JobEvents) -> Store:
    job.job_finished()
    store = Store(path / "bench.duckdb")
    commit_events(store, job.job_id, job.events)
    return store


@pytest.fixture
def lab(tmp_path: Path) -> Store:
    """One case of 3 rounds with 4 requests each: TTFT 0.1 s in the first round, 0.2 and 0.3 s in the others."""
    job = JobEvents()
    job.job_started(spec("c1"))
    _certificate(job, 1, 400_000)
    _case(job, "c1", [[_answer(f"q{n}{i}", 10 * n, 0.1 * (n + 1)) for i in range(4)] for n in range(3)])
    return _store(tmp_path, job)


def _sweep(path: Path, **fields: Any) -> Store:
    """Loads 1, 2, 4, 8: throughput grows up to 4 and latency does beyond it."""
    job = JobEvents()
    loads = {1: (0.1, 10.0), 2: (0.12, 5.5), 4: (0.2, 4.0), 8: (1.9, 3.98)}
    asked = spec(*(f"c{load}" for load in loads))
    for case, load in zip(asked.cases, loads, strict=True):
        if fields:
            case.request_rate_per_s, case.arrival, case.concurrency = load, fields["arrival"], 64
        else:
            case.concurrency = load
    job.job_started(asked)
    for load, (ttft_s, wall_s) in loads.items():
        late = {"scheduled_ns": -S} if fields and load == 8 else {}
        requests = [_answer(f"q{load}{n}", 0, ttft_s, **late) for n in range(4)]
        _case(job, f"c{load}", [requests], wall_s)
    return _store(path, job)


def test_values_carry_intervals_with_rounds_as_blocks(lab: Store) -> None:
    (case,) = results_of(lab, ["r1"])

    assert set(case["intervals"]) == set(results.INTERVAL_METRICS)
    low, high = case["intervals"]["ttft_avg_s"]
    assert 0.1 <= low < case["ttft_avg_s"] < high <= 0.3
    low, high = case["intervals"]["ttft_p50_s"]
    assert low == pytest.approx(0.1)
    assert high == pytest.approx(0.3)
    assert case["intervals"]["requests_per_s"] == pytest.approx([0.4, 0.4])
    assert case["intervals"]["ttft_p95_s"] is None  # 12 values cannot support it
    assert case["goodput"] is None


def test_one_round_gives_no_interval_and_warm_up_rounds_give_none_either(tmp_path: Path) -> None:
    job = JobEvents()
    job.job_started(spec("c1"))
    job.case_started("c1")
    job.round("c1", "r0", 0, 0, 1, [_answer("q0", 0, 5.0)], warmup=True)
    job.round("c1", "r1", 1, 1, 2, [_answer("q1", 1, 0.1), _answer("q2", 1, 0.1)])
    job.case_finished("c1")

    (case,) = results_of(_store(tmp_path, job), ["r1"])

    assert set(case["intervals"].values()) == {None}


def test_a_failed_request_is_in_no_interval(tmp_path: Path) -> None:
    job = JobEvents()
    job.job_started(spec("c1"))
    late = _answer("bad", 20, 9.0)
    late.status = "failed"
    _case(job, "c1", [[_answer("q1", 0, 0.1)], [_answer("q2", 10, 0.1)], [_answer("q3", 20, 0.1), late]])

    (case,) = results_of(_store(tmp_path, job), ["r1"])

    assert case["intervals"]["ttft_p50_s"] == pytest.approx([0.1, 0.1])


def test_cases_are_read_in_bounded_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = JobEvents()
    job.job_started(spec("c1", "c2", "c3"))
    for case_id, ttft_s in (("c1", 0.1), ("c2", 0.2), ("c3", 0.3)):
        _case(job, case_id, [[_answer(f"{case_id}{n}", 10 * n, ttft_s)] for n in range(2)])
    store = _store(tmp_path, job)
    monkeypatch.setattr(results, "_MOST_REQUESTS", 4)
    asked: list[int] = []
    times = store.request_times

    def watched(case_ids: Sequence[str]) -> Any:
        asked.append(len(case_ids))
        return times(case_ids)

    monkeypatch.setattr(store, "request_times", watched)

    cases = results_of(store, ["r1"])

    assert asked == [2, 1]
    for name in ("ttft_p50_s", "ttft_avg_s"):  # of each case its own
        assert [case["intervals"][name][0] for case in cases] == pytest.approx([0.1, 0.2, 0.3])


def test_people_see_half_intervals_marks_and_what_they_mean(lab: Store) -> None:
    text = run_text(lab, "r1", "table")

    row = next(line for line in text.splitlines() if "tiny" in line)
    assert "0.200 ±0.100" in row
    assert "0.600*" in row  # the p95 of 12 latencies
    assert INTERVAL_NOTE in text
    assert "* n is too small for this percentile." in text


def test_the_certificate_is_shown_and_said_where_there_is_none(lab: Store, tmp_path: Path) -> None:
    line = run_text(lab, "r1", "table").split("Instrument: ", 1)[1].splitlines()[2]
    assert line.split() == ["h1.lab", "1", "0.2", "ms", "0.4", "ms", "0.02", "ms", "0.01", "ms", "socket", "0.3", "ms",
                            "50", "MiB"]  # fmt: skip

    job = JobEvents("j2")
    job.job_started(spec("c9", run_id="r2"))
    failure = event_pb2.Failure(reason="internal", message="no port is free")
    job.add(certificate_recorded=event_pb2.CertificateRecorded(failure=failure))
    _case(job, "c9", [[_answer("z1", 0, 0.1)]])
    (tmp_path / "other").mkdir()
    text = run_text(_store(tmp_path / "other", job), "r2", "table")
    assert "h1.lab: not checked: no port is free" in text
    assert "warning: h1.lab: the agent could not measure its own time stamps: no port is free" in text


def test_the_instruments_error_stands_beside_what_it_is_of(lab: Store) -> None:
    head, values = run_text(lab, "r1", "table").splitlines()[:2]
    assert head.count("instrument error") == 2
    assert values.index("±0.4 ms") < values.index("±0.02 ms")
    assert head.index("TTFT p50") < head.index("instrument error") < head.index("ITL p50")
    assert "| ±0.4 ms |" in render_report(report_data(lab, "r1"), ".md")
    assert "| ±0.02 ms |" in render_report(report_data(lab, "r1"), ".md")


@pytest.mark.parametrize(
    ("certified", "measured", "error_s", "reason"),
    [
        (["kernel"], "kernel", 0.0004, None),
        (["kernel"], "socket", None, "the certificate is of kernel stamps, the case has socket"),
        (["kernel", "socket"], "socket", 0.0004, None),
        ([], "socket", None, "the instrument was not checked"),
    ],
)
def test_a_certificate_of_other_stamps_describes_no_case(
    tmp_path: Path, certified: list[str], measured: str, error_s: float | None, reason: str | None
) -> None:
    job = JobEvents()
    job.job_started(spec("c1"))
    for stamps in certified:
        _certificate(job, 1, 400_000, stamps)
    _case(job, "c1", [[_answer("q1", 0, 0.1, stamp_source=measured)]])
    store = _store(tmp_path, job)

    (case,) = store.case_results(["r1"])

    assert (case["ttft_error_s"], case["instrument_reason"]) == (error_s, reason)
    assert (case["itl_error_s"] is None) == (error_s is None)
    assert bool(certified and reason) == (
        f"h1.lab: no error is known for tiny: {reason}" in run_text(store, "r1", "table")
    )


def test_a_plan_that_asked_for_no_certificate_says_so(lab: Store) -> None:
    data = report_data(lab, "r1")
    run = {**data.run, "plan": {"certificate": False}}
    silent = type(data)(run, data.hosts, data.cases, certificates=[])
    assert "h1.lab: not checked: the plan did not ask for it" in render_report(silent, ".md")
    assert "| h1.lab | 1 | 0.2 ms | 0.4 ms |" in render_report(data, ".md")
    assert "±0.4 ms" in render_report(data, ".md")  # beside TTFT p50


def test_goodput_counts_all_requests_and_is_a_rate(lab: Store) -> None:
    (case,) = results_of(lab, ["r1"], Limits(ttft_s=0.25, e2e_s=0.5))

    good = case["goodput"]
    assert (good["good"], good["requests"], good["unmeasured"]) == (8, 12, 0)
    assert good["limits"] == {"ttft_s": 0.25, "tpot_s": None, "e2e_s": 0.5}
    assert good["good_ratio"] == pytest.approx(8 / 12)
    assert good["goodput_per_s"] == pytest.approx(8 / 30)
    assert good["good_ratio_interval"] == pytest.approx([0.391, 0.862], abs=0.001)


def test_a_failed_request_is_sent_and_not_good(tmp_path: Path) -> None:
    job = JobEvents()
    job.job_started(spec("c1"))
    _case(job, "c1", [[_answer("q1", 0, 0.1), failed_request("q2", 0)]])

    (case,) = results_of(_store(tmp_path, job), ["r1"], Limits(ttft_s=1))

    assert (case["goodput"]["good"], case["goodput"]["requests"]) == (1, 2)


def test_limits_of_the_option_win_over_the_plans() -> None:
    run = {"plan": {"goodput": "ttft=0.5"}}
    assert limits_of(run, None) == Limits(ttft_s=0.5)
    assert limits_of(run, "e2e=2") == Limits(e2e_s=2)
    assert limits_of({"plan": None}, None) is None
    with pytest.raises(UsageError, match="--goodput: 'speed=1' is no limit"):
        limits_of(run, "speed=1")


def test_goodput_is_shown_in_table_json_and_markdown(lab: Store) -> None:
    table = run_text(lab, "r1", "table", "ttft=0.25")
    assert "8/12 (67%)" in table
    assert "Good: TTFT ≤ 0.25 s" in table
    (document,) = json.loads(run_text(lab, "r1", "json", "ttft=0.25"))
    assert document["goodput"]["good"] == 8
    assert document["intervals"]["ttft_p50_s"] == pytest.approx([0.1, 0.3])
    markdown = render_report(report_data(lab, "r1", goodput="ttft=0.25"), ".md")
    assert "| 8 | 12 | 67% | 39% to 86% | 0.27 | 0 |" in markdown.split("## Goodput", 1)[1]
    assert "Goodput" not in run_text(lab, "r1", "table")


def test_csv_has_the_columns_of_cases_and_no_more(lab: Store) -> None:
    table = list(csv.reader(io.StringIO(run_text(lab, "r1", "csv", "ttft=0.25"))))
    assert tuple(table[0]) == CASE_COLUMNS
    assert len(table) == 2


def test_a_sweep_of_concurrencies_tells_its_knee(tmp_path: Path) -> None:
    store = _sweep(tmp_path)
    text = run_text(store, "r1", "table").split("Load sweep: h1.lab / foundry / tiny / cpu / default", 1)[1]

    assert [line.split()[0] for line in text.splitlines()[2:6]] == ["1", "2", "4", "8"]
    assert text.splitlines()[4].rstrip().endswith("knee, saturated")
    assert "0.200*" in text.splitlines()[4]  # TTFT p95 of 4 values
    assert "The knee is at a concurrency of 4 (3 tokens/s, response 0.5 s)" in text
    assert "Throughput is saturated from a concurrency of 4 on" in text
    (sweep,) = json.loads(render_report(report_data(store, "r1"), ".json"))["sweeps"]
    assert (sweep["varying"], sweep["knee"], sweep["saturation"], sweep["reached"]) == ("concurrency", 4.0, 4.0, True)
    assert [level["load"] for level in sweep["levels"]] == [1, 2, 4, 8]
    assert sweep["levels"][2]["power"] == pytest.approx(6.0)
    assert "## Load sweep: h1.lab" in render_report(report_data(store, "r1"), ".md")


def test_a_sweep_of_rates_counts_the_wait_for_a_slot(tmp_path: Path) -> None:
    store = _sweep(tmp_path, arrival="constant")
    (sweep,) = json.loads(render_report(report_data(store, "r1"), ".json"))["sweeps"]

    assert sweep["varying"] == "request_rate_per_s"
    assert sweep["throughput"] == "requests_per_s"
    assert sweep["levels"][3]["response_avg_s"] == pytest.approx(3.2)  # 2.2 s and 1 s late
    assert "8/s constant" in run_text(store, "r1", "table")


def test_goodput_of_an_open_loop_counts_from_when_requests_were_due(tmp_path: Path) -> None:
    store = _sweep(tmp_path, arrival="constant")

    def good(limits: str) -> int:
        document = json.loads(render_report(report_data(store, "r1", goodput=limits), ".json"))
        return int(max(document["cases"], key=lambda case: case["request_rate_per_s"])["goodput"]["good"])

    assert good("e2e=3.1") == 0  # answers take 2.2 s, but each went out 1 s late
    assert good("e2e=3.3") > 0


def test_two_levels_or_other_differences_make_no_sweep(tmp_path: Path) -> None:
    job = JobEvents()
    asked = spec("c1", "c2", "c3")
    for index, case in enumerate(asked.cases):
        case.concurrency = index + 1
    asked.cases[2].prompt_set = "other"
    job.job_started(asked)
    for case in asked.cases:
        _case(job, case.case_id, [[_answer(f"{case.case_id}q", 0, 0.1)]])
    store = _store(tmp_path, job)

    text = run_text(store, "r1", "table")

    assert "Load sweep" not in text
    assert "Prompts" in text.splitlines()[0]  # for there are two sets


def _lifecycle(path: Path) -> Store:
    job = JobEvents()
    asked = spec("c1", drop_page_cache=True, idle_pause_s=30.0)
    job.job_started(asked)
    job.case_started("c1")
    loaded = event_pb2.ModelLoaded(case_id="c1", start_ns=0, end_ns=S, load_duration_ns=S, page_cache_ratio=0.02)
    job.samples("c1", "", "baseline", [0.1], device_id="gpu0", device_memory_used_bytes=[GIB])
    job.samples("c1", "", "load", [0.2], device_id="gpu0", device_memory_used_bytes=[3 * GIB])
    job.samples("c1", "", "load", [0.2], runtime_rss_bytes=[GIB])
    job.add(model_loaded=loaded)
    job.samples("c1", "", "loaded", [1.1], runtime_rss_bytes=[2 * GIB])
    job.round("c1", "r0", 0, 2, 3, [_answer("q0", 2, 0.9)], warmup=True)
    job.round("c1", "r1", 1, 3, 4, [_answer("q1", 3, 0.1)])
    job.samples("c1", "r1", "round", [3.5], runtime_rss_bytes=[5 * GIB])
    idle = event_pb2.RoundStarted(
        case_id="c1", round_id="r2", round_index=2, warmup=True, start_ns=40 * S, kind="idle"
    )  # fmt: skip
    job.add(round_started=idle)
    again = _answer("q2", 40, 0.4)
    again.case_id, again.round_id = "c1", "r2"
    job.add(request_finished=again)
    job.samples("c1", "", "loaded", [41.0], runtime_rss_bytes=[4 * GIB])
    job.samples("c1", "", "loaded", [41.0], device_id="gpu0", device_memory_used_bytes=[4 * GIB])
    job.samples("c1", "", "after", [42.0], runtime_rss_bytes=[GIB])
    job.samples("c1", "", "after", [42.0], device_id="gpu0", device_memory_used_bytes=[GIB])
    job.case_finished("c1", unload_duration_ns=S // 4)
    return _store(path, job)


def _show(store: Store, style: str, capsys: pytest.CaptureFixture[str], **options: Any) -> str:
    given = {"goodput": None, "lifecycle": False, "outliers": False, "price_per_kwh": None} | options
    show(argparse.Namespace(db=store.path, run="last", format=style, **given))
    return capsys.readouterr().out


def test_the_lifecycle_of_a_case_is_cold_warm_and_after_a_pause(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (row,) = json.loads(_show(_lifecycle(tmp_path), "json", capsys, lifecycle=True))

    assert (row["page_cache"], row["page_cache_ratio"], row["idle_pause_s"]) == ("dropped", 0.02, 30.0)
    times = [row[name] for name in ("load_s", "cold_ttft_s", "ttft_p50_s", "idle_ttft_s", "unload_s")]
    assert times == pytest.approx([1.0, 0.9, 0.1, 0.4, 0.25])
    held = [row[f"ram_{name}_bytes"] for name in ("loaded", "round_peak", "before_unload", "after_unload")]
    assert held == [2 * GIB, 5 * GIB, 4 * GIB, GIB]
    assert row["ram_given_back_ratio"] == 0.75
    assert [row[f"vram_{name}_bytes"] for name in ("baseline", "loaded", "before_unload", "after_unload")] == [
        GIB, 3 * GIB, 4 * GIB, GIB,
    ]  # fmt: skip
    assert row["vram_given_back_ratio"] == 1.0  # of the 3 GiB above the baseline


def test_the_lifecycle_reads_well_and_is_in_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = _lifecycle(tmp_path)
    text = _show(store, "table", capsys, lifecycle=True)
    assert [line.split()[-5:] for line in text.splitlines()[2:3]] == [["0.900", "0.100", "30", "0.400", "0.25"]]
    assert "Memory of the runtime by stage" in text
    assert "75%" in text
    markdown = render_report(report_data(store, "r1"), ".md")
    assert "## Cold and warm" in markdown
    assert "## Memory of the devices by stage" in markdown
    stages = json.loads(render_report(report_data(store, "r1"), ".json"))["stages"]
    assert [row["phase"] for row in stages if row["rss_peak_bytes"]] == ["load", "loaded", "round", "after"]


@pytest.mark.parametrize(("ratio", "said"), [(0.02, "dropped"), (None, "asked to drop, not known")])
def test_the_page_cache_was_dropped_only_if_that_is_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ratio: float | None, said: str
) -> None:
    job = JobEvents()
    job.job_started(spec("c1", drop_page_cache=True))
    job.case_started("c1")
    loaded = event_pb2.ModelLoaded(case_id="c1", start_ns=0, end_ns=S, load_duration_ns=S, page_cache_ratio=ratio)
    job.add(model_loaded=loaded)
    job.round("c1", "r1", 0, 3, 4, [_answer("q1", 3, 0.1)])
    job.case_finished("c1", unload_duration_ns=S)

    (line,) = _show(_store(tmp_path, job), "table", capsys, lifecycle=True).splitlines()[2:3]

    assert f" {said} " in line


def test_the_show_command_takes_limits(lab: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Good" not in _show(lab, "table", capsys)
    assert "12/12 (100%)" in _show(lab, "table", capsys, goodput="ttft=1")


def test_a_table_in_markdown_ends_before_what_follows(lab: Store) -> None:
    lines = run_text(lab, "r1", "md").splitlines()
    assert all(lines[index + 1] == "" or lines[index + 1].startswith("|") for index in range(len(lines) - 1)
               if lines[index].startswith("|"))  # fmt: skip
