"""Which is better, by how much, and how sure: case results and their rounds in, verdicts out. Pure.

Only like is compared with like: cases are grouped by everything that is not compared (what was *asked*: host, model,
device, runtime, and the conditions: prompt set, concurrency, max_tokens, …); inside each such stratum every group is
set against the baseline. Where either side has nothing that ran under the same conditions, that is said with what
differs, or with what became of it: a case that failed never drops out in silence.

The interval is a bootstrap over rounds (`stats.ratio_interval`) around the ratio of the two results; a metric with one
value a case has its cases in the place of rounds. `verdicts` says what that comes to.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchfleet.failures import Reason
from benchfleet_controller import metrics as registry
from benchfleet_controller import stats
from benchfleet_controller.comparability import Failures, differences, lost_text
from benchfleet_controller.compared import FEWEST_ROUNDS, THRESHOLD, Compared, Comparison, Rounds, Verdict
from benchfleet_controller.dimensions import (
    CONDITIONS,
    DIMENSIONS,
    FOUND,
    group_name,
    nearest,
    shared_conditions,
    stratum,
)
from benchfleet_controller.ratio_error import ratio_error
from benchfleet_controller.verdicts import MOST_ROUNDS_ADVISED, decided

__all__ = [
    "FEWEST_ROUNDS",
    "MOST_ROUNDS_ADVISED",
    "THRESHOLD",
    "Compared",
    "Comparison",
    "Rounds",
    "Verdict",
    "compare",
]

Row = Mapping[str, Any]


@dataclass(slots=True)
class _Group:
    """The cases of one group in one stratum."""

    cases: list[Row] = field(default_factory=list)
    lost: list[Row] = field(default_factory=list)
    """Those without a single answer: failed, skipped, or not there yet."""

    @property
    def all(self) -> list[Row]:
        return [*self.cases, *self.lost]

    def n(self, metric: registry.CaseMetric) -> int:
        """Values behind the metric."""
        return sum(_n(row, metric) for row in self.cases)


def compare(
    cases: Sequence[Row],
    by: tuple[str, ...],
    baseline: str | None,
    metrics: Sequence[str],
    rounds: Mapping[tuple[str, str], Rounds] | None = None,
) -> Comparison:
    """Compare cases (rows of ``case_results``) by one or more dimensions.

    ``rounds`` holds values by (metric, case_id). ``baseline`` is a group's name (values joined by `` / ``), None: the
    first group. Raises ValueError for an unknown dimension, metric or baseline, naming the known ones.
    """
    _known("dimension", by, DIMENSIONS)
    _known("metric", metrics, tuple(registry.BY_NAME))
    used = [row for row in cases if _answered(row)]
    names = list(dict.fromkeys(group_name(row, by) for row in used))
    if baseline is None:
        baseline = names[0] if names else ""
    elif baseline not in names:
        raise ValueError(f"no {' / '.join(by)} {baseline!r} to compare with; there are: {', '.join(names) or 'none'}")
    # What a case turned out to be is unknown of one that failed before.
    told = used if FOUND.intersection(by) else cases
    strata: dict[tuple[Any, ...], dict[str, _Group]] = {}
    for row in told:
        group = strata.setdefault(stratum(row, by), {}).setdefault(group_name(row, by), _Group())
        (group.cases if _answered(row) else group.lost).append(row)
    names = list(dict.fromkeys([*names, *(group_name(row, by) for row in told)]))
    found: list[Compared] = []
    for place, groups in enumerate(strata.values()):
        against = groups.get(baseline, _Group())
        whys = {name: _why_alone(groups.get(name, _Group()), against, used, by, name, baseline) for name in names}
        for metric in metrics:
            for name, why in whys.items():
                group = groups.get(name, _Group())
                if group.cases:
                    one = _compared(group, against, name, by, metric, rounds or {}, why)
                elif against.cases:
                    one = _missing(group, against, name, by, metric, why)
                else:
                    continue
                found.append(dataclasses.replace(one, stratum=place))
    return Comparison(by, baseline, tuple(decided(found)))


def _compared(
    group: _Group,
    against: _Group,
    name: str,
    by: tuple[str, ...],
    metric_name: str,
    rounds: Mapping[tuple[str, str], Rounds],
    why: str,
) -> Compared:
    metric = registry.BY_NAME[metric_name]
    value = _value(group, metric)
    here = _rounds(group, metric_name, rounds)
    row = Compared(
        conditions=shared_conditions(group.cases[0], by),
        group=name,
        metric=metric_name,
        unit=metric.unit,
        value=value,
        n=group.n(metric),
        rounds=len(here.values),
        ratio=None,
        low=None,
        high=None,
        verdict=Verdict.NOT_COMPARABLE,
        why=why,
        flags=_partly_lost(group),
    )
    if against is group:
        return dataclasses.replace(row, verdict=Verdict.BASELINE, ratio=None if value is None else 1.0)
    if why:
        return row
    base = _value(against, metric)
    there = _rounds(against, metric_name, rounds)
    failures = Failures.of(group.all, against.all)
    flags, why = differences(group.cases, against.cases, by, metric, CONDITIONS)
    if not why and failures.surely_differ:
        why = f"{failures}: what is left says nothing of the rest"
    elif failures.rise:
        flags = (*flags, str(failures))
    row = dataclasses.replace(
        row,
        flags=(*row.flags, *flags),
        why=why or _unmeasured(value, base, metric, group, against),
        baseline_value=base,
        baseline_n=against.n(metric),
        baseline_rounds=len(there.values),
        failures=failures,
    )
    if row.why:
        return row
    if value == base == 0:
        return dataclasses.replace(row, verdict=Verdict.SAME)
    ratio = stats.ratio(value, base)
    interval = _interval(here, there, ratio, f"{name}\0{metric_name}")
    why = _undecidable(metric, ratio, interval, (group, against), min(len(here.values), len(there.values)))
    return dataclasses.replace(
        row,
        ratio=ratio,
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        verdict=Verdict.INCONCLUSIVE,
        why=why,
        error=ratio_error((here.values, here.weights), (there.values, there.weights)),
        sound=not why,
        p_value=stats.rank_test(here.values, there.values),
    )


def _missing(group: _Group, against: _Group, name: str, by: tuple[str, ...], metric_name: str, why: str) -> Compared:
    metric = registry.BY_NAME[metric_name]
    return Compared(
        conditions=shared_conditions(against.cases[0], by),
        group=name,
        metric=metric_name,
        unit=metric.unit,
        value=None,
        n=0,
        rounds=0,
        ratio=None,
        low=None,
        high=None,
        verdict=Verdict.NOT_COMPARABLE,
        why=why,
        flags=(),
        baseline_value=_value(against, metric),
        baseline_n=against.n(metric),
        failures=Failures.of(group.all, against.all),
        missing=True,
    )


def _answered(row: Row) -> bool:
    """Whether there is anything to compare: the case succeeded, or some of its requests did.

    An open loop that did not keep its rate measured its own lateness (decision 0011).
    """
    if row.get("reason") == Reason.RATE_NOT_KEPT:
        return False
    return bool(row["status"] == "succeeded" or (row.get("requests") or 0) > (row.get("failed") or 0))


def _partly_lost(group: _Group) -> tuple[str, ...]:
    if not group.lost:
        return ()
    return (f"{len(group.lost)} of {len(group.all)} cases {lost_text(group.lost)}",)


def _unmeasured(
    value: float | None, base: float | None, metric: registry.CaseMetric, group: _Group, against: _Group
) -> str:
    if value is not None and base is not None:
        return ""
    where = "here" if base is not None else "in the baseline" if value is not None else "on both sides"
    if metric.name in registry.ENERGY_METRICS:
        key = "marginal_reason" if metric.name in registry.MARGINAL_METRICS else "energy_reason"
        reasons = {row.get(key) for row in (group if value is None else against).cases} - {None}
        return ": ".join([f"unmeasured {where}", *sorted(map(str, reasons))[:1]])
    return f"unmeasured {where}"


def _undecidable(
    metric: registry.CaseMetric,
    ratio: float | None,
    interval: stats.Interval | None,
    sides: tuple[_Group, _Group],
    fewest: int,
) -> str:
    """Why nothing can be decided; empty: it can be tried."""
    if ratio is None:
        return "the baseline is 0"
    if metric.by_round is None and fewest < FEWEST_ROUNDS:
        return f"one value a case: {FEWEST_ROUNDS} runs on each side are needed"
    if metric.quantile is not None:
        values = min(side.n(metric) for side in sides)
        if not stats.supports_percentile(values, metric.quantile):
            return f"too few values for the {metric.quantile:.0%} percentile ({values})"
    if interval is None or fewest < FEWEST_ROUNDS:
        return f"too few rounds: at least {FEWEST_ROUNDS} on each side are needed"
    return ""


def _interval(here: Rounds, there: Rounds, ratio: float | None, name: str) -> stats.Interval | None:
    """The bootstrap interval, moved onto the ratio of the pooled results where rounds give a slightly other one."""
    middle = stats.ratio(
        stats.weighted_mean(here.values, here.weights), stats.weighted_mean(there.values, there.weights)
    )
    if ratio is None or middle is None:
        return None
    moved = ratio / middle if middle else 1.0
    found = stats.ratio_interval(
        (here.values, here.weights), (there.values, there.weights), seed=zlib.crc32(name.encode())
    )
    return found and stats.Interval(found.low * moved, found.high * moved)


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


def _why_alone(
    group: _Group, against: _Group, used: Sequence[Row], by: tuple[str, ...], name: str, baseline: str
) -> str:
    """Why only one side of a stratum has results; empty: both have, or neither."""
    if bool(group.cases) == bool(against.cases):
        return ""
    return (
        _without_baseline(group, against, used, by, baseline)
        if group.cases
        else _not_here(group, against, used, by, name)
    )


def _without_baseline(group: _Group, against: _Group, used: Sequence[Row], by: tuple[str, ...], baseline: str) -> str:
    if against.lost:
        return f"the baseline's: {lost_text(against.lost)}"
    candidates = [other for other in used if group_name(other, by) == baseline]
    what = nearest(group.cases[0], candidates, by)
    return f"nothing of the baseline ran like this: {what or 'no case succeeded'}"


def _not_here(group: _Group, against: _Group, used: Sequence[Row], by: tuple[str, ...], name: str) -> str:
    if group.lost:
        return f"in the baseline, not here: {lost_text(group.lost)}"
    near = [nearest(other, against.cases[:1], by) for other in used if group_name(other, by) == name]
    what = min(near, key=lambda text: text.count(", "), default="")
    return "in the baseline, not here: nothing ran like this" + (f" ({what})" if what else "")


def _known(what: str, given: Sequence[str], known: Sequence[str]) -> None:
    for one in given:
        if one not in known:
            raise ValueError(f"unknown {what} {one!r}: known are {', '.join(known)}")
