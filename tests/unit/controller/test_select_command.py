"""What `select` says of a real database: the decision, its evidence, and what is missing."""

from __future__ import annotations

import argparse
import csv
import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from benchfleet_controller.commands import UsageError
from benchfleet_controller.commands.selecting import select_command
from benchfleet_controller.plan import HostTarget, ModelFacts, Plan, expand
from benchfleet_controller.selection_limits import LIMIT_OPTIONS
from benchfleet_controller.store import Store
from fakes.events import JobEvents, commit_events, ok_request

MIB = 1 << 20
FACTS = (ModelFacts("quick", ("chat", "summarization")), ModelFacts("slow", ("chat",), 5_000_000))
MODELS: dict[str, dict[str, Any]] = {
    "quick": {"license": "apache-2.0", "size_bytes": 90_000_000},
    "slow": {"license": "MIT"},
    "gated": {"license": "gemma", "size_bytes": 80_000_000},
}
TTFT_S = {"quick": 0.1, "slow": 0.2, "gated": 0.05}
NAMES = {model: f"{model} on lab (cpu, 1 in flight)" for model in MODELS}


def lab(path: Path, rounds: int = 4, per_round: int = 5, run_id: str = "r1", day: int = 1) -> Store:
    """Three models on one host; ``gated`` is the fastest, ``slow`` takes twice as long as ``quick``."""
    plan = Plan("lab", (HostTarget("lab", "lab:1"),), tuple(MODELS), rounds=rounds, model_facts=FACTS)
    ids = iter(range(100))
    (job,) = expand(plan, lambda: f"{run_id}-{next(ids)}")
    store = Store(path / "bench.duckdb")
    store.record_run(run_id, plan, (job,), held_by="me@here", created_at=datetime(2026, 1, day, tzinfo=UTC))
    events = JobEvents(job.job_id)
    events.job_started(job.to_proto(plan, run_id, "me@here"))
    for one in job.cases:
        described = {"alias": one.model, "variant": f"{one.model}-cpu:1", "execution_provider": "CPUExecutionProvider"}
        events.case_started(one.case_id, **(described | MODELS[one.model]))
        events.samples(one.case_id, "", "loaded", [0.0], runtime_rss_bytes=[200 * MIB])
        for index in range(rounds):
            answers = []
            for n in range(per_round):
                ttft = TTFT_S[one.model] * (1 + 0.01 * ((index + n) % 3))
                offsets = [ttft + 0.1 * ttft * k for k in range(5)]
                answers.append(ok_request(f"{one.case_id}-{index}-{n}", 10 * index, offsets, 10 * index + 2 * ttft))
            events.round(one.case_id, f"{one.case_id}-{index}", index, 10 * index, 10 * index + 9, answers)
        events.case_finished(one.case_id)
    events.job_finished()
    commit_events(store, job.job_id, events.events)
    return store


def run(store: Store, capsys: pytest.CaptureFixture[str], *runs: str, **options: Any) -> tuple[int, str]:
    """`select` with these options; its exit code and what it printed."""
    given: dict[str, Any] = dict.fromkeys(LIMIT_OPTIONS)
    given |= {"db": store.path, "run": list(runs), "models": None, "where": [], "prefer": "latency", "format": "table"}
    code = select_command(argparse.Namespace(**(given | options)))
    return code, capsys.readouterr().out


def test_a_choice_is_told_with_its_reasons_and_its_uncertainty(tmp_path: Path, capsys: Any) -> None:
    code, out = run(lab(tmp_path), capsys, max_ttft_p95="500ms", max_ram="1GiB", license=["mit,Apache 2.0"])
    assert code == 0
    take = next(line for line in out.splitlines() if line.startswith("Take "))
    assert take.startswith(
        f"Take {NAMES['quick']}, the best by latency p95 of 2 that surely pass: TTFT p95 0.102 s (limit 0.5 s)"
    )
    assert "RAM 200 MiB (limit 1 GiB), apache-2.0, latency p95 0.204 s" in take
    runner_up = next(line for line in out.splitlines() if line.startswith("Runner-up "))
    assert runner_up.startswith(f"Runner-up {NAMES['slow']} has 2.00× the latency p95 (")
    assert runner_up.endswith(", sure).")
    assert "Based on 20 requests in 4 rounds." in out


def test_the_table_has_a_verdict_and_a_place_on_the_front_for_each_candidate(tmp_path: Path, capsys: Any) -> None:
    _, out = run(lab(tmp_path), capsys, license=["mit,apache-2.0"], max_disk="1GB")
    rows = {line.split("  ")[1]: line for line in out.splitlines()[1:4]}
    assert set(rows) == set(NAMES.values())
    assert "pass" in rows[NAMES["quick"]]
    assert "fail: licence" in rows[NAMES["gated"]]
    assert rows[NAMES["quick"]].endswith("front")  # faster than slow, which is smaller
    assert f"{NAMES['gated']}: fail: licence gemma" in out
    assert "sizes that runtimes do not tell are as told by the models.json of the run" in out


def test_too_few_requests_make_a_choice_a_guess_that_says_what_is_missing(tmp_path: Path, capsys: Any) -> None:
    code, out = run(lab(tmp_path, rounds=3, per_round=4), capsys, max_ttft_p95="0.5", license=["apache-2.0"])
    assert code == 0
    assert "Nothing surely passes all limits." in out
    assert f"The most promising is {NAMES['quick']}" in out
    assert "What is missing: TTFT p95: 20 requests are needed, 12 were measured: --rounds 5." in out
    assert "0.102*" in out
    assert "* n is too small for this percentile." in out


