"""Which is better, by how much, and how sure: case results and their rounds in, verdicts out. Pure.

Only like is compared with like: cases are grouped by everything that is not compared (what was *asked*: host, model,
device, runtime, and the conditions: prompt set, concurrency, max_tokens, …); inside each such stratum every group is
set against the baseline. Where nothing of the baseline ran under the same conditions, that is said with what differs.

The interval is a bootstrap over rounds (`stats.ratio_interval`) around the ratio of the two results; a metric with one
value a case has its cases in the place of rounds. A rank test over the same values, corrected for the number of
comparisons, must agree wherever there are rounds enough for it to be able to.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from benchfleet_controller import metrics as registry
from benchfleet_controller import stats
from benchfleet_controller.comparability import differences
from benchfleet_controller.dimensions import CONDITIONS, DIMENSIONS, group_name, nearest, shared_conditions, stratum

Row = Mapping[str, Any]

THRESHOLD = 0.03
"""Smaller differences are called the same: 3 %, about what two runs of one case differ by on a quiet machine."""
FEWEST_ROUNDS = 3
SIGNIFICANCE = 0.05
MOST_ROUNDS_ADVISED = 1000


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


_DECIDED = frozenset({Verdict.BETTER, Verdict.WORSE, Verdict.DIFFERENT})


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
    """Lower end of the 95 % interval of the ratio; None: too few rounds for one."""
    high: float | None
    verdict: Verdict
    why: str
    """Why inconclusive or not comparable; empty otherwise."""
    flags: tuple[str, ...]
    """Conditions that differ from the baseline's but do not forbid the comparison."""
    baseline_rounds: int = 0
    p_value: float | None = None
    """Of a rank test over rounds, corrected for the number of comparisons (Holm); None: nothing to test."""
    more_rounds: int | None = None
    """About how many rounds more on each side would decide, when inconclusive; None: cannot be said."""

    @property
    def testable(self) -> bool:
        """Whether there are rounds enough for a rank test to find anything, were this the only comparison."""
        return stats.smallest_p(self.rounds, self.baseline_rounds) < SIGNIFICANCE

    @property
    def detectable_ratio(self) -> float | None:
        """The smallest difference these rounds can tell, as a share of the baseline: half the interval's width."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


@dataclass(frozen=True, slots=True)
class Comparison:
    """All of one comparison, in the order of strata, metrics and groups."""

    by: tuple[str, ...]
    baseline: str
    rows: tuple[Compared, ...]


@dataclass(slots=True)
class _Group:
    cases: list[Row] = field(default_factory=list)


def compare(
    cases: Sequence[Row],
    by: tuple[str, ...],
    baseline: str | None,
    metrics: Sequence[str],
    rounds: Mapping[tuple[str, str], Rounds] | None = None,
) -> Comparison:
    """Compare succeeded cases (rows of ``case_results``) by one or more dimensions.

    ``rounds`` holds values by (metric, case_id). ``baseline`` is a group's name (values joined by `` / ``), None: the
    first group. Raises ValueError for an unknown dimension, metric or baseline, naming the known ones.
    """
    _known("dimension", by, DIMENSIONS)
    _known("metric", metrics, tuple(registry.BY_NAME))
    used = [
        row for row in cases if row["status"] == "succeeded" or (row.get("requests") or 0) > (row.get("failed") or 0)
    ]
    names = list(dict.fromkeys(group_name(row, by) for row in used))
    if baseline is None:
        baseline = names[0] if names else ""
    elif baseline not in names:
        raise ValueError(f"no {' / '.join(by)} {baseline!r} to compare with; there are: {', '.join(names) or 'none'}")
    strata: dict[tuple[Any, ...], dict[str, _Group]] = {}
    for row in used:
        strata.setdefault(stratum(row, by), {}).setdefault(group_name(row, by), _Group()).cases.append(row)
    found: list[Compared] = []
    for groups in strata.values():
        for metric in metrics:
            for name in names:
                if name in groups:
                    against = groups.get(baseline)
                    why = "" if against else _nearest(groups[name], used, by, baseline)
                    found.append(_compared(groups[name], against, name, by, metric, rounds or {}, why))
    return Comparison(by, baseline, tuple(_tested(found)))


def _compared(
    group: _Group,
    against: _Group | None,
    name: str,
    by: tuple[str, ...],
    metric_name: str,
    rounds: Mapping[tuple[str, str], Rounds],
    why: str,
) -> Compared:
    metric = registry.BY_NAME[metric_name]
    value = _value(group, metric)
    here = _rounds(group, metric_name, rounds)
    flags: tuple[str, ...] = ()
    there = Rounds(np.empty(0), np.empty(0))
    p_value: float | None = None
    ratio: float | None = None
    interval: stats.Interval | None = None
    verdict = Verdict.NOT_COMPARABLE
    if against is group:
        verdict, ratio = Verdict.BASELINE, 1.0 if value is not None else None
    elif against is not None:
        flags, why = differences(group.cases, against.cases, by, metric, CONDITIONS)
        base = _value(against, metric)
        there = _rounds(against, metric_name, rounds)
        if not why and (value is None or base is None):
            why = "unmeasured " + ("here" if value is None else "in the baseline")
            if metric.name in registry.ENERGY_METRICS:
                key = "marginal_reason" if metric.name in registry.MARGINAL_METRICS else "energy_reason"
                reasons = {row.get(key) for row in (group if value is None else against).cases} - {None}
                why = ": ".join([why, *sorted(map(str, reasons))[:1]])
        if not why:
            ratio = stats.ratio(value, base)
            interval = _interval(here, there, ratio, f"{name}\0{metric_name}")
            verdict, why = _verdict(metric, ratio, interval, min(len(here.values), len(there.values)), (group, against))
            p_value = stats.rank_test(here.values, there.values)
    return Compared(
        conditions=shared_conditions(group.cases[0], by),
        group=name,
        metric=metric_name,
        unit=metric.unit,
        value=value,
        n=sum(_n(row, metric) for row in group.cases),
        rounds=len(here.values),
        ratio=ratio,
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        verdict=verdict,
        why=why,
        flags=flags,
        baseline_rounds=len(there.values),
        p_value=p_value,
    )


def _tested(rows: list[Compared]) -> list[Compared]:
    """The rows with p-values corrected for their number; a verdict that the rank test denies is withdrawn."""
    tested = [row for row in rows if row.p_value is not None]
    corrected = dict(zip(map(id, tested), stats.holm([row.p_value or 0.0 for row in tested]), strict=True))
    found = []
    for row in rows:
        p_value, verdict, why = corrected.get(id(row)), row.verdict, row.why
        able = len(tested) * stats.smallest_p(row.rounds, row.baseline_rounds) < SIGNIFICANCE
        if p_value is not None and p_value >= SIGNIFICANCE and able and verdict in _DECIDED:
            verdict = Verdict.INCONCLUSIVE
            why = f"a rank test over the rounds does not agree (p = {p_value:.2g}, of {len(tested)} comparisons)"
        judged = dataclasses.replace(row, p_value=p_value, verdict=verdict, why=why)
        found.append(dataclasses.replace(judged, more_rounds=_more_rounds(judged)))
    return [dataclasses.replace(row, why=_with_advice(row)) for row in found]


def _more_rounds(row: Compared) -> int | None:
    """How many rounds would narrow the interval (by √n) until it leaves the threshold on one side or the other."""
    if row.verdict is not Verdict.INCONCLUSIVE or row.ratio is None or row.detectable_ratio is None or not row.rounds:
        return None
    room = abs(abs(row.ratio - 1) - THRESHOLD)
    rounds = min(row.rounds, row.baseline_rounds)
    if room == 0:
        return None
    more = math.ceil(rounds * (row.detectable_ratio / room) ** 2) - rounds
    return max(1, more, FEWEST_ROUNDS - rounds) if more <= MOST_ROUNDS_ADVISED else None


def _with_advice(row: Compared) -> str:
    if row.more_rounds is None or not row.why:
        return row.why
    return f"{row.why}; about {row.more_rounds} more round{'s'[: row.more_rounds > 1]} on each side would decide"


def _verdict(
    metric: registry.CaseMetric,
    ratio: float | None,
    interval: stats.Interval | None,
    fewest: int,
    sides: tuple[_Group, _Group],
) -> tuple[Verdict, str]:
    if ratio is None:
        return Verdict.INCONCLUSIVE, "the baseline is 0"
    if metric.by_round is None and fewest < FEWEST_ROUNDS:
        return Verdict.INCONCLUSIVE, f"one value a case: {FEWEST_ROUNDS} runs on each side are needed"
    if metric.quantile is not None and not all(
        stats.supports_percentile(sum(_n(row, metric) for row in side.cases), metric.quantile) for side in sides
    ):
        return Verdict.INCONCLUSIVE, f"too few values for the {metric.quantile:.0%} percentile"
    if interval is None or fewest < FEWEST_ROUNDS:
        return Verdict.INCONCLUSIVE, f"too few rounds: at least {FEWEST_ROUNDS} on each side are needed"
    if interval.low >= 1 - THRESHOLD and interval.high <= 1 + THRESHOLD:
        return Verdict.SAME, ""
    if interval.high < 1 - THRESHOLD or interval.low > 1 + THRESHOLD:
        if metric.better is registry.Better.NONE:
            return Verdict.DIFFERENT, ""
        improved = (ratio < 1) == (metric.better is registry.Better.LOWER)
        return (Verdict.BETTER if improved else Verdict.WORSE), ""
    return Verdict.INCONCLUSIVE, f"the interval reaches over the {THRESHOLD:.0%} threshold"


def _interval(here: Rounds, there: Rounds, ratio: float | None, name: str) -> stats.Interval | None:
    """The bootstrap interval, moved onto the ratio of the pooled results where rounds give a slightly other one."""
    middle = stats.ratio(
        stats.weighted_mean(here.values, here.weights), stats.weighted_mean(there.values, there.weights)
    )
    if ratio is None or not middle:
        return None
    found = stats.ratio_interval(
        (here.values, here.weights), (there.values, there.weights), seed=zlib.crc32(name.encode())
    )
    return found and stats.Interval(found.low * ratio / middle, found.high * ratio / middle)


def _value(group: _Group, metric: registry.CaseMetric) -> float | None:
    """The case's result; of several cases (several runs pooled) their mean, weighted by their requests."""
    values = np.array([np.nan if row.get(metric.name) is None else row[metric.name] for row in group.cases], float)
    return stats.weighted_mean(values, np.array([_n(row, metric) for row in group.cases], float))


