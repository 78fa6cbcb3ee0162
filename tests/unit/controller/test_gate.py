"""Passed, regressed, or nobody knows."""

from __future__ import annotations

from typing import Any

import pytest

from benchfleet_controller.compare import Compared, Comparison, Verdict
from benchfleet_controller.gate import Outcome, judge


def row(
    metric: str = "ttft_p50_s", ratio: float | None = 1.0, low: float | None = 0.99, high: float | None = 1.01,
    verdict: Verdict = Verdict.SAME, why: str = "",
) -> Compared:  # fmt: skip
    return Compared({}, "b", metric, "s", 1.0, 40, 5, ratio, low, high, verdict, why, ())


def outcome(*rows: Compared, limit: float = 0.05) -> Outcome:
    return judge(Comparison(("host",), "a", rows), limit).outcome


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"ratio": 1.0, "low": 0.98, "high": 1.02}, Outcome.PASSED),
        ({"ratio": 0.5, "low": 0.4, "high": 0.6}, Outcome.PASSED),
        ({"ratio": 1.2, "low": 1.1, "high": 1.3}, Outcome.REGRESSED),
        ({"ratio": 1.03, "low": 0.95, "high": 1.1}, Outcome.UNDECIDED),
        ({"metric": "decode_tokens_per_s", "ratio": 0.8, "low": 0.75, "high": 0.85}, Outcome.REGRESSED),
        ({"metric": "decode_tokens_per_s", "ratio": 1.3, "low": 1.2, "high": 1.4}, Outcome.PASSED),
        ({"metric": "decode_tokens_per_s", "ratio": 0.97, "low": 0.9, "high": 1.0}, Outcome.UNDECIDED),
        ({"low": None, "high": None, "verdict": Verdict.INCONCLUSIVE, "why": "too few rounds"}, Outcome.UNDECIDED),
        ({"verdict": Verdict.NOT_COMPARABLE, "why": "variant"}, Outcome.UNDECIDED),
    ],
)
def test_a_metric_at_the_gate(fields: dict[str, Any], expected: Outcome) -> None:
    assert outcome(row(**fields)) is expected


def test_a_regression_outweighs_doubt_and_doubt_a_pass() -> None:
    fine, bad = row(), row(ratio=1.5, low=1.4, high=1.6)
    unsure = row(ratio=1.04, low=0.9, high=1.2)
    assert outcome(fine, unsure, bad) is Outcome.REGRESSED
    assert outcome(fine, unsure) is Outcome.UNDECIDED
    assert outcome() is Outcome.UNDECIDED
    assert outcome(row(metric="cpu_busy_ratio", ratio=9.0, low=8.0, high=9.5), fine) is Outcome.PASSED


def test_every_judgement_says_by_how_much_and_what_could_be_told() -> None:
    (one,) = judge(Comparison(("host",), "a", (row(ratio=1.04, low=0.9, high=1.2),)), 0.05).judged
    assert one.why == "worse by +4.0% (-10.0% to +20.0%); these rounds tell differences of 15.0% and more"
