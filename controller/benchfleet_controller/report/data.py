"""What a report says, as values."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from benchfleet_controller.checks import Warned
from benchfleet_controller.compare import Comparison
from benchfleet_controller.outliers import Outlier
from benchfleet_controller.report.exports import Row


@dataclasses.dataclass(frozen=True, slots=True)
class ReportData:
    """Everything a report says; rows are what the methods of `store.Store` of these names answer."""

    run: Row
    hosts: Sequence[Row]
    cases: Sequence[Row]
    comparison: Comparison | None = None
    warnings: Sequence[Warned] = ()
    answers: Sequence[Row] = ()
    failures: Sequence[Row] = ()
    certificates: Sequence[Row] = ()
    stages: Sequence[Row] = ()
    outliers: Sequence[Outlier] = ()


def comparison_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """A comparison as flat rows: conditions, group, metric, value, ratio, low, high, verdict, why, flags."""
    return [
        {
            **row.conditions,
            "group": row.group,
            "baseline": comparison.baseline,
            "metric": row.metric,
            "unit": row.unit,
            "value": row.value,
            "n": row.n,
            "rounds": row.rounds,
            "ratio": row.ratio,
            "interval": None if row.low is None or row.high is None else [row.low, row.high],
            "joint_interval": None if row.joint is None else [row.joint.low, row.joint.high],
            "verdict": row.verdict.value,
            "why": row.explanation or None,
            "flags": list(row.flags),
            "baseline_value": row.baseline_value,
            "baseline_rounds": row.baseline_rounds,
            "p_value": row.p_value,
            "detectable_ratio": row.detectable_ratio,
            "more_rounds": row.more_rounds,
        }
        for row in comparison.rows
    ]
