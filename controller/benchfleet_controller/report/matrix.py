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

    metric: str
    conditions: str
    """Those that differ between rows."""
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
    groups: Sequence[str]
    rows: Sequence[MatrixRow]


def matrix_of(comparison: Comparison | None) -> Matrix | None:
    """The comparison as a matrix; None: there is only one group."""
    if comparison is None or len(groups := list(dict.fromkeys(row.group for row in comparison.rows))) < 2:
        return None
    lines = _lines(comparison.rows)
    names = [
        name for name in lines[0][0].conditions if any(row.conditions[name] is not None for row in comparison.rows)
    ]
    varying = [name for name in names if len({str(line[0].conditions[name]) for line in lines}) > 1]
    shared = [name for name in names if len({str(row.conditions[name]) for row in comparison.rows}) == 1]
    counts = {verdict: sum(row.verdict is verdict for row in comparison.rows) for verdict in Verdict}
    said = [f"{n} {word(verdict)}" for verdict, n in counts.items() if n and verdict is not Verdict.BASELINE]
    return Matrix(
        by=" and ".join(comparison.by),
        baseline=clean(comparison.baseline),
        shared=_told(lines[0][0], shared),
        counts=", ".join(said) or "nothing to compare",
        groups=[clean(group) for group in groups],
        rows=[
            MatrixRow(registry.BY_NAME[line[0].metric].label, _told(line[0], varying), [cells.get(g) for g in groups])
            for line in lines
            for cells in [{row.group: _cell(row) for row in line}]
        ],
    )


def _lines(rows: Sequence[Compared]) -> list[list[Compared]]:
    """Rows that were compared with each other, which may have run on other devices: the user left that open."""
    lines: list[list[Compared]] = []
    last: dict[tuple[str, str], list[Compared]] = {}
    for row in rows:
        held = str({name: value for name, value in row.conditions.items() if name != "device"})
        line = last.get((row.metric, held))
        if line is None or any(row.group == other.group for other in line) or not _together(row, line[0]):
            line = last[row.metric, held] = []
            lines.append(line)
        line.append(row)
    return lines


def _together(row: Compared, first: Compared) -> bool:
    met = row.verdict is not Verdict.NOT_COMPARABLE or row.failures is not None
    return met or row.conditions.get("device") == first.conditions.get("device")


def _told(row: Compared, names: Sequence[str]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {human(name, row.conditions[name])}" for name in names)


def _cell(row: Compared) -> Cell:
    ratio = "" if row.ratio is None or row.verdict is Verdict.BASELINE else f"{row.ratio:.2f} ×"
    if ratio and row.low is not None and row.high is not None:
        ratio += f" ({row.low:.2f} to {row.high:.2f})"
    if ratio and row.rounds:
        ratio += f", {row.rounds} round{'s' * (row.rounds != 1)}"
    notes = clean("; ".join(part for part in (row.explanation, *row.flags) if part))
    return Cell(row.verdict.value, SYMBOLS[row.verdict], word(row.verdict), human(row.metric, row.value), ratio, notes)


def word(verdict: Verdict) -> str:
    """A verdict for people."""
    return verdict.value.replace("_", " ")
