"""compare: which is better, by how much, how sure; and the regression gate."""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

from benchfleet_controller import metrics as registry
from benchfleet_controller.baseline import Baseline
from benchfleet_controller.commands import UsageError, say, store_of
from benchfleet_controller.commands.baselines import read_baseline, rounds_of
from benchfleet_controller.commands.cautions import WARNED_INTERVALS, Cautions, warnings_text
from benchfleet_controller.commands.evidence import equality_rows, equality_text
from benchfleet_controller.compare import Comparison, Verdict, compare
from benchfleet_controller.dimensions import DIMENSIONS, FILTERS, matches
from benchfleet_controller.gate import Outcome, judge
from benchfleet_controller.report import comparison_rows, render_table, to_json
from benchfleet_controller.report.comparing import comparison_text, gate_text
from benchfleet_controller.results import results_of
from benchfleet_controller.store import NoSuchRun, Row, Store
from benchfleet_controller.telemetry import with_price

EXIT_DONE = 0
MOST_PERCENT = 100
"""Of a regression's limit; nothing can become worse by more than all of its speed."""
_GATE_CODES = {Outcome.PASSED: EXIT_DONE, Outcome.REGRESSED: 3, Outcome.UNDECIDED: 5}


def compare_command(options: argparse.Namespace) -> int:
    """Which is better, by how much, how sure."""
    limit = limit_of(options.fail_on_regression)
    store = store_of(options)
    metrics = _metrics(options.metric, gated=limit is not None)
    by = tuple(part.strip() for part in (options.by or "host").split(","))
    if unknown := [name for name in by if name not in DIMENSIONS]:
        raise UsageError(f"--by takes {', '.join(DIMENSIONS)}, or several with commas, not {unknown[0]!r}")
    run_ids = [store.resolve_run(text) for text in options.run or ["last"]]
    baseline: str | None = options.baseline
    document: Baseline | None = None
    if baseline is not None:
        if document := _document(store, baseline):
            by, baseline = ("run",), _run_of(document)
        elif base_run := _run_named(store, baseline):
            by, baseline, run_ids = ("run",), base_run, list(dict.fromkeys([base_run, *run_ids]))
    elif len(run_ids) > 1 and options.by is None:
        by = ("run",)
    if options.answers:
        return _answers(store, run_ids, by, baseline if document is None else None, options.format)
    found = results_of(store, run_ids, metrics=WARNED_INTERVALS)
    try:
        comparison = comparison_of(
            store, run_ids, by, baseline, metrics, document, filters_of(options.where), price_of(options),
            measured=not options.metric or "all" in options.metric, found=found,
        )  # fmt: skip
    except ValueError as error:
        raise UsageError(f"{error}{_near(store, baseline)}") from None
    cautions = Cautions.of_cases(store, run_ids, found, filters_of(options.where))
    sys.stdout.write(rendered(comparison, options.format, cautions))
    if all(row.verdict is Verdict.BASELINE for row in comparison.rows):
        say("there is one group only, so nothing is compared; try another --by, or name a --baseline")
    if limit is None:
        return EXIT_DONE
    gate = judge(comparison, limit)
    sys.stderr.write(gate_text(gate))
    return _GATE_CODES[gate.outcome]


def _metrics(given: Sequence[str], *, gated: bool) -> Sequence[str]:
    """The metrics that were asked for. Raises `UsageError` for one that there is not."""
    if "all" in given:
        return tuple(registry.BY_NAME)
    if unknown := [name for name in given if name not in registry.BY_NAME]:
        raise UsageError(f"no metric {unknown[0]!r}; there are: all, {', '.join(registry.BY_NAME)}")
    return tuple(given) or (registry.GATED if gated else registry.DEFAULT_COMPARED)


def _near(store: Store, baseline: str | None) -> str:
    """Baselines and runs that a name that is no group may have meant."""
    if baseline is None:
        return ""
    names = [row["name"] for row in store.baselines()]
    runs = {text: row for row in store.runs() for text in (row.run_id, row.name)}
    found = [f"baselines: {', '.join(names)}"] if names else ["there are no baselines"]
    if near := get_close_matches(baseline, runs, n=3, cutoff=0.5):
        found.append("runs near it: " + ", ".join(text for text in near))
    return "; " + "; ".join(found)


def limit_of(percent: str | None) -> float | None:
    """The regression gate's limit as a share. Raises `UsageError` for what is no percentage from 0 to 100."""
    if percent is None:
        return None
    try:
        limit = float(percent.strip().removesuffix("%"))
    except ValueError:
        limit = math.nan
    if not 0 <= limit <= MOST_PERCENT:
        raise UsageError(f"--fail-on-regression takes a percentage such as 5 or 5%, from 0 to 100, not {percent!r}")
    return limit / 100


