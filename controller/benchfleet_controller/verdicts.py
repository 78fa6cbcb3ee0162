"""From intervals to verdicts, over all rows of a comparison at once. Pure.

Each verdict of better, worse or different is one more chance to be wrong, so it takes an interval that holds together
with all others of the comparison (Bonferroni: 5 % divided by their number) and lies wholly beyond the threshold. A rank
test over the same rounds, corrected likewise (Holm), must agree wherever there are rounds enough for it to be able to.
"The same" is a claim of its own and takes the 95 % interval of its row.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from benchfleet_controller import metrics as registry
from benchfleet_controller import stats
from benchfleet_controller.compared import FEWEST_ROUNDS, SIGNIFICANCE, THRESHOLD, Compared, Verdict

MOST_ROUNDS_ADVISED = 1000


def decided(rows: Sequence[Compared]) -> list[Compared]:
    """The rows with verdicts for those that carry one (`Compared.sound`), and advice for those that do not."""
    tried = [row for row in rows if row.sound and row.error is not None and row.p_value is not None]
    corrected = dict(zip(map(id, tried), stats.holm([row.p_value or 0.0 for row in tried]), strict=True))
    level = SIGNIFICANCE / max(1, len(tried))
    found = []
    for row in rows:
        if id(row) in corrected:
            judged = _with_verdict(dataclasses.replace(row, level=level, p_value=corrected[id(row)]), len(tried))
        else:
            judged = dataclasses.replace(row, p_value=None)
        found.append(_with_advice(judged))
    return found


def _with_verdict(row: Compared, comparisons: int) -> Compared:
    alone, joint = row.interval_at(SIGNIFICANCE), row.joint
    assert alone is not None
    assert joint is not None
    if alone.low >= 1 - THRESHOLD and alone.high <= 1 + THRESHOLD:
        return dataclasses.replace(row, verdict=Verdict.SAME, why="")
    if not _beyond(joint):
        why = f"the interval reaches over the {THRESHOLD:.0%} threshold"
        if _beyond(alone):
            why = f"beyond the threshold, but not surely so among {comparisons} comparisons"
        return dataclasses.replace(row, verdict=Verdict.INCONCLUSIVE, why=why)
    if row.rank_denies:
        why = f"a rank test over the rounds does not agree (p = {row.p_value:.2g}, of {comparisons} comparisons)"
        return dataclasses.replace(row, verdict=Verdict.INCONCLUSIVE, why=why, sound=False)
    better = registry.BY_NAME[row.metric].better
    if better is registry.Better.NONE:
        return dataclasses.replace(row, verdict=Verdict.DIFFERENT, why="")
    improved = (joint.high < 1) == (better is registry.Better.LOWER)
    return dataclasses.replace(row, verdict=Verdict.BETTER if improved else Verdict.WORSE, why="")


def _beyond(interval: stats.Interval) -> bool:
    return interval.high < 1 - THRESHOLD or interval.low > 1 + THRESHOLD


def _with_advice(row: Compared) -> Compared:
    """How many rounds more would do, where that can be said."""
    if row.verdict is not Verdict.INCONCLUSIVE:
        return row
    more = max(_missing_rounds(row), _rounds_to_decide(row) or 0)
    if not 0 < more <= MOST_ROUNDS_ADVISED:
        return row
    row = dataclasses.replace(row, more_rounds=more)
    if more <= FEWEST_ROUNDS - min(row.rounds, row.baseline_rounds):
        return row  # the reason says as much
    what = "run" if registry.BY_NAME[row.metric].by_round is None else "round"
    would = "would decide" if row.sound else "would be enough"
    return dataclasses.replace(row, advice=f"about {more} more {what}{'s' * (more > 1)} on each side {would}")


def _missing_rounds(row: Compared) -> int:
    """How many rounds more until there are `FEWEST_ROUNDS`, and values enough for a percentile, on both sides."""
    more = FEWEST_ROUNDS - min(row.rounds, row.baseline_rounds)
    quantile = registry.BY_NAME[row.metric].quantile
    if quantile is not None:
        needed = stats.fewest_for_percentile(quantile)
        for n, rounds in ((row.n, row.rounds), (row.baseline_n, row.baseline_rounds)):
            if n and rounds:
                more = max(more, math.ceil((needed - n) / (n / rounds)))
    return max(0, more)


def _rounds_to_decide(row: Compared) -> int | None:
    """How many would narrow the interval until it leaves the threshold on one side or the other."""
    if row.error is None or row.level is None or not row.ratio:
        return None
    away = abs(math.log(row.ratio))
    edge = math.log1p(THRESHOLD) if row.ratio > 1 else -math.log1p(-THRESHOLD)
    return row.error.rounds_until(abs(away - edge), SIGNIFICANCE if away < edge else row.level, MOST_ROUNDS_ADVISED)
