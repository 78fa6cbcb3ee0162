"""A case that ran in blocks is one case to everybody who asks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchfleet_controller.commands.answers import run_text
from benchfleet_controller.commands.comparing import comparison_of
from benchfleet_controller.results import results_of
from benchfleet_controller.store import Store
from fakes.events import JobEvents, commit_events, failed_request, ok_request, spec

DEVICES = {"cpu": 0.2, "gpu": 0.1}
"""TTFT by device."""


def _block(job: JobEvents, case_id: str, device: str, start_s: float, rounds: int, load_s: float) -> None:
    ep = {"cpu": "CPU", "gpu": "CUDA"}[device]
    job.case_started(case_id, variant=f"tiny-{device}:1", device=device, execution_provider=ep)
    job.loaded(case_id, load_s, ep)
    for index in range(rounds):
        at, ttft_s = start_s + 10 * index, DEVICES[device] * (1 + 0.01 * index)
        sent = [
            ok_request(f"{case_id}-{index}-{n}", at + n, [ttft_s, ttft_s + 0.1], at + n + 0.5, position=n)
            for n in range(4)
        ]
        job.round(case_id, f"{case_id}-r{index}", index, at, at + 10, sent)
        job.samples(case_id, f"{case_id}-r{index}", "round", [at, at + 5, at + 9], runtime_rss_bytes=[1e6, 2e6, 1e6])
    job.case_finished(case_id)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """CPU and GPU in two blocks of 2 and 3 rounds: A B B A."""
    job = JobEvents()
    asked = spec("cpu-0", "gpu-0", "gpu-1", "cpu-1", deterministic=True)
    for case, (device, block) in zip(asked.cases, (("cpu", 0), ("gpu", 0), ("gpu", 1), ("cpu", 1)), strict=True):
        case.device, case.block_index, case.round_count = device, block, 2 + block
    job.job_started(asked)
    _block(job, "cpu-0", "cpu", 0, 2, 9.0)
    _block(job, "gpu-0", "gpu", 100, 2, 5.0)
    _block(job, "gpu-1", "gpu", 200, 3, 1.0)
    _block(job, "cpu-1", "cpu", 300, 3, 1.0)
    job.job_finished()
    made = Store(tmp_path / "bench.duckdb")
    commit_events(made, "j1", job.events)
    return made


def test_blocks_are_one_case_with_all_their_rounds_and_requests(store: Store) -> None:
    cpu, gpu = results_of(store, ["r1"])

    assert [(case["case_id"], case["device"]) for case in (cpu, gpu)] == [("cpu-0", "cpu"), ("gpu-0", "gpu")]
    assert (cpu["rounds"], cpu["planned_rounds"], cpu["requests"], cpu["ttft_n"], cpu["blocks"]) == (5, 5, 20, 20, 2)
    assert cpu["ttft_avg_s"] == pytest.approx(0.2 * (1 + 0.01 * (0 + 1 + 0 + 1 + 2) / 5))
    assert (cpu["load_s"], gpu["load_s"]) == (9.0, 5.0)  # the first load, which was the cold one
    assert cpu["samples"] == 15
    low, high = cpu["intervals"]["ttft_p50_s"]
    assert low < cpu["ttft_p50_s"] < high
    assert store.runs()[0].cases == 2


def test_nobody_is_advised_what_was_done_and_nothing_competes_with_itself(store: Store) -> None:
    text = run_text(store, "r1", "table")

    assert "--rounds" not in text
    assert "all-cores" not in text
    assert sum(line.startswith("h1.lab  tiny") for line in text.splitlines()) == 2, text
    assert len(json.loads(run_text(store, "r1", "json"))) == 2


def test_devices_are_compared_over_the_rounds_of_all_blocks(store: Store) -> None:
    rows = {row.group: row for row in comparison_of(store, ["r1"], ("device",), "cpu", ("ttft_avg_s",)).rows}

    assert (rows["gpu"].rounds, rows["gpu"].n, rows["gpu"].verdict.value) == (5, 20, "better"), rows["gpu"].why
    assert rows["gpu"].ratio == pytest.approx(0.5)


def test_a_case_is_as_far_and_as_good_as_its_worst_block(tmp_path: Path) -> None:
    job = JobEvents()
    asked = spec("a", "b")
    asked.cases[1].block_index = 1
    job.job_started(asked)
    _block(job, "a", "cpu", 0, 2, 1.0)
    store = Store(tmp_path / "bench.duckdb")
    commit_events(store, "j1", job.events)
    assert [(case["status"], case["rounds"]) for case in store.case_results()] == [("running", 2)]

    told = len(job.events)
    job.case_started("b")
    job.round("b", "b-r0", 0, 50, 60, [failed_request("bad", 51)])
    job.case_finished("b", "failed", failure={"reason": "http_error", "message": "HTTP 500"})
    job.job_finished()
    commit_events(store, "j1", job.events[told:])

    (case,) = store.case_results()
    assert (case["status"], case["reason"], case["message"]) == ("failed", "http_error", "HTTP 500")
    assert (case["rounds"], case["requests"], case["failed"]) == (3, 9, 1)


def test_the_same_case_asked_for_twice_stays_two(tmp_path: Path) -> None:
    job = JobEvents()
    job.job_started(spec("a", "b"))
    store = Store(tmp_path / "bench.duckdb")
    commit_events(store, "j1", job.events)

    assert [case["case_id"] for case in store.case_results()] == ["a", "b"]
