"""Options of the commands about hosts."""

from __future__ import annotations

import argparse

from benchfleet_controller.options import HOST_HELP, add_format, add_inventory


def hosts(hosts: argparse.ArgumentParser) -> None:
    """`benchfleet hosts`."""
    hosts.add_argument("host", nargs="*", metavar="HOST", help=f"{HOST_HELP} (default: all known)")
    add_inventory(hosts)
    add_format(hosts)


def some_hosts(command: argparse.ArgumentParser) -> None:
    """`benchfleet some hosts`."""
    command.add_argument("host", nargs="+", metavar="HOST", help=HOST_HELP)
    add_inventory(command)
    add_format(command)


def certs(certs: argparse.ArgumentParser) -> None:
    """`benchfleet certs`."""
    from benchfleet_controller.certs_options import add_options

    add_options(certs)
    add_format(certs)
