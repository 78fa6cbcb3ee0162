"""The regression gate: does a comparison let a change pass? Pure.

A change passes when every compared metric is surely not worse than the baseline by more than the limit; it has
regressed when one surely is; else nobody knows, which is an answer of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from benchfleet_controller import metrics as registry
from benchfleet_controller.compare import Compared, Comparison, Verdict


class Outcome(StrEnum):
    """What the gate says, of one metric or of all."""

    PASSED = "passed"
    REGRESSED = "regressed"
    UNDECIDED = "undecided"
    """The interval reaches over the limit, or the two sides cannot be compared."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One metric of one group at the gate."""

    row: Compared
    outcome: Outcome
    why: str
    """For people, with numbers."""


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
    """Hold each compared metric that has a better side against the limit (0.05: worse by 5 % at most)."""
    return Gate(limit_ratio, tuple(_judged(comparison, limit_ratio)))


def _judged(comparison: Comparison, limit: float) -> Iterator[Judged]:
    for row in comparison.rows:
        better = registry.BY_NAME[row.metric].better
        if row.verdict is Verdict.BASELINE or better is registry.Better.NONE:
            continue
        if row.ratio is None or row.low is None or row.high is None or row.verdict is Verdict.NOT_COMPARABLE:
            yield Judged(row, Outcome.UNDECIDED, row.why or "there is no interval")
            continue
        # How much worse, as a share of the baseline: the ends of the interval and the middle.
        if better is registry.Better.LOWER:
            least, likely, most = row.low - 1, row.ratio - 1, row.high - 1
        else:
            least, likely, most = 1 - row.high, 1 - row.ratio, 1 - row.low
        said = f"worse by {likely:+.1%} ({least:+.1%} to {most:+.1%})"
        if most <= limit:
            yield Judged(row, Outcome.PASSED, said)
        elif least > limit:
            yield Judged(row, Outcome.REGRESSED, said)
        else:
            half = row.detectable_ratio or 0.0
            yield Judged(row, Outcome.UNDECIDED, f"{said}; these rounds tell differences of {half:.1%} and more")
