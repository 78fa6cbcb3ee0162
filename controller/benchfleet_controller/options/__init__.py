"""The options of every command: one module a group, as in `commands`. Only a named command's are built.

Nothing here is imported before a command is named, so that ``--help`` stays quick.
"""

from __future__ import annotations

import argparse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

FORMATS = ("table", "json", "csv", "md")
HOST_HELP = "NAME=ADDRESS, an address (HOST:PORT), or a name from the inventory or an earlier run"
RUN_HELP = "a run's id, a unique prefix of it, or `last`"


def add_database(command: argparse.ArgumentParser) -> None:
    """``--db`` and ``--wait``, which every command takes."""
    command.add_argument(
        "--db",
        type=path,
        metavar="FILE",
        help="the DuckDB file (default: BENCHFLEET_DB, else benchfleet.duckdb in the user's data directory)",
    )
    command.add_argument(
        "--wait",
        nargs="?",
        type=_wait_s,
        const=float("inf"),
        metavar="SECONDS",
        help="wait so long for a database that another process has open (default 10); without a number: for ever",
    )


def _wait_s(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        message = f"{text!r} is no number of seconds; write --wait=60, or a lone --wait at the end of the line"
        raise argparse.ArgumentTypeError(message)
    return seconds


def add_goodput(command: argparse.ArgumentParser) -> None:
    """``--goodput``."""
    command.add_argument(
        "--goodput",
        metavar="LIMITS",
        help="count requests within limits, such as ttft=0.5,tpot=0.05 (default: the plan's)",
    )


def add_price(command: argparse.ArgumentParser) -> None:
    """``--price-per-kwh``."""
    command.add_argument(
        "--price-per-kwh",
        type=float,
        metavar="P",
        help="what a kilowatt-hour costs, in any currency: electricity for a million tokens",
    )


def add_format(command: argparse.ArgumentParser) -> None:
    """``--format``."""
    command.add_argument("--format", choices=FORMATS, default="table", help="how to print (default table)")


def add_inventory(command: argparse.ArgumentParser) -> None:
    """``--inventory`` and how to trust its hosts."""
    from benchfleet_controller.certs_options import add_trust

    command.add_argument("--inventory", type=path, metavar="FILE", help="fleet.toml with the names of hosts")
    add_trust(command)


def path(text: str) -> Path:
    """An argument that is a path."""
    from pathlib import Path

    return Path(text)
