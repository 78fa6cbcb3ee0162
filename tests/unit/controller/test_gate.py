"""Passed, regressed, or nobody knows: over comparisons as `compare` makes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from benchfleet_controller.compare import Rounds, compare
from benchfleet_controller.gate import FAILURES, Gate, Outcome, judge
from fakes.case_results import case

STEADY = (0.999, 1.0, 1.001, 1.0, 1.0)
"""Rounds around 1 that tell differences of a percent."""


def measured(value: float, around: Sequence[float] = STEADY) -> tuple[float, ...]:
    """Rounds around a value, whose mean it is."""
    return tuple(value * one for one in around)


def gate(
    now: Sequence[float] | None, *, metric: str = "ttft_p50_s", limit: float = 0.05, then: Sequence[float] = STEADY,
    fields: dict[str, Any] | None = None, both: dict[str, Any] | None = None,
) -> Gate:  # fmt: skip
    """A run against an older one: one metric of one case by round; None: unmeasured now."""
    cases = [
        case(run_id=run, case_id=run, **{metric: values and float(np.mean(values))} | (both or {}) | more)
        for run, values, more in (("old", then, {}), ("new", now, fields or {}))
    ]  # fmt: skip
    rounds = {
        (metric, run): Rounds(np.array(values), np.ones(len(values)))
        for run, values in (("old", then), ("new", now))
        if values is not None
    }
    return judge(compare(cases, ("run",), "old", [metric], rounds), limit)


@pytest.mark.parametrize(
    ("metric", "now", "expected"),
    [
        ("ttft_p50_s", measured(1.0), Outcome.PASSED),
        ("ttft_p50_s", measured(0.5), Outcome.PASSED),
        ("ttft_p50_s", measured(1.2), Outcome.REGRESSED),
        ("ttft_p50_s", measured(1.04), Outcome.PASSED),  # worse beyond the threshold of verdicts, and within the limit
        ("ttft_p50_s", (0.9, 1.2, 1.0, 1.1, 0.95), Outcome.UNDECIDED),
        ("decode_tokens_per_s", measured(0.8), Outcome.REGRESSED),
        ("decode_tokens_per_s", measured(1.3), Outcome.PASSED),
        ("decode_tokens_per_s", (0.85, 1.0, 0.95, 1.05, 0.97), Outcome.UNDECIDED),
    ],
)
def test_a_metric_at_the_gate(metric: str, now: Sequence[float], expected: Outcome) -> None:
    assert gate(now, metric=metric).outcome is expected


@pytest.mark.parametrize("now", [1.0, 1.5])
def test_too_few_rounds_pass_nothing_and_refuse_nothing(now: float) -> None:
    found = gate(measured(now, STEADY[:2]), then=STEADY[:2])
    assert found.outcome is Outcome.UNDECIDED
    assert found.judged[0].why.startswith("too few rounds")


def test_what_vanished_is_missed_also_where_another_case_looks_alike() -> None:
    old = [case(run_id="old", case_id=path, path=path, ttft_p50_s=1.0) for path in ("http", "direct")]
    gone = [
        case(
            run_id="new", case_id=f"new-{path}", path=path, status="failed", requests=0, failed=0, reason="load_failed"
        )
        for path in ("http", "direct")
    ]
    found = judge(compare([*old, *gone], ("run",), "old", ["ttft_p50_s"]), 0.05)
    assert [(one.what, one.outcome) for one in found.judged] == [("everything", Outcome.UNDECIDED)] * 2


def test_a_percentile_of_too_few_values_passes_nothing() -> None:
    found = gate(STEADY, metric="e2e_p95_s", both={"e2e_n": 12})
    assert found.outcome is Outcome.UNDECIDED
    assert found.judged[0].why.startswith("too few values")


def test_a_verdict_that_the_rank_test_withdrew_decides_nothing() -> None:
    near = [1.0 - 0.0001 * n for n in range(12)]
    found = gate([*(2 * one for one in near[:7]), *(0.9 * one for one in near[:5])], then=near)
    assert found.outcome is Outcome.UNDECIDED


def test_one_bad_metric_of_many_is_found_and_none_is_invented() -> None:
    metrics = [f"{name}_p50_s" for name in ("ttft", "e2e")]
    cases = [
        case(run_id=run, case_id=run, ttft_p50_s=1.0, e2e_p50_s=value) for run, value in (("old", 1.0), ("new", 2.0))
    ]
    rounds = {
        (metric, one["case_id"]): Rounds(np.array(measured(one[metric])), np.ones(5))
        for metric in metrics
        for one in cases
    }
    found = judge(compare(cases, ("run",), "old", metrics, rounds), 0.05)
    assert found.outcome is Outcome.REGRESSED
    assert [(one.what, one.outcome) for one in found.judged] == [
        ("ttft_p50_s", Outcome.PASSED), ("e2e_p50_s", Outcome.REGRESSED),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "expected", "what"),
    [
        ({"status": "failed", "requests": 0, "reason": "load_failed"}, Outcome.UNDECIDED, "everything"),
        ({"status": "skipped", "requests": 0}, Outcome.UNDECIDED, "everything"),
        ({"status": "failed", "failed": 40}, Outcome.REGRESSED, FAILURES),
        ({"status": "failed", "failed": 38}, Outcome.REGRESSED, FAILURES),
        ({"failed": 3}, Outcome.UNDECIDED, FAILURES),
        ({"failed": 1}, Outcome.PASSED, FAILURES),
        ({"model_asked": "other"}, Outcome.UNDECIDED, "everything"),
        ({"device_proof": "contradicted", "device_evidence": ["busy"]}, Outcome.UNDECIDED, "ttft_p50_s"),
    ],
)
def test_what_vanished_or_failed_does_not_pass(fields: dict[str, Any], expected: Outcome, what: str) -> None:
    found = gate(STEADY, fields=fields)
    assert found.outcome is expected
    assert found.judged[0].what == what
    assert found.judged[0].outcome is expected


def test_what_the_baseline_never_ran_is_told_once() -> None:
    cases = [case(run_id="old"), case(run_id="new"), case("big", run_id="new")]
    found = judge(compare(cases, ("run",), "old", ["ttft_p50_s", "e2e_p50_s"]), 0.05)
    (one,) = (one for one in found.judged if one.what == "everything")
    assert (one.outcome, one.case) == (Outcome.UNDECIDED, "a big cpu foundry default ×1")


def test_what_neither_side_measured_is_left_out_and_what_one_lacks_is_not() -> None:
    assert gate(None).outcome is Outcome.UNDECIDED
    assert gate(None).judged[0].why == "unmeasured here"
    neither = compare([case(run_id=run, case_id=run) for run in ("a", "b")], ("run",), "a", ["vram_peak_bytes"])
    assert judge(neither, 0.05).judged == ()
    assert judge(neither, 0.05).outcome is Outcome.UNDECIDED  # nothing was compared


def test_a_judgement_names_the_case_the_change_and_what_could_be_told() -> None:
    (one,) = gate(measured(0.8), metric="decode_tokens_per_s").judged
    assert one.case == "a tiny cpu foundry default ×1"
    assert one.why.startswith("20.0% worse (")
    assert "detectable: 0." in one.why
    (better,) = gate(measured(0.8)).judged
    assert better.why.startswith("20.0% better (")
