"""A comparison and a gate for people, as text. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchfleet_controller import metrics as registry
from benchfleet_controller.compared import Compared, Comparison, Verdict
from benchfleet_controller.gate import Gate, Judged, Outcome
from benchfleet_controller.report.exports import Column, clean, human, render_table, sentence
from benchfleet_controller.report.matrix import SYMBOLS, Cell, matrix_of, word

FEWEST_OF_A_MATRIX = 4
"""Groups from which on a matrix is easier to read than a list alone."""
_EVERYTHING = "all"


def comparison_text(comparison: Comparison, style: str = "table") -> str:
    """A comparison for people: what all rows share in a line above, a row a metric and group beside the baseline,
    why something could not be decided below; a matrix of verdicts where there are many groups.
    """
    conditions = [row.conditions for row in comparison.rows]
    varying = [name for name in (conditions[0] if conditions else ()) if len({str(c[name]) for c in conditions}) > 1]
    shared = ", ".join(
        f"{name} {value}"
        for name, value in (conditions[0] if conditions else {}).items()
        if name not in varying and value is not None
    )
    alone = all(row.verdict is Verdict.BASELINE for row in comparison.rows)
    shown = [row for row in comparison.rows if not row.missing and (alone or row.verdict is not Verdict.BASELINE)]
    rows = [_for_people(row) for row in shown]
    lost = {(row.group, row.stratum): row for row in comparison.rows if row.missing}
    rows += [_for_people(row) | {"metric": _EVERYTHING} for row in lost.values()]
    columns = [
        *(Column(name, name.capitalize()) for name in varying),
        Column("metric", "Metric"),
        Column("group", " / ".join(comparison.by).capitalize()),
        Column("value", "Value"),
        *([] if alone else [Column("baseline", "Baseline")]),
        Column("n", "n"),
        Column("ratio", "Ratio"),
        Column("interval", "95 % interval"),
        *([Column("p", "p")] if any(row["p"] for row in rows) else []),
        Column("verdict", "Verdict"),
    ]
    head = f"By {' and '.join(comparison.by)}, against {sentence(f'{comparison.baseline} ({shared})', style)}:\n"
    notes = "".join(f"{sentence(note, style)}\n" for note in _notes(comparison))
    # In Markdown a line right below a table would be a row of it.
    notes = f"\n{notes}" if notes and style == "md" else notes
    return head + render_table(rows, columns, style) + notes + _matrix_text(comparison, style)


def _for_people(row: Compared) -> dict[str, Any]:
    interval = "" if row.low is None or row.high is None else f"{row.low:.2f}–{row.high:.2f}"
    more = f" ({row.more_rounds} more)" if row.sound and row.more_rounds else ""
    return {
        **row.conditions,
        "group": row.group,
        "metric": registry.BY_NAME[row.metric].label,
        "value": human(row.metric, row.value),
        "baseline": human(row.metric, row.baseline_value),
        "n": row.n,
        "ratio": "–" if row.ratio is None else f"{row.ratio:.2f}",
        "interval": interval,
        "p": f"{row.p_value:.2g}" if row.p_value is not None and row.testable else "",
        "verdict": word(row.verdict) + more,
    }


def _notes(comparison: Comparison) -> list[str]:
    """Why rows were not decided, each reason once; what verdicts rest on; what differs from the baseline."""
    reasons: dict[tuple[str, str], list[Compared]] = {}
    for row in comparison.rows:
        if row.why:
            advice = "" if row.sound else row.advice
            reasons.setdefault((word(row.verdict), "; ".join(filter(None, (row.why, advice)))), []).append(row)
    several = len({row.group for row in comparison.rows if row.verdict is not Verdict.BASELINE}) > 1
    notes = [f"{verdict}: {_subjects(rows, several)}: {why}" for (verdict, why), rows in reasons.items()]
    if any(row.sound and row.more_rounds for row in comparison.rows):
        notes.append("(N more): about so many more rounds on each side would decide")
    if (tried := comparison.decidable) > 1:
        notes.append(f"verdicts hold together: their intervals are wider than the 95 % ones, for {tried} comparisons")
    return notes + sorted({f"note: {row.group}: {flag}" for row in comparison.rows for flag in row.flags})


def _subjects(rows: Sequence[Compared], several_groups: bool) -> str:
    metrics = (
        _EVERYTHING if all(row.missing for row in rows) else _listed(registry.BY_NAME[r.metric].label for r in rows)
    )
    return f"{metrics} of {_listed(row.group for row in rows)}" if several_groups else metrics


def _listed(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(words))


def _matrix_text(comparison: Comparison, style: str) -> str:
    """Ratios and verdicts, a row a metric and a column a group; empty where a list says it as well."""
    matrix = matrix_of(comparison)
    if matrix is None or len(matrix.groups) < FEWEST_OF_A_MATRIX:
        return ""
    columns = [Column("metric", "Metric"), *(Column(str(place), name) for place, name in enumerate(matrix.groups))]
    rows = []
    for row in matrix.rows:
        cells = {str(place): _cell_text(cell) for place, cell in enumerate(row.cells)}
        rows.append({"metric": f"{row.metric} ({row.conditions})" if row.conditions else row.metric, **cells})
    legend = ", ".join(f"{symbol} {word(verdict)}" for verdict, symbol in SYMBOLS.items())
    return f"\n{render_table(rows, columns, style)}{legend}\n"


def _cell_text(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    ratio = cell.ratio.split(" (")[0]
    return f"{cell.symbol} {ratio}" if ratio else f"{cell.symbol} {cell.value}"


def gate_text(gate: Gate) -> str:
    """What the gate found, the worst first: each case and metric with its change, and what could have been told."""
    groups = {one.row.group for one in gate.judged}
    worst = [Outcome.REGRESSED, Outcome.UNDECIDED, Outcome.PASSED]
    lines = [
        clean(f"{one.outcome.value}: {_case(one, several=len(groups) > 1)}: {_what(one)}: {one.why}")
        for one in sorted(gate.judged, key=lambda one: worst.index(one.outcome))
    ]
    counts = {outcome: sum(one.outcome is outcome for one in gate.judged) for outcome in worst}
    counted = ", ".join(f"{n} {outcome.value}" for outcome, n in counts.items() if n) or "nothing to judge"
    if any("detectable" in line for line in lines):
        lines.append(
            "detectable: the smallest true change that four of five such measurements tell from none "
            "(80 % power, 5 % over all comparisons together)"
        )
    lines.append(f"{gate.outcome.value}: limit {100 * gate.limit_ratio:g} %; {counted}")
    return "".join(f"{line}\n" for line in lines)


def _case(one: Judged, *, several: bool) -> str:
    return f"{one.row.group}: {one.case}" if several else one.case


def _what(one: Judged) -> str:
    if one.what != one.row.metric:
        return one.what
    values = ""
    if one.row.value is not None and one.row.baseline_value is not None:
        now, then = (human(one.row.metric, value) for value in (one.row.value, one.row.baseline_value))
        values = f" {now} instead of {then}"
    return f"{one.what}{values}"
