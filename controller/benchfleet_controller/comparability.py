"""Whether two groups of cases may be held against each other: what differs is said, or forbids it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchfleet_controller import metrics as registry
from benchfleet_controller import stats
from benchfleet_controller.proof import ACCELERATORS
from benchfleet_controller.proof import Verdict as Proven

Row = Mapping[str, Any]
Rows = Sequence[Row]

_FLAGGED = ("variant", "device", "execution_provider", "stamp_source", "driver_version", "agent_version")
"""Differences that leave a comparison standing, but are said."""
_EXPECTED = {
    "device": frozenset({"device", "variant", "execution_provider", "driver_version"}),
    "path": frozenset({"stamp_source"}),
    "model": frozenset({"variant"}),
    "runtime": frozenset({"variant", "execution_provider"}),
    "ep": frozenset({"device", "variant", "execution_provider", "driver_version"}),
    "variant": frozenset({"device", "variant", "execution_provider", "driver_version"}),
    "quantisation": frozenset({"variant"}),
    "driver": frozenset({"driver_version"}),
}
_BOUND = "fewer_chunks_than_tokens"
"""Accounting under which nobody knows which chunks hold several tokens: rates of tokens are lower bounds."""
_BOUNDED = frozenset({"decode_tokens_per_s", "tpot_avg_s"})
_NEW = frozenset({"driver_version", "agent_version"})
"""What older baselines do not hold and devices without a driver do not have: unknown is no difference."""
_REFUSED_WHEN_SAME_ASKED = frozenset({"variant"})
"""Between runs (the same host, asked for the same), another variant is another thing and no change of speed."""


@dataclass(frozen=True, slots=True)
class Failures:
    """Counted requests that failed, here and in the baseline."""

    failed: int
    requests: int
    baseline_failed: int
    baseline_requests: int

    @classmethod
    def of(cls, group: Rows, against: Rows) -> Failures:
        """Those of two groups of cases, whatever became of the cases."""
        return cls(*(sum(row.get(key) or 0 for row in side) for side in (group, against) for key in _COUNTED))

    @property
    def rise(self) -> float:
        """By how much the share of failed requests is larger here; negative: smaller."""
        return self.failed / max(1, self.requests) - self.baseline_failed / max(1, self.baseline_requests)

    @property
    def least_rise(self) -> float:
        """The rise that is sure: between the near ends of both shares' 95 % intervals."""
        here, there = self._intervals()
        return here.low - there.high

    @property
    def surely_differ(self) -> bool:
        """Whether the intervals lie apart, so that the requests that are left are not alike."""
        here, there = self._intervals()
        return here.low > there.high or there.low > here.high

    def __str__(self) -> str:
        return f"{self.failed} of {self.requests} requests failed instead of {self.baseline_failed} of " + str(
            self.baseline_requests
        )

    def _intervals(self) -> tuple[stats.Interval, stats.Interval]:
        return (
            stats.share_interval(self.failed, self.requests),
            stats.share_interval(self.baseline_failed, self.baseline_requests),
        )


_COUNTED = ("failed", "requests")


def differences(
    group: Rows, against: Rows, by: tuple[str, ...], metric: registry.CaseMetric, conditions: Sequence[str]
) -> tuple[tuple[str, ...], str]:
    """Flags, and why the comparison is refused (empty: it is not). ``conditions`` forbid one of single cases."""
    expected = frozenset[str]().union(*(_EXPECTED.get(one, ()) for one in by))
    if refused := _contradicted(group) or _contradicted(against) or _metered_apart(group, against, metric):
        return (), refused
    flags = _unproven(group) + _unproven(against)
    if metric.name in _BOUNDED and _is_bound(group) != _is_bound(against):
        side = "here" if _is_bound(group) else "in the baseline"
        return (
            (),
            f"only a bound is known {side} (accounting {_BOUND}); name the model's tokenizer, or compare latencies",
        )
    for column in (*_FLAGGED, "tokens_source", "accounting"):
        here, there = _told(group, column), _told(against, column)
        if here == there or column in expected or (column in _NEW and "unknown" in (here, there)):
            continue
        difference = f"{column} {here} instead of {there}"
        if column == "tokens_source" and metric.of_tokens:
            return (), f"tokens were counted differently: {difference}"
        if column in _REFUSED_WHEN_SAME_ASKED and by == ("run",):
            return (), difference
        flags.append(difference)
    if "case" in by:
        for column in conditions:
            if _told(group, column) != _told(against, column):
                return (), f"{column} {_told(group, column)} instead of {_told(against, column)}"
    return tuple(flags), ""


def _is_bound(group: Rows) -> bool:
    return any(_BOUND in str(row.get("accounting")) for row in group)


def lost_text(cases: Rows) -> str:
    """What became of cases without an answer, for people."""
    return " and ".join(sorted({_lost(case) for case in cases}))


def _lost(case: Row) -> str:
    status = str(case["status"])
    if status in ("pending", "running"):
        return f"{status}, `benchfleet collect` fetches what there is"
    told = [str(case[key]) for key in ("reason", "message") if case.get(key)]
    if case.get("requests") and case["requests"] == (case.get("failed") or 0):
        told.append(f"all {case['requests']} requests failed")
    return status + (f" ({': '.join(told)})" if told else "")


def _contradicted(group: Rows) -> str:
    for row in group:
        if row.get("device_proof") == Proven.CONTRADICTED:
            evidence = "; ".join(row.get("device_evidence") or ())  # which baselines do not keep
            return f"the device is contradicted{': ' if evidence else ''}{evidence}"
    return ""


def _unproven(group: Rows) -> list[str]:
    return [
        f"nothing proves that the {row['device']} of {row.get('host')} did the work"
        for row in group[:1]
        if row.get("device_proof") == Proven.UNPROVEN and row.get("device") in ACCELERATORS
    ]


def _metered_apart(group: Rows, against: Rows, metric: registry.CaseMetric) -> str:
    """Why energies cannot be held against each other; empty: they can, or it is not about energy."""
    if metric.name not in registry.ENERGY_METRICS:
        return ""
    here, there = ({str(row["energy_scope"]) for row in side if row.get("energy_scope")} for side in (group, against))
    if not here or not there or here == there:
        return ""
    return f"energy was metered of {' or '.join(sorted(here))} instead of {' or '.join(sorted(there))}"


def _told(group: Rows, column: str) -> str:
    return " or ".join(sorted({str(row.get(column)) if row.get(column) is not None else "unknown" for row in group}))
