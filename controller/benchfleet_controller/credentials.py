"""How this controller reaches an agent: mutual TLS with its own certificate, clear text only where that is safe.

Clear text goes to loopback addresses (an SSH tunnel, the demo), and elsewhere only with ``--insecure-plaintext``.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import ssl
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import grpc
import platformdirs

from benchfleet.addresses import is_loopback, join_address
from benchfleet.failures import Reason, WorkFailed
from benchfleet.tls import (
    CERTIFICATE_HEADER,
    REVOCATIONS_HEADER,
    CredentialFiles,
    PeerCertificate,
    TlsError,
    certificate_end,
    client_context,
    expiry_warning,
    pem_content,
    read_limited,
)
from benchfleet.transport import CHANNEL_OPTIONS

VARIABLE = "BENCHFLEET_CERTS"
MAXIMUM_CARRIED_BYTES = 6000
"""gRPC takes 8 KiB of metadata; some 140 revoked certificates fit. Longer lists are carried by hand."""
# X.509 verification results (openssl-verification-options(1), "Diagnostics").
_NOT_YET_VALID, _EXPIRED, _REVOKED = 9, 10, 23


@dataclass(frozen=True, slots=True)
class Trust:
    """Where the certificates are, and whether clear text is accepted beyond loopback."""

    directory: Path
    insecure_plaintext: bool = False

    def files(self) -> CredentialFiles | None:
        """The controller's own certificate; None when it has none. Raises `TlsError` when a part is missing."""
        files = CredentialFiles.controller(self.directory)
        return files if files.present() else None


def certificates_directory(given: Path | None) -> Path:
    """``--certs`` (``--dir`` of ``certs``), else BENCHFLEET_CERTS, else ``certs`` in the user's configuration."""
    named = os.environ.get(VARIABLE, "").strip()
    chosen = given or (Path(named) if named else Path(platformdirs.user_config_dir("benchfleet", False)) / "certs")
    return chosen.expanduser()


_trust: ContextVar[Trust | None] = ContextVar("trust", default=None)


def choose(directory: Path | None, *, insecure_plaintext: bool) -> None:
    """What every connection from here on goes by; the command line says it once."""
    _trust.set(Trust(certificates_directory(directory), insecure_plaintext))


def chosen() -> Trust:
    """What was chosen, else what the environment says."""
    return _trust.get() or Trust(certificates_directory(None))


@dataclass(frozen=True, slots=True)
class Link:
    """A way to an agent: the channel, and the certificate that the agent showed (None: clear text)."""

    channel: grpc.aio.Channel
    certificate: PeerCertificate | None


async def open_link(name: str, host: str, port: int, timeout_s: float) -> Link:
    """Find out how the agent speaks, and a channel for it.

    Raises `WorkFailed` ``unauthenticated``, saying whose certificate is wrong and what to do.
    """
    trust, address = chosen(), join_address(host, port)
    clear_text_allowed = is_loopback(host) or trust.insecure_plaintext
    try:
        files = trust.files()
        context = client_context(files) if files else None
        own = files.read() if files else None
    except TlsError as error:
        raise WorkFailed(Reason.UNAUTHENTICATED, f"this controller's certificate cannot be used: {error}") from None
    peer = await _introduce(context, host, port, timeout_s) if context else None
    if peer is None or own is None:
        if clear_text_allowed:
            return Link(grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS), None)
        raise WorkFailed(Reason.UNAUTHENTICATED, _no_clear_text(trust, own is None))
    expected = _expected_name(peer, name, host, port)
    # A tunnel ends at 127.0.0.1: there, and wherever the name is certified, the name is what must be right.
    override = [] if expected == host else [("grpc.ssl_target_name_override", expected)]
    return Link(grpc.aio.secure_channel(address, own.channel(), options=[*CHANNEL_OPTIONS, *override]), peer)


def updates(link: Link, name: str) -> list[tuple[str, bytes]]:
    """What an agent should learn on this occasion, as metadata: the revocation list, and its renewed certificate.

    Whoever keeps the authority has the latter after `benchfleet certs renew`. The agent trusts the signatures, not us.
    """
    if link.certificate is None:
        return []
    brought = []
    with contextlib.suppress(OSError, ValueError):
        revocations = pem_content(read_limited(chosen().directory / "crl.pem"))
        if len(revocations) <= MAXIMUM_CARRIED_BYTES:
            brought.append((REVOCATIONS_HEADER, revocations))
    with contextlib.suppress(OSError, ValueError, TlsError):
        renewed = read_limited(chosen().directory / "hosts" / name / "host.pem")
        if certificate_end(renewed) > link.certificate.not_after:
            brought.append((CERTIFICATE_HEADER, pem_content(renewed)))
    return brought


