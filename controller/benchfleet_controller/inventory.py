"""Hosts by name: ``fleet.toml``, and what a HOST on the command line means.

``fleet.toml`` holds one table: ``[hosts]`` with ``name = "address"`` lines. It is the file that ``--inventory`` or
the environment variable ``BENCHFLEET_FLEET`` names, else ``fleet.toml`` in the user's configuration directory.
An address is ``HOST:PORT``, ``[IPv6]:PORT``, or a host alone (with the agent's default port).
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

import platformdirs

from benchfleet.addresses import join_address, split_address
from benchfleet_controller.plan import HostTarget

VARIABLE = "BENCHFLEET_FLEET"
MAXIMUM_NAME_CHARACTERS = 100
_EXAMPLE = "192.168.1.20:50551"
_HOSTNAME = re.compile(r"(?=.{1,253}\.?$)\w([\w-]*\w)?(\.\w([\w-]*\w)?)*\.?")
_LINE = re.compile(r"^(?P<problem>.*) \(at (?P<place>.*)\)$", re.DOTALL)


class InventoryError(Exception):
    """fleet.toml or a HOST makes no sense; one line a problem, each saying where and what to do."""


class UnknownHost(InventoryError):
    """A name nobody knows."""


def load_inventory(path: Path | None) -> dict[str, str]:
    """Names and addresses of fleet.toml; empty when nobody named a file and there is none.

    Raises `InventoryError` for a named file that is missing, and for one that makes no sense.
    """
    named = os.environ.get(VARIABLE, "").strip()
    chosen = path or (Path(named) if named else None)
    if chosen is None:
        chosen = Path(platformdirs.user_config_dir("benchfleet", False)) / "fleet.toml"
        if not chosen.exists():
            return {}
    chosen = chosen.expanduser()
    try:
        text = chosen.read_text(encoding="utf-8-sig")
        document = tomllib.loads(text)
    except OSError as error:
        raise InventoryError(f"the inventory {chosen} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise InventoryError(f"the inventory {chosen} is not UTF-8; save it as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise InventoryError(f"{chosen}: {toml_problem(error, text)}") from None
    return _read(chosen, document)


def resolve_hosts(
    arguments: Sequence[str], inventory: Mapping[str, str], known: Mapping[str, str]
) -> tuple[HostTarget, ...]:
    """HOST arguments as targets: ``NAME=ADDRESS``, an address, or a name of the inventory or of earlier runs.

    The inventory goes before earlier runs. Raises `UnknownHost` naming near names, `InventoryError` for bad
    addresses and doubled names.
    """
    targets = tuple(_resolve(argument, inventory, known) for argument in arguments)
    check_distinct(targets)
    return targets


def all_hosts(inventory: Mapping[str, str], known: Mapping[str, str]) -> tuple[HostTarget, ...]:
    """Every host there is a name for, one an address: the inventory's names go before those of earlier runs."""
    targets: dict[str, HostTarget] = {}
    for names in (inventory, known):
        for name, address in names.items():
            target = host_target(name, address, name)
            targets.setdefault(target.address, target)
    return tuple(targets.values())


def host_target(name: str, address: str, where: str) -> HostTarget:
    """The target, its address normalised to ``HOST:PORT``. Raises `InventoryError` beginning with ``where``."""
    check_name(name, where)
    return HostTarget(name, _normal(address, where))


def check_distinct(targets: Sequence[HostTarget]) -> None:
    """Raise `InventoryError` when two targets share a name or an address: results could not be told apart."""
    by_name: dict[str, HostTarget] = {}
    by_address: dict[str, HostTarget] = {}
    for target in targets:
        other = by_address.get(target.address)
        if other == target:
            raise InventoryError(f"the host {target.name} is named twice; name it once")
        if target.name in by_name:
            raise InventoryError(
                f"two hosts are called {target.name} ({by_name[target.name].address} and {target.address}); "
                "name them apart: NAME=ADDRESS"
            )
        if other is not None:
            raise InventoryError(f"{other.name} and {target.name} are both {target.address}; leave one of them out")
        by_name[target.name] = by_address[target.address] = target


