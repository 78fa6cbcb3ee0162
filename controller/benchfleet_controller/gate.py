"""The regression gate: does a comparison let a change pass? Pure.

A change passes when every compared metric is surely not worse than the baseline by more than the limit, and everything
the baseline ran has a result here; it has regressed when one metric is surely worse, or surely more requests fail; else
nobody knows, which is an answer of its own.

Surely worse: the joint interval lies beyond the limit, so that a comparison of many metrics cries wolf no more often
than one of a single metric. Surely not worse: the metric's own 95 % interval lies within the limit, since all have to.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from benchfleet_controller import metrics as registry
from benchfleet_controller.compared import SIGNIFICANCE, Compared, Comparison, Verdict

FAILURES = "failed requests"
"""What is judged beside the metrics: the share of requests that failed."""


class Outcome(StrEnum):
    """What the gate says, of one metric or of all."""

    PASSED = "passed"
    REGRESSED = "regressed"
    UNDECIDED = "undecided"
    """The interval reaches over the limit, there is too little to tell, or the two sides cannot be compared."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One metric of one case at the gate."""

    row: Compared
    what: str
    """The metric's name, or `FAILURES`."""
    outcome: Outcome
    why: str
    """For people, with numbers."""

    @property
    def case(self) -> str:
        """What was compared, for people: what was held equal."""
        load = self.row.conditions
        parts = [load.get(key) for key in ("host", "model", "device", "runtime", "prompt_set")]
        rate, concurrency = load.get("request_rate_per_s"), load.get("concurrency")
        shape = "" if concurrency is None else f"×{concurrency}" if rate is None else f"{rate:g}/s ×{concurrency}"
        return " ".join(str(part) for part in (*parts, shape) if part)


@dataclass(frozen=True, slots=True)
class Gate:
    """All of them, and what they come to."""

    limit_ratio: float
    judged: tuple[Judged, ...]

    @property
    def outcome(self) -> Outcome:
        """Regressed when anything is, undecided when anything is or nothing was compared, else passed."""
        outcomes = {one.outcome for one in self.judged}
        if Outcome.REGRESSED in outcomes:
            return Outcome.REGRESSED
        return Outcome.PASSED if outcomes == {Outcome.PASSED} else Outcome.UNDECIDED


def judge(comparison: Comparison, limit_ratio: float) -> Gate:
    """Hold each compared metric that has a better side against the limit (0.05: worse by 5 % at most).

    What neither side measured is left out. Failures and what is missing are judged once a case, whatever the metrics.
    """
    return Gate(limit_ratio, tuple(_judged(comparison, limit_ratio)))


def _judged(comparison: Comparison, limit: float) -> Iterator[Judged]:
    told: set[tuple[str, int]] = set()
    for row in comparison.rows:
        if row.verdict is Verdict.BASELINE:
            continue
        case = (row.group, row.stratum)
        if case not in told:
            told.add(case)
            yield from _failures(row, limit)
            if row.missing or row.failures is None:
                yield Judged(row, "everything", Outcome.UNDECIDED, row.why)
        if row.missing or row.failures is None or registry.BY_NAME[row.metric].better is registry.Better.NONE:
            continue
        if row.value is not None or row.baseline_value is not None:
            yield Judged(row, row.metric, *_of_metric(row, limit))


def _failures(row: Compared, limit: float) -> Iterator[Judged]:
    failures = row.failures
    if failures is None or failures.rise <= 0:
        return
    outcome = Outcome.PASSED
    if failures.rise > limit:
        outcome = Outcome.REGRESSED if failures.least_rise > limit else Outcome.UNDECIDED
    yield Judged(row, FAILURES, outcome, str(failures))


def _of_metric(row: Compared, limit: float) -> tuple[Outcome, str]:
    if row.verdict is Verdict.SAME and row.ratio is None:
        return Outcome.PASSED, "0 on both sides"
    alone, joint = row.interval_at(SIGNIFICANCE), row.joint
    if not row.sound or row.ratio is None or alone is None or joint is None:
        return Outcome.UNDECIDED, row.explanation or "there is no interval"
    sign = 1 if registry.BY_NAME[row.metric].better is registry.Better.LOWER else -1
    least, most = sorted(sign * (end - 1) for end in (joint.low, joint.high))
    said = (
        f"{_worse(sign * (row.ratio - 1))} ({_worse(least)} to {_worse(most)}); detectable: {row.detectable_ratio:.1%}"
    )
    if max(sign * (end - 1) for end in (alone.low, alone.high)) <= limit:
        return Outcome.PASSED, said
    if least <= limit:
        return Outcome.UNDECIDED, "; ".join(part for part in (said, row.advice) if part)
    if row.rank_denies:
        return Outcome.UNDECIDED, f"{said}; a rank test over the rounds does not agree (p = {row.p_value:.2g})"
    return Outcome.REGRESSED, said


def _worse(share: float) -> str:
    return f"{abs(share):.1%} {'worse' if share > 0 else 'better'}" if round(share, 3) else "0.0%"