def price_of(options: argparse.Namespace) -> float | None:
    """The price of a kWh that was asked for. Raises `UsageError` for one that makes no sense."""
    price: float | None = options.price_per_kwh
    if price is not None and not 0 < price < math.inf:
        raise UsageError("--price-per-kwh takes a price above 0, such as 0.30")
    return price


def _answers(store: Store, run_ids: Sequence[str], by: tuple[str, ...], baseline: str | None, style: str) -> int:
    try:
        rows = equality_rows(store, run_ids, by, baseline)
    except ValueError as error:
        raise UsageError(str(error)) from None
    sys.stdout.write(equality_text(rows, style))
    return EXIT_DONE


def comparison_of(
    store: Store,
    run_ids: Sequence[str],
    by: tuple[str, ...],
    baseline: str | None,
    metrics: Sequence[str],
    document: Baseline | None = None,
    where: Mapping[str, str] | None = None,
    price_per_kwh: float | None = None,
    *,
    measured: bool = False,
    found: Sequence[Row] | None = None,
) -> Comparison:
    """Compare the cases of runs, and of a baseline document, that `where` lets through; only by metrics that something
    measured, when ``measured``. ``found``: the cases of the runs, where they have been read.

    Raises ValueError for an unknown baseline.
    """
    if found is None:
        found = store.case_results(run_ids, itl=any(name.startswith("itl_") for name in metrics))
    run_names = {row.run_id: row.name for row in store.runs()} if {"name", "commit"} & set(by) else {}
    before = document.cases if document is not None else ()
    cases = with_price(
        [*before, *(case | {"run_name": run_names.get(case["run_id"])} for case in found)], price_per_kwh
    )
    kept = [case for case in cases if all(matches(case, *one) for one in (where or {}).items())]
    if where and not kept:
        raise ValueError(f"no case matches --where {' '.join(f'{key}={value}' for key, value in where.items())}")
    if measured:
        metrics = [name for name in metrics if any(case.get(name) is not None for case in kept)]
    rounds = rounds_of(store, run_ids, metrics)
    if document is not None:
        rounds = {**document.rounds, **rounds}
    return compare(kept, by, baseline, metrics, rounds)


def rendered(comparison: Comparison, style: str, cautions: Cautions) -> str:
    """A comparison in one of `report.FORMATS`, with what may mislead about it; CSV: the rows alone."""
    if style == "json":
        groups = {(str(row.conditions), row.group): row for row in comparison.rows}
        told = {key: cautions.of_group(row.conditions, row.group, comparison.by) for key, row in groups.items()}
        pairs = zip(comparison_rows(comparison), comparison.rows, strict=True)
        return to_json([row | {"warnings": told[str(one.conditions), one.group]} for row, one in pairs])
    if style == "csv":
        rows = comparison_rows(comparison)
        return render_table(rows, list(rows[0]) if rows else [], "csv")
    gap = "\n" if style == "md" else ""
    return comparison_text(comparison, style) + gap + warnings_text(cautions.warnings(), style)


def _document(store: Store, text: str) -> Baseline | None:
    """The baseline document that a name or a file gives, under the name that people gave it."""
    if text.endswith(".json"):
        found = read_baseline(Path(text))
    else:
        try:
            found = Baseline.from_json(store.baseline(text), f"baseline {text}")
        except NoSuchRun:
            return None
    # Under its own name, so that the run it was made of can be held against it.
    cases = tuple({**case, "run_id": _run_of(found), "run_name": found.name} for case in found.cases)
    return dataclasses.replace(found, cases=cases)


def _run_of(document: Baseline) -> str:
    return f"baseline {document.name}"


def _run_named(store: Store, text: str) -> str | None:
    """The run a baseline names (by id, name or the beginning of an id), if it names one rather than a group."""
    rows = store.runs()
    exact = [row.run_id for row in rows if text in (row.run_id, row.name)]
    begun = [row.run_id for row in rows if len(text) >= 6 and row.run_id.startswith(text)]
    return next(iter(exact or begun), None)


def filters_of(given: Sequence[str]) -> dict[str, str]:
    """What ``--where`` asks of a case, by key. Raises `UsageError`."""
    found = {}
    for text in given:
        key, separator, value = text.partition("=")
        if not separator or key not in FILTERS:
            raise UsageError(f"--where takes KEY=VALUE with one of {', '.join(FILTERS)}, not {text!r}")
        found[key] = value
    return found
