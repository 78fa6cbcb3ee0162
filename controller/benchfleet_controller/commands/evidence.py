"""Outliers with their reasons, and whether answers are the same (`show --outliers`, `compare --answers`)."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from benchfleet_controller.checks import load_shape
from benchfleet_controller.dimensions import group_name, shared_conditions, stratum
from benchfleet_controller.divergence import Answer, Divergence, Equality, Key, equality, repeatability
from benchfleet_controller.outliers import Outlier
from benchfleet_controller.report import Column, clean, render_table, to_json
from benchfleet_controller.store import Row, Store

_OUTLIERS = tuple(
    Column(*pair)
    for pair in (
        ("host", "Host"), ("model", "Model"), ("device", "Device"), ("load", "Load"), ("request", "Request"),
        ("metric", "Metric"), ("value", "Value"), ("typical", "Typical"), ("times", "×"), ("reason", "Reason"),
        ("evidence", "Evidence"),
    )
)  # fmt: skip
_EQUALITY = (
    Column("conditions", "Conditions"),
    Column("group", "Group"),
    Column("pairs", "Pairs"),
    Column("equal", "Equal"),
    Column("share", "Share"),
    Column("interval", "95 % interval"),
    Column("first", "First different token"),
    Column("repeatable", "Repeatable"),
    Column("example", "Example"),
)

MOST_ANSWERS_COMPARED = 20_000
"""Up to so many answers are compared without being asked for: all their texts are read."""


def outlier_rows(found: Sequence[Outlier], cases: Sequence[Row]) -> list[dict[str, Any]]:
    """Outliers as flat rows with their case's host, model, device and load."""
    of_case = {case["case_id"]: case for case in cases}
    return [
        {
            **{name: of_case[one.case_id][name] for name in ("host", "model", "device")},
            "load": load_shape(of_case[one.case_id]),
            "case_id": one.case_id,
            "request_id": one.request_id,
            "metric": one.metric,
            "value": one.value,
            "typical": one.typical,
            "times": one.times,
            "score": one.score,
            "reason": one.reason.value,
            "evidence": one.evidence or None,
        }
        for one in found
    ]


def outliers_text(found: Sequence[Outlier], cases: Sequence[Row], style: str) -> str:
    """Outliers in one of `report.FORMATS`."""
    rows = outlier_rows(found, cases)
    if style == "json":
        return to_json(rows)
    if style == "csv":
        return render_table(rows, list(rows[0]) if rows else [], "csv")
    total = sum(case["requests"] - case["failed"] for case in cases)
    if not found:
        return f"No outliers among {total} requests.\n"
    times = {one.request_id for one in found}
    reasons = Counter(one.reason.value for one in found)
    told = ", ".join(f"{n} {reason}" for reason, n in reasons.most_common())
    shown = [
        row
        | {
            "request": row["request_id"][:8],
            "value": f"{row['value']:.4g} s",
            "typical": f"{row['typical']:.4g} s",
            "times": f"{row['times']:.1f}",
        }
        for row in rows
    ]
    head = f"{len(times)} of {total} requests are outliers ({told}). They are kept in all results.\n"
    return head + ("\n" if style == "md" else "") + render_table(shown, _OUTLIERS, style)


def equality_rows(
    store: Store,
    run_ids: Sequence[str],
    by: tuple[str, ...],
    baseline: str | None,
    found: Sequence[Row] | None = None,
) -> list[dict[str, Any]]:
    """Answers of each group against the baseline's under the same conditions. Raises ValueError: no such baseline.

    ``found``: the cases of the runs, where they have been read.
    """
    found = store.case_results(run_ids, itl=False) if found is None else found
    cases = [case for case in found if case["requests"] > case["failed"]]
    names = list(dict.fromkeys(group_name(case, by) for case in cases))
    if baseline is None:
        baseline = names[0] if names else ""
    elif baseline not in names:
        raise ValueError(f"no {' / '.join(by)} {baseline!r} to compare with; there are: {', '.join(names) or 'none'}")
    given = store.answers(run_ids)
    of_case: dict[str, list[Answer]] = {}
    for row in given:
        of_case.setdefault(row["case_id"], []).append(_answer(row))
    groups: dict[Any, dict[str, list[Answer]]] = {}
    kept: dict[Any, Mapping[str, Any]] = {}
    for case in cases:
        held = stratum(case, by)
        kept.setdefault(held, case)
        groups.setdefault(held, {}).setdefault(group_name(case, by), []).extend(of_case.get(case["case_id"], ()))
    fixed = {case["case_id"]: bool(case["deterministic"]) for case in cases}
    rows = []
    for held, answers in groups.items():
        conditions = shared_conditions(kept[held], by) | {"temperature": kept[held].get("temperature")}
        for name, mine in answers.items():
            same = None if name == baseline else equality(answers.get(baseline, ()), mine)
            rows.append(_row(conditions, name, baseline, mine, same))
    if not all(fixed.values()):
        rows = [row | {"note": _NOT_FIXED} for row in rows]
    return rows


