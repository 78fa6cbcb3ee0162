"""The options of `benchfleet certs`, and of all that reaches agents; apart, because --help imports no library."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_options(certs: argparse.ArgumentParser) -> None:
    """Add what `certs` takes."""
    certs.epilog = (
        "examples:\n"
        "  benchfleet certs init                     the lab's authority, and a certificate for this controller\n"
        "  benchfleet certs enrol lab-1              prints one line to copy to the new host\n"
        "  benchfleet certs host lab-1 192.168.1.20  or write files to carry there\n"
        "  benchfleet certs controller anna@laptop   files for another controller\n"
        "  benchfleet certs renew                    what expires within 30 days\n"
        "  benchfleet certs revoke lab-1             by name or serial number\n"
        "  benchfleet certs list"
    )
    certs.formatter_class = argparse.RawDescriptionHelpFormatter
    actions = ("init", "host", "controller", "enrol", "renew", "revoke", "list")
    certs.add_argument("action", choices=actions, help="what to do")
    certs.add_argument("name", nargs="?", metavar="NAME", help="of a host or controller; for init: of the authority")
    certs.add_argument(
        "address", nargs="*", metavar="ADDRESS", help="a host's IP addresses and DNS names (enrol: where it comes from)"
    )
    certs.add_argument("--days", type=int, metavar="N", help="valid for N days (default 397)")
    certs.add_argument(
        "--listen", metavar="ADDR", help="for enrol: HOST:PORT to wait for the host at (default 0.0.0.0:50552)"
    )
    certs.add_argument(
        "--dir",
        type=Path,
        metavar="DIR",
        help="the authority's directory (default: BENCHFLEET_CERTS, else certs in the user's configuration)",
    )


def add_trust(command: argparse.ArgumentParser) -> None:
    """Add how an agent is reached: with which certificate, or in clear text."""
    command.add_argument(
        "--certs",
        type=Path,
        metavar="DIR",
        help="this controller's certificate (default: BENCHFLEET_CERTS, else certs in the user's configuration)",
    )
    command.add_argument(
        "--insecure-plaintext",
        action="store_true",
        help="accept agents on the network that speak clear text: anybody on the way can read and change everything",
    )
