"""select: which model to take under limits, with the evidence."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchfleet_controller.checks import Warned, check, load_shape
from benchfleet_controller.commands import UsageError, store_of
from benchfleet_controller.commands.baselines import rounds_of
from benchfleet_controller.commands.cautions import warnings_text
from benchfleet_controller.commands.comparing import filters_of
from benchfleet_controller.dimensions import matches
from benchfleet_controller.metrics import BY_NAME
from benchfleet_controller.model_facts import ModelFactsError, load_model_facts
from benchfleet_controller.plan import ModelFacts
from benchfleet_controller.report import Column, human, render_table, sentence, to_json
from benchfleet_controller.report.cases import PERCENTILE_NOTE
from benchfleet_controller.report.exports import Figure
from benchfleet_controller.results import results_of
from benchfleet_controller.selection import PREFERENCES, Candidate, RunnerUp, Selection, select, with_facts
from benchfleet_controller.selection_limits import LIMIT_OPTIONS, Judged, Limit, Outcome, label, parse_limit, shown
from benchfleet_controller.stats import Interval, supports_percentile
from benchfleet_controller.store import Row, Store

EXIT_CHOSEN, EXIT_NOTHING_PASSES = 0, 1

_INTERVALS = ("ttft_p50_s", "ttft_p95_s", "e2e_p50_s", "e2e_p95_s", "e2e_avg_s", "decode_tokens_per_s")
_VALUES = (
    "ttft_p95_s", "e2e_p95_s", "e2e_avg_s", "decode_tokens_per_s", "output_tokens_per_s", "ram_peak_bytes",
    "vram_peak_bytes", "size_bytes", "quality_ratio",
)  # fmt: skip
"""Values of a candidate in JSON and CSV."""
_ALWAYS_SHOWN = ("ttft_p95_s", "e2e_p95_s", "decode_tokens_per_s")
_HEADINGS = {"size_bytes": "Disk", "quality_ratio": "Quality", "license": "Licence", "capabilities": "Capabilities"}
_WORDS = ("license", "capabilities")


def select_command(options: argparse.Namespace) -> int:
    """A choice under limits, and why."""
    limits = limits_of(options)
    store = store_of(options)
    run_ids = list(dict.fromkeys(store.resolve_run(text) for text in options.run or ["last"]))
    where = filters_of(options.where)
    found = [
        case
        for case in results_of(store, run_ids, metrics=_INTERVALS)
        if all(matches(case, *one) for one in where.items())
    ]
    if where and not found:
        raise UsageError(f"no case matches --where {' '.join(f'{key}={value}' for key, value in where.items())}")
    cases = _with_facts(store, found, run_ids, options.models)
    try:
        selection = select(cases, limits, options.prefer, rounds_of(store, run_ids, _deciding(options.prefer)))
    except ValueError as error:
        raise UsageError(str(error)) from None
    sys.stdout.write(rendered(selection, options.format, _warnings(store, selection, run_ids)))
    return EXIT_NOTHING_PASSES if selection.chosen is None else EXIT_CHOSEN


def limits_of(options: argparse.Namespace) -> tuple[Limit, ...]:
    """The limits of a command line. Raises `UsageError`."""
    given = {name: getattr(options, name) for name in LIMIT_OPTIONS}
    texts = {name: ",".join(text) if isinstance(text, list) else text for name, text in given.items()}
    try:
        return tuple(parse_limit(name, text) for name, text in texts.items() if text)
    except ValueError as error:
        raise UsageError(str(error)) from None


def rendered(selection: Selection, style: str, warnings: Sequence[Warned] = ()) -> str:
    """A selection in one of `report.FORMATS`, with what may mislead about the chosen one; CSV: the candidates alone."""
    rows = [_document(one, selection) for one in selection.candidates]
    if style == "csv":
        return render_table(rows, _CSV_COLUMNS, style)
    if style == "json":
        return to_json(
            {
                "limits": [_limit_document(limit) for limit in selection.limits],
                "candidates": rows,
                "dimensions": selection.dimensions,
                "front": [one.name for one in selection.front],
                "recommendation": _recommendation(selection),
                "notes": _notes(selection),
                "warnings": [dataclasses.asdict(one) for one in warnings],
            }
        )
    people, columns = _for_people(rows, selection), _columns(selection)
    notes = _notes(selection)
    if len(selection.front) + len(selection.candidates) > 2:
        drawn = _joined([label(name) for name in selection.dimensions])
        notes.append(f"the Pareto front is drawn over {drawn}, among those that do not fail")
    if any(str(row.get(column.name)).endswith("*") for row in people for column in columns):
        notes.append(PERCENTILE_NOTE)
    told = selection.chosen or selection.nearest
    paragraphs = [
        [f"{one.name}: {one.outcome}: {_whys(one)}" for one in selection.candidates if one.against and one is not told],
        sentences(selection),
        [f"note: {note}" for note in notes],
    ]
    # In Markdown lines are one paragraph unless they are items.
    item = "- " if style == "md" else ""
    text = "".join(
        "\n" + "".join(f"{item}{sentence(line, style)}\n" for line in lines) for lines in paragraphs if lines
    )
    return render_table(people, columns, style) + text + "\n" * bool(item and warnings) + warnings_text(warnings, style)


def sentences(selection: Selection) -> list[str]:
    """The recommendation with its reasons and its uncertainty, or what comes nearest and what it misses."""
    if selection.chosen is None:
        return list(_nothing(selection))
    chosen = selection.chosen
    sure = chosen.outcome is Outcome.PASS
    found = []
    if not sure:
        found.append("Nothing surely passes all limits." if selection.limits else "Nothing is surely sound.")
    head = f"The most promising is {chosen.name}"
    if sure:
        passing = sum(one.outcome is Outcome.PASS for one in selection.candidates)
        of = f"the best by {label(selection.metric)} of {passing} that surely pass"
        head = f"Take {chosen.name}, {of if passing > 1 else 'the only one that surely passes'}"
    found.append(f"{head}: {', '.join(_facts(chosen, selection))}.")
    if not sure:
        found.append(f"What is missing: {_whys(chosen)}.")
    if selection.runner_up is not None:
        found.append(_runner_up_text(selection.runner_up, selection.metric))
    else:
        found.append("No other candidate under the same load could be chosen.")
    if (other := selection.better_unsure) is not None:
        found.append(f"{other.name} may be better, but it is not sure to pass: {_whys(other)}.")
    requests, rounds = _evidence(chosen)
    found.append(f"Based on {_count(requests, 'request')} in {_count(rounds, 'round')}.")
    return found


def _facts(chosen: Candidate, selection: Selection) -> Iterator[str]:
    """Values of what is limited and of what decides, those with a limit first."""
    limits = {limit.metric: limit for limit in selection.limits}
    for metric in dict.fromkeys([*limits, selection.metric, *selection.dimensions]):
        if metric in _WORDS:
            value = chosen.cases[0].get(metric)
            if value:
                yield ", ".join(value) if isinstance(value, list) else str(value)
            continue
        number = chosen.value(metric)
        if number is None:
            continue
        bound = limits[metric].bound if metric in limits else None
        held = f" (limit {shown(metric, bound)})" if isinstance(bound, float) else ""
        yield f"{label(metric)} {shown(metric, number)}{held}"


def _runner_up_text(one: RunnerUp, metric: str) -> str:
    doubt = "" if one.candidate.outcome is Outcome.PASS else ", itself not sure to pass,"
    if one.ratio is None:
        return f"Runner-up is {one.candidate.name}{doubt}: {one.why}."
    interval = f"{one.interval.low:.2f}–{one.interval.high:.2f}, " if one.interval else ""
    sure = (one.why or "sure") if one.sure else f"not sure: {one.why}"
    return f"Runner-up {one.candidate.name}{doubt} has {one.ratio:.2f}× the {label(metric)} ({interval}{sure})."


def _nothing(selection: Selection) -> Iterator[str]:
    nearest = selection.nearest
    if nearest is None:
        yield "There are no candidates: these runs have no cases."
        return
    yield "Nothing passes all limits." if selection.limits else "Nothing ran soundly."
    yield f"Nearest is {nearest.name}: {_whys(nearest)}."


def _whys(one: Candidate) -> str:
    return "; ".join(against.why for against in one.against)


def _notes(selection: Selection) -> list[str]:
    """What a reader must know of where the values come from."""
    found = []
    for one in selection.candidates:
        if one.older:
            found.append(f"{one.name} was measured more than once: the newest counts, {one.older} older left out")
        if len(one.cases) > 1:
            sets = ", ".join(str(case.get("prompt_set")) for case in one.cases)
            found.append(f"{one.name}: the worst of {len(one.cases)} workloads counts (prompt sets {sets})")
    sources = {
        (what, str(case[f"{key}_source"]))
        for one in selection.candidates
        for case in one.cases
        for what, key in (("capabilities", "capabilities"), ("sizes that runtimes do not tell", "size"))
        if case.get(f"{key}_source") not in (None, "runtime")
    }
    wanted = {limit.metric for limit in selection.limits}
    found += [
        f"{what} are as told by {source}, not measured"
        for what, source in sorted(sources)
        if what != "capabilities" or "capabilities" in wanted
    ]
    return found


def _warnings(store: Store, selection: Selection, run_ids: Sequence[str]) -> tuple[Warned, ...]:
    """What may mislead about the chosen one."""
    if selection.chosen is None:
        return ()
    jobs = {case["job_id"] for case in selection.chosen.cases}
    return check(selection.chosen.cases, [host for host in store.hosts_of_runs(run_ids) if host["job_id"] in jobs])


def _with_facts(store: Store, rows: Sequence[Row], run_ids: Sequence[str], models: Path | None) -> list[dict[str, Any]]:
    """Cases with the facts of ``--models``, else those that their run was started with."""
    if models is not None:
        try:
            given = load_model_facts(models)
        except ModelFactsError as error:
            raise UsageError(str(error)) from None
        return [with_facts(row, given, str(models)) for row in rows]
    plans = {run_id: store.run(run_id)["plan"] or {} for run_id in run_ids}
    facts = {
        run_id: tuple(
            ModelFacts(one["alias"], tuple(one.get("capabilities") or ()), one.get("size_bytes"))
            for one in plan.get("model_facts") or ()
        )
        for run_id, plan in plans.items()
    }
    return [with_facts(row, facts[row["run_id"]], "the models.json of the run") for row in rows]


def _deciding(prefer: str) -> list[str]:
    metric = PREFERENCES[prefer]
    found = ("ram_peak_bytes", "vram_peak_bytes") if metric == "memory" else (metric,)
    return [name for name in found if name in BY_NAME]


def _columns(selection: Selection) -> list[Column]:
    words = [limit.metric for limit in selection.limits if limit.metric in _WORDS]
    numbers = [limit.metric for limit in selection.limits if limit.metric not in _WORDS]
    used = {*_ALWAYS_SHOWN, *numbers, *selection.dimensions}
    return [
        Column("rank", "#"),
        Column("name", "Candidate"),
        Column("verdict", "Verdict"),
        *(Column(name, _HEADINGS.get(name) or BY_NAME[name].label) for name in _VALUES if name in used),
        *(Column(name, _HEADINGS[name]) for name in dict.fromkeys(words)),
        Column("pareto", "Pareto"),
    ]


def _for_people(rows: Sequence[Row], selection: Selection) -> list[dict[str, Any]]:
    """Rows with a rank to refer to, failing limits in the verdict, and percentiles marked that n does not support."""
    ranks = {one.name: rank for rank, one in enumerate(selection.candidates, 1)}
    found = []
    for one, row in zip(selection.candidates, rows, strict=True):
        marked: dict[str, Any] = dict(row)
        for name in _VALUES:
            case, metric = one.worst_case(name), BY_NAME.get(name)
            if case is None or metric is None or metric.quantile is None or not metric.n_column:
                continue
            if not supports_percentile(case.get(metric.n_column) or 0, metric.quantile):
                marked[name] = Figure(f"{human(name, case[name])}*")
        about = ", ".join(dict.fromkeys(against.what for against in one.against))
        marked |= {"rank": ranks[one.name], "verdict": f"{one.outcome}: {about}" if about else str(one.outcome)}
        marked["pareto"] = (
            f"#{ranks[one.dominated_by[0]]} dominates" if one.dominated_by else "front" if row["on_front"] else ""
        )
        found.append(marked)
    return found


def _document(one: Candidate, selection: Selection) -> dict[str, Any]:
    """A candidate as a JSON object."""
    first = one.cases[0]
    requests, rounds = _evidence(one)
    deciding = {name: case for name in _VALUES if (case := one.worst_case(name)) is not None}
    return {
        "name": one.name,
        "host": first.get("host"),
        "runtime": first.get("runtime"),
        "model": first.get("model"),
        "variant": first.get("variant"),
        "device": first.get("device"),
        "execution_provider": first.get("execution_provider"),
        "concurrency": first.get("concurrency"),
        "request_rate_per_s": first.get("request_rate_per_s"),
        "load": load_shape(first),
        "verdict": one.outcome.value,
        "reasons": [against.why for against in one.against],
        "limits": [_judged_document(judged) for judged in one.judged],
        **{name: one.value(name) for name in _VALUES},
        "intervals": {name: (case.get("intervals") or {}).get(name) for name, case in deciding.items()},
        "license": first.get("license"),
        "capabilities": first.get("capabilities"),
        "capabilities_source": first.get("capabilities_source"),
        "size_source": first.get("size_source"),
        "requests": requests,
        "rounds": rounds,
        "on_front": one in selection.front,
        "dominated_by": list(one.dominated_by),
        "case_ids": [case["case_id"] for case in one.cases],
        "run_ids": list(dict.fromkeys(case["run_id"] for case in one.cases)),
    }


_CSV_COLUMNS = (
    "name", "host", "runtime", "model", "variant", "device", "concurrency", "request_rate_per_s", "verdict", "reasons",
    *_VALUES, "license", "capabilities", "requests", "rounds", "dominated_by", "case_ids",
)  # fmt: skip


def _limit_document(limit: Limit) -> dict[str, Any]:
    bound = limit.bound if isinstance(limit.bound, float) else list(limit.bound)
    return {"option": limit.option, "metric": limit.metric, limit.kind.value: bound}


def _judged_document(judged: Judged) -> dict[str, Any]:
    return {
        "metric": judged.limit.metric,
        "outcome": judged.outcome.value,
        "why": judged.why,
        "value": judged.value,
        "interval": _ends(judged.interval),
        "n": judged.n,
        "excess_ratio": judged.excess_ratio,
        "rounds_advised": judged.rounds_advised,
    }


def _recommendation(selection: Selection) -> dict[str, Any]:
    chosen, second = selection.chosen, selection.runner_up
    return {
        "candidate": chosen.name if chosen else None,
        "sure": chosen is not None and chosen.outcome is Outcome.PASS,
        "metric": selection.metric,
        "value": chosen.value(selection.metric) if chosen else None,
        "text": " ".join(sentences(selection)),
        "missing": [against.why for against in chosen.against] if chosen else [],
        "runner_up": None
        if second is None
        else {
            "candidate": second.candidate.name,
            "verdict": second.candidate.outcome.value,
            "ratio": second.ratio,
            "interval": _ends(second.interval),
            "sure": second.sure,
            "why": second.why,
        },
        "better_unsure": selection.better_unsure.name if selection.better_unsure else None,
        "nearest": selection.nearest.name if selection.nearest else None,
    }


def _evidence(one: Candidate) -> tuple[int, int]:
    """Requests and counted rounds of all its workloads."""
    return sum(case.get("requests") or 0 for case in one.cases), sum(case.get("rounds") or 0 for case in one.cases)


def _ends(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s'[: number != 1]}"


def _joined(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)
