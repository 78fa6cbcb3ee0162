"""A lab's certificates: init, host, controller, enrol, renew, revoke, list."""

from __future__ import annotations

import argparse
import asyncio
import datetime
import re
import sys
from collections.abc import Callable
from pathlib import Path

from benchfleet.addresses import DEFAULT_PORT as AGENT_PORT
from benchfleet.addresses import join_address, split_address
from benchfleet.enrolment import DEFAULT_PORT, EnrolmentError
from benchfleet.tls import EXPIRY_WARNING, MAXIMUM_NAME_CHARACTERS, CredentialFiles
from benchfleet_controller.authority import DEFAULT_DAYS, Authority
from benchfleet_controller.campaign import holder
from benchfleet_controller.certificates import AuthorityError, Issued, host_names, new_key
from benchfleet_controller.commands import EXIT_HOST, UsageError, say
from benchfleet_controller.credentials import certificates_directory
from benchfleet_controller.enrolment import Candidate, enrol
from benchfleet_controller.report import Column, render_table

EXIT_DONE = 0
_COLUMNS = (
    Column("name", "Name"), Column("kind", "Kind"), Column("addresses", "Addresses"), Column("state", "State"),
    Column("not_after", "Valid until"), Column("serial", "Serial"),
)  # fmt: skip


def certs(options: argparse.Namespace) -> int:
    """Carry out one action of the authority."""
    actions: dict[str, Callable[[Path, argparse.Namespace], int]] = {
        "init": _init, "host": _host, "controller": _controller, "enrol": _enrol, "renew": _renew, "revoke": _revoke,
        "list": _list,
    }  # fmt: skip
    try:
        return actions[options.action](certificates_directory(options.dir), options)
    except AuthorityError as error:
        raise UsageError(str(error)) from None


def _init(directory: Path, options: argparse.Namespace) -> int:
    authority = Authority.create(directory, options.name or "benchfleet-lab", _now())
    own = _issue_controller(authority, _own_name(), options, CredentialFiles.controller(directory))
    print(f"the lab's authority is in {directory}, and the certificate of this controller, {own.name}")
    print("keep ca.key: whoever has it is let in everywhere. Next, for each host: benchfleet certs enrol NAME")
    return EXIT_DONE


def _host(directory: Path, options: argparse.Namespace) -> int:
    authority, name = Authority(directory), _named(options, "host lab-1 192.168.1.20")
    key = new_key()
    issued = authority.issue_host(name, _addresses(options), key.public_key(), _now(), _days(options))
    files = authority.bundle(issued)
    authority.write_bundle(files, issued, key)
    print(
        f"{name}: copy the files in {files.key.parent} into tls/ of the agent's data directory, then delete them here"
    )
    return EXIT_DONE


def _controller(directory: Path, options: argparse.Namespace) -> int:
    authority, name = Authority(directory), _named(options, "controller anna@laptop")
    if options.address:
        raise UsageError("a controller's certificate has a name and no addresses")
    files = CredentialFiles.controller(directory / "controllers" / name)
    issued = _issue_controller(authority, name, options, files)
    print(
        f"{issued.name}: copy the files in {files.key.parent} into certs/ of its configuration, then delete them here"
    )
    return EXIT_DONE


def _enrol(directory: Path, options: argparse.Namespace) -> int:
    authority, name = Authority(directory), _named(options, "enrol lab-1")
    try:
        listen = split_address(options.listen) if options.listen else ("0.0.0.0", DEFAULT_PORT)  # noqa: S104
    except ValueError as error:
        raise UsageError(str(error)) from None
    candidate = Candidate(name, _addresses(options), _days(options))
    host_names(name, candidate.addresses)  # a slip is told before anybody waits

    def announce(line: str) -> None:
        say(f"on {name}, within ten minutes:")
        print(line, flush=True)

    try:
        enrolled = asyncio.run(enrol(authority, candidate, listen, announce))
    except EnrolmentError as error:
        print(f"benchfleet: {error}", file=sys.stderr)
        return EXIT_HOST
    except OSError as error:
        where = join_address(*listen)
        raise UsageError(f"cannot listen on {where} ({error.strerror or error}); choose with --listen") from None
    issued = enrolled.issued
    say(f"{name} joined from {enrolled.peer}, certified until {issued.not_after:%Y-%m-%d}; for fleet.toml:")
    print(f'{name} = "{join_address((*issued.addresses, name)[0], AGENT_PORT)}"')
    return EXIT_DONE


def _renew(directory: Path, options: argparse.Namespace) -> int:
    authority, now = Authority(directory), _now()
    if options.name:
        names = [options.name]
    else:
        newest = {one.name: one for one in reversed(authority.issued())}.values()
        names = [one.name for one in newest if not one.revoked and one.not_after - now <= EXPIRY_WARNING]
        if not names:
            print(f"nothing expires within {EXPIRY_WARNING.days} days")
    own = CredentialFiles.controller(directory)
    for name in names:
        issued = authority.renew(name, now, _days(options))
        if own.certificate.exists() and Issued.read(own.certificate).public_key == issued.public_key:
            authority.write_bundle(own, issued, None)
            print(f"{name}: valid until {issued.not_after:%Y-%m-%d}, and in use here")
            continue
        files = authority.bundle(issued)
        authority.write_bundle(files, issued, None)
        what = f"copy {files.certificate} into certs/ of its configuration"
        if issued.kind == "host":
            what = "its agent takes it when this controller next asks it; now: benchfleet hosts"
        print(f"{name}: valid until {issued.not_after:%Y-%m-%d}; {what}")
    return EXIT_DONE


def _revoke(directory: Path, options: argparse.Namespace) -> int:
    authority, crl = Authority(directory), directory / "crl.pem"
    for one in authority.revoke(_named(options, "revoke lab-1"), _now()):
        print(f"{one.name}: certificate {one.serial} is revoked")
    print(f"agents learn it when this controller next asks them; now: benchfleet hosts. Elsewhere: copy {crl}")
    return EXIT_DONE


def _list(directory: Path, options: argparse.Namespace) -> int:
    now = _now()
    rows = [
        {"name": one.name, "kind": one.kind, "addresses": ", ".join(one.addresses) or None, "state": one.state(now),
         "not_after": one.not_after.isoformat(), "serial": one.serial}
        for one in Authority(directory).issued()
    ]  # fmt: skip
    sys.stdout.write(render_table(rows, _COLUMNS, options.format))
    return EXIT_DONE


def _issue_controller(authority: Authority, name: str, options: argparse.Namespace, files: CredentialFiles) -> Issued:
    key = new_key()
    issued = authority.issue_controller(name, key.public_key(), _now(), _days(options))
    authority.write_bundle(files, issued, key)
    return issued


def _own_name() -> str:
    """``user@machine``, in the letters that a certificate's name may have."""
    return re.sub(r"[^A-Za-z0-9._@-]+", "-", holder())[:MAXIMUM_NAME_CHARACTERS].strip("-._@") or "controller"


def _named(options: argparse.Namespace, example: str) -> str:
    if not options.name:
        raise UsageError(f"give a name: benchfleet certs {example}")
    return str(options.name)


def _addresses(options: argparse.Namespace) -> list[str]:
    if bad := [address for address in options.address if re.fullmatch(r"\[.*\]:\d+|[^:]+:\d+", address)]:
        raise UsageError(f"{bad[0]}: a certificate is for addresses without ports")
    return list(options.address)


def _days(options: argparse.Namespace) -> int:
    return DEFAULT_DAYS if options.days is None else int(options.days)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
