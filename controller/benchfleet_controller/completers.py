"""What a shell offers for values: runs, dimensions, metrics, hosts. Imported when a shell asks."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import Any

_Completer = Callable[..., list[str]]


def attach(parser: argparse.ArgumentParser) -> None:
    """Say of every option and argument of the commands in a parser how its values are completed."""
    for group in parser._actions:
        if isinstance(group, argparse._SubParsersAction):
            for command in group.choices.values():
                for action in command._actions:
                    found = _OF_OPTION.get(action.dest) or _OF_METAVAR.get(str(action.metavar))
                    if found is not None and not action.choices:
                        action.completer = found  # argcomplete's way


def dimensions(prefix: str, **_: Any) -> list[str]:
    """Dimensions to compare by; several are joined by commas."""
    from benchfleet_controller.dimensions import DIMENSIONS

    head, comma, _last = prefix.rpartition(",")
    given = head.split(",")
    return [head + comma + name for name in DIMENSIONS if name not in given]


def filters(**_: Any) -> list[str]:
    """Keys of ``--where``."""
    from benchfleet_controller.dimensions import FILTERS

    return [f"{name}=" for name in FILTERS]


def metrics(**_: Any) -> list[str]:
    """Names of metrics."""
    from benchfleet_controller.metrics import BY_NAME

    return ["all", *BY_NAME]


def runs(parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """Ids of runs, newest first, and ``last``."""
    return ["last", *_asked(parsed_args, lambda store: [row.run_id for row in store.runs()])]


def hosts(parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """Names of hosts of earlier runs."""
    return _asked(parsed_args, lambda store: [host.name for host in store.known_hosts()])


def _asked(parsed_args: argparse.Namespace, ask: Callable[[Any], Iterable[str]]) -> list[str]:
    """An answer of the database; nothing where it cannot be read at once."""
    from benchfleet_controller.commands import store_of
    from benchfleet_controller.store import StoreError

    try:
        return list(ask(store_of(argparse.Namespace(db=getattr(parsed_args, "db", None), wait=0.0))))
    except StoreError:
        return []


_OF_OPTION: dict[str, _Completer] = {"by": dimensions, "where": filters, "metric": metrics}
_OF_METAVAR: dict[str, _Completer] = {"RUN": runs, "HOST": hosts, "HOST MODEL": hosts}
