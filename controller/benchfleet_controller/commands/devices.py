"""One model on every device: by how much each is faster than the first, and whether it gives the same answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchfleet_controller.commands.comparing import comparison_of
from benchfleet_controller.commands.evidence import MOST_ANSWERS_COMPARED, equality_rows
from benchfleet_controller.compare import Compared, Verdict
from benchfleet_controller.dimensions import group_name
from benchfleet_controller.plan import ALL_DEVICES
from benchfleet_controller.report import Column, human
from benchfleet_controller.report.matrix import SYMBOLS, word
from benchfleet_controller.report.sections import Section
from benchfleet_controller.store import Row, Store

_RATE, _TTFT = "decode_tokens_per_s", "ttft_p50_s"


def devices_section(store: Store, run: Row, cases: Sequence[Row]) -> Section | None:
    """The table of a run that was asked for all devices; None: of another run, or where only one of them ran."""
    if ALL_DEVICES not in ((run["plan"] or {}).get("devices") or ()):
        return None
    ran = [case for case in cases if case["requests"] > case["failed"]]
    by = dimensions_of(ran)
    names = list(dict.fromkeys(group_name(case, by) for case in ran))
    if len(names) < 2:
        return None
    run_ids = [run["run_id"]]
    baseline = next((name for name in names if name.split(" / ")[0] == "cpu"), names[0])
    comparison = comparison_of(store, run_ids, by, baseline, (_RATE, _TTFT), found=cases)
    found = {(row.stratum, row.group, row.metric): row for row in comparison.rows}
    alike: dict[tuple[str, str], Mapping[str, Any]] = {}
    notes = [f"speed-up over {baseline}, with its 95 % interval; TTFT: above 1 is sooner"]
    if not all(case["deterministic"] for case in ran):
        notes.append("answers are not compared: the run was not deterministic")
    elif sum(case["requests"] for case in ran) > MOST_ANSWERS_COMPARED:
        notes.append(
            f"answers are not compared: more than {MOST_ANSWERS_COMPARED:,}; see `compare --by device --answers`"
        )
    else:
        equal = equality_rows(store, run_ids, by, baseline, cases)
        alike = {(str(_without(row["conditions"], "temperature")), row["group"]): row for row in equal}
        notes.append("deterministic: every device got the same words before the same prompts, at temperature 0")
    rows = [
        {
            "conditions": _told(row.conditions, comparison.rows),
            "group": row.group,
            "rate": None if row.value is None else human(_RATE, row.value),
            "speedup": _speedup(row),
            "ttft": _speedup(found[row.stratum, row.group, _TTFT], inverse=True),
            "alike": _alike(alike.get((str(dict(row.conditions)), row.group))),
            "first": _first(alike.get((str(dict(row.conditions)), row.group))),
        }
        for row in comparison.rows
        if row.metric == _RATE
    ]
    columns = [
        Column("conditions", "Conditions"), Column("group", " / ".join(by).capitalize()), Column("rate", "Tokens/s"),
        Column("speedup", "Decode"), Column("ttft", "TTFT p50"), Column("alike", "Same answers"),
        Column("first", "First different token"),
    ]  # fmt: skip
    told = {name for name in ("conditions", "alike", "first") if not any(row[name] for row in rows)}
    return Section("Devices", rows, [one for one in columns if one.name not in told], tuple(notes))


def dimensions_of(cases: Sequence[Row]) -> tuple[str, ...]:
    """By device; with what tells its variants apart where a device ran several of one model."""
    for by in (("device",), ("device", "ep")):
        variants: dict[tuple[Any, ...], set[Any]] = {}
        for case in cases:
            variants.setdefault((case["host"], case["model"], group_name(case, by)), set()).add(case["variant"])
        if all(len(found) == 1 for found in variants.values()):
            return by
    return ("device", "variant")


def _speedup(row: Compared, *, inverse: bool = False) -> str | None:
    if row.verdict is Verdict.BASELINE:
        return "1 ×"
    if not row.ratio:
        return f"{SYMBOLS[row.verdict]} {word(row.verdict)}"
    ends = [row.low, row.high]
    ratio, (low, high) = (1 / row.ratio, [end and 1 / end for end in reversed(ends)]) if inverse else (row.ratio, ends)
    interval = f" ({low:.2f} to {high:.2f})" if low is not None and high is not None else ""
    return f"{ratio:.2f} ×{interval} {word(row.verdict)}"


def _alike(row: Mapping[str, Any] | None) -> str | None:
    if row is None or row["group"] == row["baseline"]:
        return None
    if not row["pairs"]:
        return str(row["why"])
    interval = " ({:.0%} to {:.0%})".format(*row["interval"]) if row["interval"] else ""
    return f"{row['equal']} of {row['pairs']}, {row['share']:.0%}{interval}"


def _first(row: Mapping[str, Any] | None) -> str | None:
    if row is None or row["first_token_median"] is None:
        return None
    return f"median {row['first_token_median']:g}, least {row['first_token_least']}"


def _told(conditions: Mapping[str, Any], rows: Sequence[Compared]) -> str:
    """The conditions in which rows differ."""
    varying = [name for name in conditions if len({str(row.conditions.get(name)) for row in rows}) > 1]
    return ", ".join(f"{name.replace('_', ' ')} {human(name, conditions[name])}" for name in varying)


def _without(conditions: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in conditions.items() if key != name}