def _n(row: Row, metric: registry.CaseMetric) -> int:
    if metric.n_column:
        return int(row.get(metric.n_column) or 0)
    return int((row.get("requests") or 0) - (row.get("failed") or 0))


def _rounds(group: _Group, metric: str, rounds: Mapping[tuple[str, str], Rounds]) -> Rounds:
    if registry.BY_NAME[metric].by_round is None:
        each = np.array([row[metric] for row in group.cases if row.get(metric) is not None], float)
        return Rounds(each, np.ones(len(each)))
    found = [r for row in group.cases if (r := rounds.get((metric, row["case_id"]))) is not None]
    values = np.concatenate([r.values for r in found]) if found else np.empty(0)
    weights = np.concatenate([r.weights for r in found]) if found else np.empty(0)
    return Rounds(values[~np.isnan(values)], weights[~np.isnan(values)])


def _nearest(group: _Group, cases: Sequence[Row], by: tuple[str, ...], baseline: str) -> str:
    candidates = [other for other in cases if group_name(other, by) == baseline]
    what = nearest(group.cases[0], candidates, by)
    return f"nothing of the baseline ran like this: {what or 'no case succeeded'}"


def _known(what: str, given: Sequence[str], known: Sequence[str]) -> None:
    for one in given:
        if one not in known:
            raise ValueError(f"unknown {what} {one!r}: known are {', '.join(known)}")