def check_name(name: str, where: str) -> None:
    """Raise `InventoryError` for a name that cannot be shown or typed."""
    if name != name.strip() or not 0 < len(name) <= MAXIMUM_NAME_CHARACTERS or not name.isprintable() or "=" in name:
        raise InventoryError(f"{where}: {name[:100]!r} cannot be a host's name; use letters, digits and dashes")


def toml_problem(error: Exception, text: str) -> str:
    """What tomllib says about a text, with the place first: ``line 3, column 5: …``."""
    if isinstance(error, RecursionError):
        return "is nested too deeply"
    found = _LINE.match(str(error))
    if not found:
        return str(error)
    last = text.rstrip().count("\n") + 1
    place = f"line {last}, the last" if found["place"] == "end of document" else found["place"]
    return f"{place}: {found['problem']}"


def _read(path: Path, document: dict[str, object]) -> dict[str, str]:
    how = 'write [hosts] and then name = "address" lines'
    hosts = document.pop("hosts", {})
    problems = [f"{path}: {key[:100]!r} is no key of an inventory; {how}" for key in document]
    if not isinstance(hosts, dict):
        problems.append(f"{path}: hosts must be a table: {how}")
        hosts = {}
    for name, address in hosts.items():
        where = f"{path}: hosts.{name}" if name.isprintable() else f"{path}: hosts"
        if not isinstance(address, str):
            problems.append(f'{where} must be an address such as "{_EXAMPLE}", not {str(address)[:100]!r}')
            continue
        try:
            host_target(name, address, where)
        except InventoryError as error:
            problems.append(str(error))
    if problems:
        raise InventoryError("\n".join(problems))
    return dict(hosts)


def _resolve(argument: str, inventory: Mapping[str, str], known: Mapping[str, str]) -> HostTarget:
    argument = argument.strip()
    name, separator, address = argument.partition("=")
    if separator:
        return host_target(name.strip(), address, f"host {_shown(argument)}")
    for names in (inventory, known):
        if argument in names:
            return host_target(argument, names[argument], f"host {argument}")
    if any(mark in argument for mark in (":", ".", "/")) or argument == "localhost":
        return host_target(argument, argument, f"host {_shown(argument)}")
    near = difflib.get_close_matches(argument, {**inventory, **known}, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? If not, " if near else ""
    name = argument if argument and argument.isprintable() else "NAME"
    raise UnknownHost(f"no host is known as {argument[:100]!r}; {hint}give its address: {name[:100]}={_EXAMPLE}")


def _normal(address: str, where: str) -> str:
    """``HOST:PORT``. Stricter than `split_address`: a slip is told here, and not as a host that cannot be reached."""
    if "://" in address:
        raise InventoryError(
            f"{where}: an agent's address has no {address.partition('://')[0][:20]!r}://; write {_EXAMPLE}"
        )
    try:
        host, port = split_address(address)
    except ValueError as error:
        raise InventoryError(f"{where}: {error}") from None
    if not _is_host(host) or address.count("[") != address.count("]"):
        hint = "IPv6 with a port needs brackets: [::1]:50551" if ":" in address else f"for example {_EXAMPLE}"
        raise InventoryError(f"{where}: {address[:100]!r} is no address; write HOST:PORT, {hint}")
    return join_address(host, port)


def _is_host(host: str) -> bool:
    """Whether it is a host's name or an IP address. Digits and dots are an address: 10.0.0 is a slip, not a name."""
    if ":" not in host and not re.fullmatch(r"[\d.]+", host):
        return _HOSTNAME.fullmatch(host) is not None
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _shown(text: str) -> str:
    return text[:200] if text.isprintable() else ascii(text[:200])
