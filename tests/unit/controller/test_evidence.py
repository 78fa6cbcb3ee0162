"""Outliers and answers, from events in a database to what people read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchfleet_controller.commands.evidence import equality_rows, equality_text, outliers_text
from benchfleet_controller.outliers import Reason
from benchfleet_controller.store import Store, TooManyRequests, evidence
from fakes.events import JobEvents, commit_events, host, ok_request, spec


def _store(path: Path, *jobs: JobEvents) -> Store:
    store = Store(path / "bench.duckdb")
    for job in jobs:
        commit_events(store, job.job_id, job.events)
    return store


def _slow_job(*, busy: bool = False) -> JobEvents:
    """Twenty requests of half a second, one every two seconds; the tenth takes a second more."""
    job = JobEvents()
    job.job_started(spec("c1"))
    job.case_started("c1")
    for index in range(20):
        slow = 1.0 if index == 9 else 0.0
        offsets = [0.1 + index / 1000 + slow, 0.3 + slow, 0.5 + slow]
        request = ok_request(f"q{index}", index * 2, offsets, index * 2 + 0.5 + slow)
        job.round("c1", f"r{index}", index, index * 2, index * 2 + 1.9, [request])
    times = [second / 2 for second in range(82)]
    job.samples(
        "c1", "", "round", times,
        host_cpu_total_ns=[t * 4e9 for t in times],
        host_cpu_busy_ns=[t * 1e9 + (min(max(t - 18, 0), 2) * 2.5e9 if busy else 0) for t in times],
        runtime_cpu_ns=[t * 0.9e9 for t in times], load_cpu_ns=[0.0] * 82, agent_cpu_ns=[0.0] * 82,
    )  # fmt: skip
    job.case_finished("c1")
    return job


def test_a_slow_request_on_a_busy_host_says_so_with_numbers(tmp_path: Path) -> None:
    store = _store(tmp_path, _slow_job(busy=True))
    found = store.outliers(["r1"])

    assert {one.request_id for one in found} == {"q9"}
    ttft = next(one for one in found if one.metric == "ttft_s")
    assert ttft.reason is Reason.BUSY_HOST
    assert ttft.times == pytest.approx(1.109 / 0.1095, rel=0.01)
    text = outliers_text(found, store.case_results(["r1"]), "table")
    assert text.startswith("1 of 20 requests are outliers (")
    assert "They are kept in all results." in text
    assert store.case_results(["r1"])[0]["requests"] == 20
    row = json.loads(outliers_text(found, store.case_results(["r1"]), "json"))[0]
    assert {"host", "request_id", "metric", "value", "typical", "reason", "evidence"} <= set(row)


def test_a_slow_request_on_a_quiet_host_is_not_blamed_on_it(tmp_path: Path) -> None:
    found = _store(tmp_path, _slow_job()).outliers(["r1"])
    assert {one.request_id for one in found} == {"q9"}
    assert {one.reason for one in found} <= {Reason.FIRST_REQUEST, Reason.UNEXPLAINED}


def test_a_run_without_outliers_says_among_how_many(tmp_path: Path) -> None:
    job = JobEvents()
    job.job_started(spec("c1"))
    job.round("c1", "r1", 0, 0, 9, [ok_request(f"q{n}", n, [0.1, 0.2], n + 0.3) for n in range(9)])
    store = _store(tmp_path, job)
    text = outliers_text(store.outliers(["r1"]), store.case_results(["r1"]), "table")
    assert text == "No outliers among 9 requests.\n"


def test_too_many_requests_are_refused_rather_than_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "MOST_REQUESTS", 10)
    with pytest.raises(TooManyRequests, match="among up to 10 requests; there are 20"):
        _store(tmp_path, _slow_job()).outliers(["r1"])


def _answers(job_id: str, host_id: str, texts: list[str], prefix: str = "", *, fixed: bool = True) -> JobEvents:
    job = JobEvents(job_id)
    job.job_started(spec(f"c-{job_id}", deterministic=fixed), host(host_id))
    job.case_started(f"c-{job_id}")
    requests = []
    for position, text in enumerate(texts):
        pieces = [len(word) + 1 for word in text.split()]
        pieces[-1] -= 1
        requests.append(
            ok_request(
                f"{job_id}-{position}", position, [0.1 * (n + 1) for n in range(len(pieces))], position + 0.9,
                text=text, piece_length=pieces, answer_sha256=f"hash of {text}", position=position,
                prompt_prefix=prefix,
            )
        )  # fmt: skip
    job.round(f"c-{job_id}", f"r-{job_id}", 0, 0, 9, requests)
    job.case_finished(f"c-{job_id}")
    return job


def test_answers_are_compared_token_by_token_between_hosts(tmp_path: Path) -> None:
    store = _store(
        tmp_path,
        _answers("a", "one", ["the sky is blue", "two and two"]),
        _answers("b", "two", ["the sky was blue", "two and two"]),
    )
    base, other = equality_rows(store, ["r1"], ("host",), None)

    assert (base["pairs"], base["answers"]) == (None, 2)
    assert (other["group"], other["pairs"], other["equal"], other["share"]) == ("two.lab", 2, 1, 0.5)
    assert other["first_token_least"] == 2
    (apart,) = other["divergences"]
    assert (apart["prompt_id"], apart["token"], apart["character"]) == ("p1", 2, 8)
    text = equality_text([base, other], "table")
    assert "50%" in text
    assert "p1: “the sky is blue” / “the sky was blue”" in text
    assert "note:" not in text


def test_answers_to_other_words_are_never_paired_and_that_is_said(tmp_path: Path) -> None:
    store = _store(
        tmp_path,
        _answers("a", "one", ["same"], prefix="day\n\n", fixed=False),
        _answers("b", "two", ["same"], prefix="way\n\n", fixed=False),
    )
    rows = equality_rows(store, ["r1"], ("host",), None)
    assert rows[1]["pairs"] == 0
    assert rows[1]["why"]
    assert "run with --deterministic" in equality_text(rows, "table")


def test_an_unknown_baseline_names_the_groups(tmp_path: Path) -> None:
    store = _store(tmp_path, _answers("a", "one", ["same"]))
    with pytest.raises(ValueError, match=r"no host 'x' to compare with; there are: one\.lab"):
        equality_rows(store, ["r1"], ("host",), "x")
