"""`compare`, its gate and `baseline`, over a real database."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from benchfleet_controller.cli import main
from benchfleet_controller.store import Store
from fakes.events import JobEvents, commit_events, ok_request, spec

Run = Callable[..., tuple[int, str, str]]


def _measured(store: Store, run_id: str, ttft_s: float, models: Sequence[str] = ("tiny",), failed: str = "") -> None:
    """A run of models with 4 rounds of 5 requests; ``failed`` is one that does not load."""
    job = JobEvents(f"j-{run_id}")
    asked = spec(*(f"{run_id}-{model}" for model in models), run_id=run_id)
    for case, model in zip(asked.cases, models, strict=True):
        case.model = model
    job.job_started(asked)
    for case in asked.cases:
        if case.model == failed:
            job.case_finished(case.case_id, "failed")
            continue
        job.case_started(case.case_id, alias=case.model, variant=f"{case.model}:1")
        job.loaded(case.case_id)
        for index in range(4):
            start_s, name = 10.0 * index, f"{case.case_id}-{index}"
            first = ttft_s * (1 + 0.001 * index)
            answers = [ok_request(f"{name}-{n}", start_s, [first, first + 0.1], start_s + 2 * first) for n in range(5)]
            job.round(case.case_id, name, index, start_s, start_s + 5, answers)
        job.case_finished(case.case_id)
    job.job_finished()
    commit_events(store, job.job_id, job.events)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs old, slow (half as fast) and broken (one of two models does not load), oldest first."""
    path = tmp_path_factory.mktemp("compare") / "bench.duckdb"
    store = Store(path)
    _measured(store, "old-run", 0.1, ("tiny", "big"))
    _measured(store, "slow-run", 0.2, ("tiny", "big"))
    _measured(store, "broken-run", 0.1, ("tiny", "big"), failed="big")
    return path


@pytest.fixture
def benchfleet(database: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[int, str, str]:
        code = main([*arguments, "--db", str(database)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_the_gate_names_the_case_the_change_and_what_it_could_tell(benchfleet: Run) -> None:
    code, _, said = benchfleet("compare", "slow-run", "--baseline", "old-run", "--fail-on-regression", "5%")
    assert code == 3
    lines = said.splitlines()
    assert lines[0].startswith("regressed: h1.lab tiny cpu foundry default ×1: e2e_avg_s 0.401 instead of 0.200: 100")
    assert "% worse (" in lines[0]
    assert all("; detectable: " in line for line in lines[:-2])
    assert lines[-2].startswith("detectable: the smallest true change")
    assert lines[-1] == "regressed: limit 5 %; 4 regressed, 4 passed"


def test_a_case_that_no_longer_loads_does_not_pass(benchfleet: Run) -> None:
    code, out, said = benchfleet("compare", "broken-run", "--baseline", "old-run", "--fail-on-regression", "5%")
    assert code == 5
    assert said.startswith(
        "undecided: h1.lab big cpu foundry default ×1: everything: in the baseline, not here: failed"
    )
    assert "not comparable: all: in the baseline, not here: failed" in out


@pytest.mark.parametrize("limit", ["nan", "-1", "5%%", "1000", "inf", "much"])
def test_a_limit_that_is_no_percentage_is_refused_before_anything_is_said(
    benchfleet: Run, capsys: pytest.CaptureFixture[str], limit: str
) -> None:
    code, out, said = benchfleet("compare", "last", f"--fail-on-regression={limit}")
    assert (code, out) == (2, "")
    assert "--fail-on-regression takes a percentage" in said


def test_metrics_that_nothing_measured_are_left_out_unless_asked_for(benchfleet: Run) -> None:
    arguments = ("compare", "slow-run", "--baseline", "old-run", "--format", "json")
    told = {row["metric"] for row in json.loads(benchfleet(*arguments)[1])}
    assert {"e2e_avg_s", "e2e_p95_s", "ttft_p50_s", "ttft_p95_s", "tpot_avg_s", "decode_tokens_per_s", "load_s"} <= told
    assert not {"vram_peak_bytes", "energy_per_token_j", "quality_ratio", "itl_p50_s"} & told
    assert "itl_p50_s" in {row["metric"] for row in json.loads(benchfleet(*arguments, "--metric", "all")[1])}
    code, out, _ = benchfleet("compare", "slow-run", "--baseline", "old-run", "--metric", "vram_peak_bytes")
    assert code == 0
    assert "1.00" not in out


def test_baselines_are_exported_whole_and_replaced_with_a_word(benchfleet: Run, tmp_path: Path) -> None:
    assert benchfleet("baseline", "set", "main", "old-run") == (0, "main: run old-run, 2 cases\n", "")
    said = benchfleet("baseline", "set", "main", "old-run")[2]
    assert said.startswith("replaced the baseline main of ")
    assert "(run old-run, 2 cases)" in said
    target = tmp_path / "main.json"
    assert benchfleet("baseline", "export", "main", "-o", str(target))[0] == 0
    code, _, said = benchfleet("baseline", "export", "main", "-o", str(target))
    assert (code, "use --force" in said) == (2, True)
    assert benchfleet("baseline", "export", "main", "-o", str(target), "--force")[0] == 0
    assert "old-run" not in target.read_text(encoding="utf-8")  # no random id
    assert benchfleet("compare", "old-run", "--baseline", str(target), "--fail-on-regression", "5%")[0] == 0
    assert benchfleet("baseline", "import", str(target))[1] == "main: 2 cases\n"
    code, _, said = benchfleet("compare", "slow-run", "--baseline", "old-rum")
    assert (code, "baselines: main; runs near it: old-run" in said) == (2, True)
