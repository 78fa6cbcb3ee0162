"""What a comparison comes to: the words and the rows of its result. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from benchfleet_controller import stats
from benchfleet_controller.comparability import Failures
from benchfleet_controller.ratio_error import RatioError

THRESHOLD = 0.03
"""Smaller differences are called the same: 3 %, about what two runs of one case differ by on a quiet machine."""
FEWEST_ROUNDS = 3
SIGNIFICANCE = 0.05
"""How often chance may give any verdict of a whole comparison that is not so."""


class Verdict(StrEnum):
    """What a comparison with the baseline says."""

    BASELINE = "baseline"
    BETTER = "better"
    WORSE = "worse"
    SAME = "same"
    """The whole interval lies within the threshold."""
    DIFFERENT = "different"
    """Clearly another value, of a metric where neither way is better."""
    INCONCLUSIVE = "inconclusive"
    NOT_COMPARABLE = "not_comparable"


@dataclass(frozen=True, slots=True)
class Rounds:
    """A case's metric by round: arrays of equal length (NaN: unmeasured) and what each value weighs."""

    values: npt.NDArray[np.float64]
    weights: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Compared:
    """One metric of one group against the baseline of its stratum."""

    conditions: Mapping[str, Any]
    """What is held equal in the stratum, by name; only what varies or matters to people."""
    group: str
    metric: str
    unit: str
    value: float | None
    n: int
    """Requests behind the value."""
    rounds: int
    ratio: float | None
    low: float | None
    """Lower end of the 95 % interval of the ratio, of this row alone; None: too few rounds for one."""
    high: float | None
    verdict: Verdict
    why: str
    """Why inconclusive or not comparable; empty otherwise."""
    flags: tuple[str, ...]
    """Conditions that differ from the baseline's but do not forbid the comparison."""
    stratum: int = 0
    """Which of the comparison's strata the row belongs to: conditions that people see can be the same in several."""
    baseline_value: float | None = None
    baseline_rounds: int = 0
    baseline_n: int = 0
    error: RatioError | None = None
    """How far chance moves the ratio; None: unknown."""
    sound: bool = False
    """Whether there is enough to decide by: rounds, runs, values for a percentile, and a rank test that agrees."""
    level: float | None = None
    """This row's part of `SIGNIFICANCE`: how often its joint interval may miss the truth."""
    p_value: float | None = None
    """Of a rank test over rounds, corrected for the number of comparisons (Holm); None: nothing to test."""
    more_rounds: int | None = None
    """About how many rounds more on each side would decide, when inconclusive; None: cannot be said."""
    advice: str = ""
    """What would help to decide, when inconclusive; empty: nothing that can be said."""
    failures: Failures | None = None
    """Requests that failed on each side; None: there is no baseline."""
    missing: bool = False
    """Whether the baseline ran this and the group did not, or nothing of it succeeded."""

    @property
    def explanation(self) -> str:
        """Why, and what would help."""
        return "; ".join(part for part in (self.why, self.advice) if part)

    @property
    def testable(self) -> bool:
        """Whether there are rounds enough for a rank test to find anything among so many comparisons."""
        return self.level is not None and stats.smallest_p(self.rounds, self.baseline_rounds) < self.level

    @property
    def rank_denies(self) -> bool:
        """Whether the rank test could have agreed that there is a difference, and does not."""
        return self.testable and self.p_value is not None and self.p_value >= SIGNIFICANCE

    def interval_at(self, level: float) -> stats.Interval | None:
        """Where the ratio lies but for a chance of ``level``: what a t test over rounds says, and never less than the
        95 % interval; None: unknown.
        """
        if self.ratio is None or self.low is None or self.high is None or self.error is None:
            return None
        found = self.error.interval(self.ratio, level)
        return stats.Interval(min(found.low, self.low), max(found.high, self.high))

    @property
    def joint(self) -> stats.Interval | None:
        """The interval verdicts rest on: of all those of a comparison together, 95 % hold every truth (Bonferroni)."""
        return None if self.level is None else self.interval_at(self.level)

    @property
    def detectable_ratio(self) -> float | None:
        """The smallest true difference from the baseline, as a share of it, that four of five such measurements would
        tell from none (80 % power), at 5 % over the whole comparison; None: unknown.
        """
        return None if self.error is None or self.level is None else self.error.detectable(self.level)


@dataclass(frozen=True, slots=True)
class Comparison:
    """All of one comparison, in the order of strata, metrics and groups."""

    by: tuple[str, ...]
    baseline: str
    rows: tuple[Compared, ...]

    @property
    def decidable(self) -> int:
        """The number of comparisons that a verdict was sought of, by which its sureness is corrected."""
        return sum(row.level is not None for row in self.rows)
