"""What each command does: one module a group; `cli` imports them when used."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import platformdirs

from benchfleet_controller.baseline import BaselineError
from benchfleet_controller.inventory import InventoryError, load_inventory, resolve_hosts
from benchfleet_controller.live import printable_lines
from benchfleet_controller.plan import HostTarget
from benchfleet_controller.plan_draft import PlanError
from benchfleet_controller.problems import HostProblem, Refused
from benchfleet_controller.prompts import PromptError
from benchfleet_controller.report import ReportError
from benchfleet_controller.store import Store, StoreError, StoreMissing, TooManyRequests
from benchfleet_controller.store.patience import DEFAULT_S

EXIT_HOST = 4


class UsageError(Exception):
    """The command line makes no sense together; says what to do."""


KNOWN_ERRORS = (
    UsageError, TooManyRequests, BaselineError, PlanError, PromptError, InventoryError, StoreError, ReportError,
    Refused, HostProblem,
)  # fmt: skip
"""Errors that are told in a line, without a traceback."""

Refused.exit_code = HostProblem.exit_code = EXIT_HOST  # type: ignore[attr-defined]  # read by `cli.main`


def store_of(options: argparse.Namespace) -> Store:
    """The DuckDB file: ``--db``, else BENCHFLEET_DB, else the user's data directory."""
    path = options.db or os.environ.get("BENCHFLEET_DB")
    if path is None:
        path = Path(platformdirs.user_data_dir("benchfleet", False)) / "benchfleet.duckdb"
    wait_s = getattr(options, "wait", None)
    return Store(Path(path).expanduser(), DEFAULT_S if wait_s is None else wait_s, say)


def targets(options: argparse.Namespace, store: Store, arguments: Sequence[str]) -> tuple[HostTarget, ...]:
    """Hosts as the user wrote them; names come from the inventory, then from earlier runs."""
    return resolve_hosts(arguments, load_inventory(options.inventory), known_names(store))


def known_names(store: Store) -> dict[str, str]:
    """Names and addresses of hosts of earlier runs."""
    try:
        return {host.name: host.address for host in store.known_hosts() if host.address}
    except StoreMissing:
        return {}


def say(text: str) -> None:
    """A line of progress on stderr."""
    print(printable_lines(text), file=sys.stderr, flush=True)
