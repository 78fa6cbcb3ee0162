"""Hosts by name: ``fleet.toml``, and what a HOST on the command line means.

``fleet.toml`` holds one table: ``[hosts]`` with ``name = "address"``. It is looked for in the user's
configuration directory, in ``BENCHFLEET_FLEET``, or where ``--inventory`` says.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

import platformdirs
from benchfleet.transport import join_address, split_address

from benchfleet_controller.plan import HostTarget


class InventoryError(Exception):
    """fleet.toml or a HOST makes no sense; says what to do."""


class UnknownHost(InventoryError):
    """A name nobody knows."""


def load_inventory(path: Path | None) -> dict[str, str]:
    """Names and addresses of fleet.toml; empty when nobody named a file and there is none.

    Raises `InventoryError` for a named file that is missing, and for one that makes no sense.
    """
    chosen = path or (Path(named) if (named := os.environ.get("BENCHFLEET_FLEET")) else None)
    if chosen is None:
        chosen = Path(platformdirs.user_config_dir("benchfleet", False)) / "fleet.toml"
        if not chosen.exists():
            return {}
    try:
        document = tomllib.loads(chosen.expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise InventoryError(f"the inventory {chosen} cannot be read: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InventoryError(f"the inventory {chosen} is not TOML: {error}") from None
    hosts = document.pop("hosts", {})
    if document or not isinstance(hosts, dict):
        unknown = next(iter(document), "hosts")
        raise InventoryError(f'{chosen}: {unknown} is not understood; write [hosts] and then name = "address" lines')
    for name, address in hosts.items():
        if not isinstance(address, str):
            raise InventoryError(f'{chosen}: hosts.{name} must be an address such as "192.168.1.20:50551"')
        check_name(name, f"{chosen}: hosts.{name}")
        _normal(address, f"{chosen}: hosts.{name}")
    return dict(hosts)


def resolve_hosts(
    arguments: Sequence[str], inventory: Mapping[str, str], known: Mapping[str, str]
) -> tuple[HostTarget, ...]:
    """HOST arguments as targets: ``NAME=ADDRESS``, an address, or a name of the inventory or of earlier runs.

    Raises `UnknownHost` naming near names, `InventoryError` for bad addresses and doubled names.
    """
    chosen: dict[str, HostTarget] = {}
    for argument in arguments:
        target = _resolve(argument, inventory, known)
        if target.name in chosen:
            raise InventoryError(f"two hosts are called {target.name!r}; name them apart: --host NAME=ADDRESS")
        if any(other.address == target.address for other in chosen.values()):
            raise InventoryError(f"{target.address} is named twice")
        chosen[target.name] = target
    return tuple(chosen.values())


def check_name(name: str, where: str) -> None:
    """Raise `InventoryError` for a name that cannot be shown or typed."""
    if not name or len(name) > 100 or not name.isprintable() or "=" in name:
        raise InventoryError(f"{where}: {name[:100]!r} cannot be a host's name; use letters, digits and dashes")


def _resolve(argument: str, inventory: Mapping[str, str], known: Mapping[str, str]) -> HostTarget:
    name, separator, address = argument.partition("=")
    if separator:
        check_name(name, argument)
        return HostTarget(name, _normal(address, argument))
    for names in (inventory, known):
        if argument in names:
            return HostTarget(argument, _normal(names[argument], argument))
    if any(mark in argument for mark in (":", ".")) or argument == "localhost":
        return HostTarget(argument, _normal(argument, argument))
    near = difflib.get_close_matches(argument, [*inventory, *known], n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"give its address: --host {argument or 'NAME'}=192.168.1.20"
    raise UnknownHost(f"no host is known as {argument!r}; {hint}")


def _normal(address: str, where: str) -> str:
    try:
        return join_address(*split_address(address))
    except ValueError as error:
        raise InventoryError(f"{where}: {error}") from None
