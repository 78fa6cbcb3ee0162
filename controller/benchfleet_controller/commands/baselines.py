"""Baselines: named results that later runs are compared with."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchfleet_controller.baseline import Baseline, BaselineError
from benchfleet_controller.commands import UsageError, say, store_of
from benchfleet_controller.compared import Rounds
from benchfleet_controller.metrics import CASE_METRICS
from benchfleet_controller.report import Column, human, render_table, write_text, write_whole
from benchfleet_controller.results import by_case
from benchfleet_controller.store import Store

EXIT_DONE = 0
MAXIMUM_FILE_BYTES = 64 << 20
_COLUMNS = (Column("name", "Name"), Column("run_id", "Run"), Column("cases", "Cases"), Column("set_at", "Set"))


def baseline(options: argparse.Namespace) -> int:
    """Set, list, export or import baselines."""
    store = store_of(options)
    return {"set": _set, "list": _list, "export": _export, "import": _import}[options.action](store, options)


def _set(store: Store, options: argparse.Namespace) -> int:
    if options.name is None:
        raise UsageError("give the baseline a name: benchfleet baseline set main last")
    if options.name.endswith(".json"):
        raise UsageError(f"{options.name} would be taken for a file; give the baseline another name")
    name, run_id = options.name, store.resolve_run(options.what or "last")
    cases = store.case_results([run_id])
    if not any(case["status"] == "succeeded" for case in cases):
        raise UsageError(f"no case of run {run_id[:8]} succeeded; there is nothing to compare with")
    made = Baseline.of(name, cases, rounds_of(store, [run_id], [metric.name for metric in CASE_METRICS]))
    return _keep(store, made, run_id)


def _list(store: Store, options: argparse.Namespace) -> int:
    sys.stdout.write(render_table(store.baselines(), _COLUMNS, options.format))
    return EXIT_DONE


def _export(store: Store, options: argparse.Namespace) -> int:
    if options.name is None:
        raise UsageError("name the baseline: benchfleet baseline export main -o main.json")
    # Written anew, for what an older version kept.
    text = Baseline.from_json(store.baseline(options.name), f"baseline {options.name}").to_json()
    if options.output is None:
        sys.stdout.write(text)
        return EXIT_DONE
    target: Path = options.output
    write_whole(target, lambda temporary: write_text(temporary, text), force=options.force)
    print(target)
    return EXIT_DONE


def _import(store: Store, options: argparse.Namespace) -> int:
    if options.name is None:
        raise UsageError("name the file: benchfleet baseline import main.json")
    made = read_baseline(Path(options.name))
    return _keep(store, made, "")


def _keep(store: Store, made: Baseline, run_id: str) -> int:
    """Keep a baseline and say so; one of the same name makes way, which is said too. ``run_id``: empty when unknown."""
    older = next((row for row in store.baselines() if row["name"] == made.name), None)
    store.set_baseline(made.name, run_id, len(made.cases), made.to_json())
    print(f"{made.name}: {f'run {run_id}, ' if run_id else ''}{len(made.cases)} cases")
    if older is not None:
        what = f"run {older['run_id']}" if older["run_id"] else "an imported file"
        say(f"replaced the baseline {made.name} of {human('set_at', older['set_at'])} ({what}, {older['cases']} cases)")
    return EXIT_DONE


def rounds_of(store: Store, run_ids: Sequence[str], metrics: Sequence[str]) -> dict[tuple[str, str], Rounds]:
    """Values by round of runs' cases, by (metric, case_id), as `compare` takes them."""
    return {
        (name, case_id): Rounds(values.value[mine], values.weight[mine])
        for name, values in store.round_values_of(metrics, run_ids).items()
        for case_id, mine in by_case(values)
    }


def read_baseline(path: Path) -> Baseline:
    """A baseline from a file. Raises `BaselineError`."""
    try:
        if path.stat().st_size > MAXIMUM_FILE_BYTES:
            raise BaselineError(f"{path} is over {MAXIMUM_FILE_BYTES >> 20} MiB; that is no baseline")
        return Baseline.from_json(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise BaselineError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise BaselineError(f"{path} is not UTF-8") from None
