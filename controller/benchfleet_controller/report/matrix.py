"""A comparison as a matrix of verdicts: a row a metric, a column a group. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchfleet_controller import metrics as registry
from benchfleet_controller.compare import Compared, Comparison, Verdict
from benchfleet_controller.report.exports import clean, human

SYMBOLS = {
    Verdict.BASELINE: "●",
    Verdict.BETTER: "▲",
    Verdict.WORSE: "▼",
    Verdict.SAME: "=",
    Verdict.DIFFERENT: "◆",
    Verdict.INCONCLUSIVE: "?",
    Verdict.NOT_COMPARABLE: "≠",
}
"""Of verdicts, beside their words."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One metric of one group; all texts are for people."""

    verdict: str
    symbol: str
    word: str
    value: str
    ratio: str
    notes: str


@dataclass(frozen=True, slots=True)
class MatrixRow:
    """A metric under some conditions; ``cells`` are in the order of the groups, None where nothing ran."""

    conditions: tuple[str, ...]
    metric: str
    cells: Sequence[Cell | None]


@dataclass(frozen=True, slots=True)
class Matrix:
    """All verdicts of a comparison."""

    by: str
    baseline: str
    shared: str
    """Conditions that hold everywhere."""
    counts: str
    """How many verdicts of each kind."""
    varying: Sequence[str]
    """Headings of the conditions that differ between rows."""
    groups: Sequence[str]
    rows: Sequence[MatrixRow]


def matrix_of(comparison: Comparison | None) -> Matrix | None:
    """The comparison as a matrix; None: there is only one group."""
    if comparison is None or not comparison.rows:
        return None
    groups = list(dict.fromkeys(row.group for row in comparison.rows))
    if len(groups) < 2:
        return None
    names = list(comparison.rows[0].conditions)
    names = [name for name in names if any(row.conditions.get(name) is not None for row in comparison.rows)]
    varying = [name for name in names if len({str(row.conditions.get(name)) for row in comparison.rows}) > 1]
    cells: dict[tuple[tuple[str, ...], str], dict[str, Cell]] = {}
    for row in comparison.rows:
        stratum = tuple(human(name, row.conditions.get(name)) for name in varying)
        cells.setdefault((stratum, row.metric), {})[row.group] = _cell(row)
    first = comparison.rows[0].conditions
    shared = [f"{name.replace('_', ' ')} {human(name, first[name])}" for name in names if name not in varying]
    counts = {verdict: sum(row.verdict is verdict for row in comparison.rows) for verdict in Verdict}
    said = [f"{n} {word(verdict)}" for verdict, n in counts.items() if n and verdict is not Verdict.BASELINE]
    return Matrix(
        by=" and ".join(comparison.by),
        baseline=clean(comparison.baseline),
        shared=", ".join(shared),
        counts=", ".join(said) or "nothing to compare",
        varying=[name.replace("_", " ").capitalize() for name in varying],
        groups=[clean(group) for group in groups],
        rows=[
            MatrixRow(stratum, registry.BY_NAME[metric].label, [of.get(group) for group in groups])
            for (stratum, metric), of in cells.items()
        ],
    )


def _cell(row: Compared) -> Cell:
    ratio = "" if row.ratio is None or row.verdict is Verdict.BASELINE else f"{row.ratio:.2f} ×"
    if ratio and row.low is not None and row.high is not None:
        ratio += f" ({row.low:.2f} to {row.high:.2f})"
    if ratio and row.rounds:
        ratio += f", {row.rounds} rounds"
    notes = clean("; ".join(part for part in (row.why, *row.flags) if part))
    return Cell(row.verdict.value, SYMBOLS[row.verdict], word(row.verdict), human(row.metric, row.value), ratio, notes)


def word(verdict: Verdict) -> str:
    """A verdict for people."""
    return verdict.value.replace("_", " ")