async def explain_silence(link: Link, host: str, port: int, timeout_s: float) -> str | None:
    """Why a call over a fresh link may have failed before the agent could say so; None when TLS is not the reason."""
    if link.certificate is None:
        if not await _speaks_tls(host, port, timeout_s):
            return None
        return (
            f"its agent speaks TLS only, and there is no certificate for this controller in {chosen().directory}; "
            "make one with `benchfleet certs init`, or have one made by whoever keeps the lab's authority"
        )
    files = CredentialFiles.controller(chosen().directory)
    warning = None
    with contextlib.suppress(OSError, TlsError):
        warning = expiry_warning(certificate_end(read_limited(files.certificate)), datetime.datetime.now(datetime.UTC))
    if warning and warning.startswith("expired"):
        return f"the certificate of this controller {warning}; renew it: `benchfleet certs renew`"
    return (
        f"its agent does not accept the certificate of this controller ({files.certificate}); perhaps it trusts "
        "another authority: enrol the host again"
    )


def _expected_name(peer: PeerCertificate, name: str, host: str, port: int) -> str:
    if peer.is_for(name):
        return name
    names = ", ".join(peer.names)
    if is_loopback(host):
        message = (
            f"the certificate of its agent is for {names}, not for {name!r}; through a tunnel the name decides: "
            f"write {peer.names[0] if peer.names else 'NAME'}={join_address(host, port)} if that is the host you mean"
        )
    elif peer.is_for(host):
        return host
    else:
        message = (
            f"the certificate of its agent is for {names}, neither for {name!r} nor for {host}: this may be another "
            "host. If it is not, enrol it again under the right name and address"
        )
    raise WorkFailed(Reason.UNAUTHENTICATED, message)


def _no_clear_text(trust: Trust, no_certificate: bool) -> str:
    if no_certificate:
        return (
            f"there is no certificate for this controller in {trust.directory}, and clear text goes to this machine "
            "only; make certificates with `benchfleet certs init`, use an SSH tunnel, or accept clear text with "
            "--insecure-plaintext"
        )
    return (
        "it does not speak TLS, so its agent has no certificate (or it is no agent); enrol the host with "
        "`benchfleet certs enrol NAME`, use an SSH tunnel, or accept clear text with --insecure-plaintext"
    )


async def _introduce(context: ssl.SSLContext, host: str, port: int, timeout_s: float) -> PeerCertificate | None:
    """The agent's verified certificate; None when it does not speak TLS."""
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, port, ssl=context), timeout_s)
    except ssl.SSLCertVerificationError as error:
        raise WorkFailed(Reason.UNAUTHENTICATED, _why_not_verified(error)) from None
    except (OSError, TimeoutError):
        return None
    try:
        return PeerCertificate.of(writer.get_extra_info("ssl_object"))
    finally:
        await _close(writer)


async def _speaks_tls(host: str, port: int, timeout_s: float) -> bool:
    try:
        opened = asyncio.open_connection(host, port, ssl=client_context(None))
        _, writer = await asyncio.wait_for(opened, timeout_s)
    except (OSError, TimeoutError):
        return False
    await _close(writer)
    return True


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError, TimeoutError):
        await asyncio.wait_for(writer.wait_closed(), 1.0)


def _why_not_verified(error: ssl.SSLCertVerificationError) -> str:
    why = {
        _EXPIRED: "the certificate of its agent has expired; renew it with `benchfleet certs renew` or enrol it again",
        _NOT_YET_VALID: "the certificate of its agent is not valid yet: the clocks of the two machines differ",
        _REVOKED: "the certificate of its agent is revoked; enrol the host again if that is to end",
    }.get(error.verify_code)
    return why or (
        "the certificate of its agent is not of this lab's authority, so it may be anybody; enrol the host with "
        f"`benchfleet certs enrol NAME` ({error.verify_message})"
    )