def equality_text(rows: Sequence[Mapping[str, Any]], style: str) -> str:
    """Those rows in one of `report.FORMATS`."""
    if style == "json":
        return to_json(list(rows))
    if style == "csv":
        return render_table(rows, list(rows[0]) if rows else [], "csv")
    varying = [
        name for name in (rows[0]["conditions"] if rows else ()) if len({str(r["conditions"][name]) for r in rows}) > 1
    ]
    columns = _EQUALITY if varying else _EQUALITY[1:]
    text = render_table([_for_people(row, varying) for row in rows], columns, style)
    notes = dict.fromkeys(str(row["note"]) for row in rows if row.get("note"))
    return text + "".join(f"{'' if style == 'table' else chr(10)}note: {note}\n" for note in notes)


_NOT_FIXED = (
    "some runs were not deterministic: other words went before their prompts, so most answers cannot be paired; "
    "run with --deterministic"
)


def _answer(row: Mapping[str, Any]) -> Answer:
    return Answer(
        Key(row["prompt_id"] or "", row["round_rank"], row["position"], row["prompt_prefix"] or ""),
        row["text"] or "",
        None if row["piece_length"] is None else tuple(row["piece_length"]),
        row["answer_sha256"],
        row["output_tokens"],
        row["finish_reason"],
    )


def _row(
    conditions: Mapping[str, Any], name: str, baseline: str, mine: Sequence[Answer], same: Equality | None
) -> dict[str, Any]:
    repeated = repeatability(mine)
    first = list(same.first_divergences) if same else []
    tokens = [one.token for one in first if one.token is not None]
    return {
        "conditions": conditions,
        "group": name,
        "baseline": baseline,
        "answers": len(mine),
        "pairs": same.pairs if same else None,
        "equal": same.equal if same else None,
        "share": same.share if same else None,
        "interval": [same.interval.low, same.interval.high] if same and same.interval else None,
        "first_token_median": statistics.median(tokens) if tokens else None,
        "first_token_least": min(tokens, default=None),
        "divergences": [_divergence(one) for one in first],
        "repeatable_share": repeated.share,
        "why": (same.why or None) if same else None,
    }


def _divergence(one: Divergence) -> dict[str, Any]:
    return {
        "prompt_id": one.key.prompt_id,
        "round": one.key.round_index,
        "position": one.key.position,
        "token": one.token,
        "character": one.character,
        "baseline_text": one.left,
        "text": one.right,
    }


def _for_people(row: Mapping[str, Any], varying: Sequence[str]) -> dict[str, Any]:
    first, least = row["first_token_median"], row["first_token_least"]
    example = ""
    if row["divergences"]:
        one = min(row["divergences"], key=lambda d: d["character"] if d["character"] is not None else 1 << 30)
        example = clean(f"{one['prompt_id']}: “{one['baseline_text']}” / “{one['text']}”")
    return {
        "conditions": ", ".join(f"{name} {row['conditions'][name]}" for name in varying),
        "group": row["group"] + (" (baseline)" if row["group"] == row["baseline"] else ""),
        "pairs": row["pairs"],
        "equal": row["equal"],
        "share": None if row["share"] is None else f"{row['share']:.0%}",
        "interval": None if row["interval"] is None else "{:.0%}–{:.0%}".format(*row["interval"]),
        "first": None if first is None else f"median {first:g}, first {least}",
        "repeatable": None if row["repeatable_share"] is None else f"{row['repeatable_share']:.0%}",
        "example": example or row["why"],
    }