def test_when_nothing_passes_the_exit_code_says_so_and_the_nearest_is_told(tmp_path: Path, capsys: Any) -> None:
    code, out = run(lab(tmp_path), capsys, max_ttft_p95="20ms")
    assert code == 1
    assert "Nothing passes all limits." in out
    assert f"Nearest is {NAMES['gated']}: TTFT p95 0.051 s, 155% over 0.02 s (" in out
    assert "Take" not in out


def test_capabilities_come_from_the_run_or_from_a_file(tmp_path: Path, capsys: Any) -> None:
    store = lab(tmp_path)
    _, out = run(store, capsys, capability=["chat", "summarization"], format="json")
    verdicts = {one["model"]: (one["verdict"], one["reasons"]) for one in json.loads(out)["candidates"]}
    assert verdicts["quick"] == ("pass", [])
    assert verdicts["slow"] == ("fail", ["lacks summarization"])
    assert verdicts["gated"][1] == ["capabilities unknown: no models.json tells them (--models)"]
    assert "capabilities are as told by the models.json of the run, not measured" in json.loads(out)["notes"]
    other = tmp_path / "models.json"
    other.write_text('{"gated": {"capabilities": ["code"]}}')
    code, out = run(store, capsys, capability=["code"], models=other)
    assert code == 0
    assert f"Take {NAMES['gated']}, the only one that surely passes: code, latency" in out


def test_quality_that_nobody_measured_fails_honestly(tmp_path: Path, capsys: Any) -> None:
    code, out = run(lab(tmp_path), capsys, min_quality="0.8")
    assert code == 1
    assert "quality unmeasured: no answer was scored; `benchfleet score RUN --expected FILE`" in out


def test_json_has_base_units_intervals_and_the_recommendation(tmp_path: Path, capsys: Any) -> None:
    _, out = run(
        lab(tmp_path),
        capsys,
        "r1",
        max_latency_p95="500ms",
        max_ram="1GiB",
        license=["mit", "apache-2.0"],
        format="json",
    )
    found = json.loads(out)
    assert found["limits"] == [
        {"option": "--max-latency-p95", "metric": "e2e_p95_s", "at_most": 0.5},
        {"option": "--max-ram", "metric": "ram_peak_bytes", "at_most": 1 << 30},
        {"option": "--license", "metric": "license", "one_of": ["mit", "apache-2.0"]},
    ]
    assert [one["name"] for one in found["candidates"]] == [NAMES["quick"], NAMES["slow"], NAMES["gated"]]
    quick = found["candidates"][0]
    latency = quick["limits"][0]
    assert (latency["outcome"], latency["n"], latency["value"]) == ("pass", 20, quick["e2e_p95_s"])
    assert latency["interval"] == quick["intervals"]["e2e_p95_s"]
    assert latency["interval"][0] <= latency["value"] <= latency["interval"][1] < 0.5
    assert latency["excess_ratio"] == pytest.approx(latency["value"] / 0.5 - 1)
    assert (quick["ram_peak_bytes"], quick["vram_peak_bytes"], quick["size_source"]) == (200 * MIB, None, "runtime")
    assert found["front"] == [NAMES["quick"], NAMES["slow"]]
    recommended = found["recommendation"]
    assert (recommended["candidate"], recommended["sure"], recommended["missing"]) == (NAMES["quick"], True, [])
    assert recommended["runner_up"]["candidate"] == NAMES["slow"]
    assert recommended["runner_up"]["ratio"] == pytest.approx(2.0)
    assert recommended["runner_up"]["sure"] is True
    assert recommended["text"].startswith("Take quick")
    assert found["warnings"] == [] or {"code", "subject", "message", "advice"} == set(found["warnings"][0])


def test_csv_and_markdown_are_tables_too(tmp_path: Path, capsys: Any) -> None:
    store = lab(tmp_path)
    _, out = run(store, capsys, format="csv", license=["mit"])
    rows = list(csv.DictReader(io.StringIO(out)))
    assert (rows[0]["name"], rows[0]["verdict"]) == (NAMES["slow"], "pass")
    assert float(rows[0]["size_bytes"]) == 5_000_000
    _, out = run(store, capsys, format="md", license=["mit"])
    assert out.startswith("| # | Candidate | Verdict |")
    assert f"\n\n- Take {NAMES['slow']}" in out or f"\n- Take {NAMES['slow']}" in out


def test_several_runs_are_put_together_and_the_newest_measurement_counts(tmp_path: Path, capsys: Any) -> None:
    store = lab(tmp_path)
    lab(tmp_path, run_id="r2", day=2)
    _, out = run(store, capsys, "r1", "r2", "r1", format="json")
    found = json.loads(out)
    assert [one["run_ids"] for one in found["candidates"]] == [["r2"]] * 3
    assert any("the newest counts, 1 older left out" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_ram": "2G"}, "--max-ram takes a number above 0 such as 2GiB"),
        ({"prefer": "quality"}, "quality was measured for nothing that could be chosen"),
        ({"models": Path("nowhere.json")}, "nowhere.json cannot be read"),
    ],
)
def test_wrong_usage_is_told_in_a_line(tmp_path: Path, capsys: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run(lab(tmp_path), capsys, **options)
