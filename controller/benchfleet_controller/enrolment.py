"""The authority's side of enrolment: a TLS listener for ten minutes, one host and one secret."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import hmac
import secrets
import socket
import ssl
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from benchfleet.addresses import is_loopback, join_address
from benchfleet.enrolment import ANSWER_S, MAXIMUM_MESSAGE_BYTES, EnrolmentError, Token, decode, encode
from benchfleet.tls import write_private
from benchfleet_controller.authority import DEFAULT_DAYS, Authority
from benchfleet_controller.certificates import AuthorityError, Issued, new_key, private_pem, requested_key

VALID_S = 600.0
ALLOWED_FAILURES = 3
_WILDCARDS = ("0.0.0.0", "::")  # noqa: S104  # recognised, not bound to by this line


@dataclass(slots=True)
class Offer:
    """One secret, good once and until a moment; ends after a few wrong ones, so that guessing is pointless."""

    secret: bytes = field(repr=False)
    ends_at: float
    used: bool = False
    failures: int = 0

    def refuse(self, shown: bytes, now: float) -> str | None:
        """Why a secret is not taken; None takes it, and no other after it."""
        if self.used:
            return "this token was used already"
        if now >= self.ends_at or self.failures >= ALLOWED_FAILURES:
            return "this token is not good any more"
        if not hmac.compare_digest(shown, self.secret):
            self.failures += 1
            return "this is not the token"
        self.used = True
        return None

    def over(self) -> bool:
        """Whether nothing can come of it any more, whatever the time."""
        return self.used or self.failures >= ALLOWED_FAILURES


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A host that joined, and from where."""

    issued: Issued
    peer: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """The host to be: its name, and the addresses to certify (none: the one it comes from)."""

    name: str
    addresses: Sequence[str] = ()
    days: int = DEFAULT_DAYS


async def enrol(
    authority: Authority,
    candidate: Candidate,
    listen: tuple[str, int],
    announce: Callable[[str], None],
    valid_s: float = VALID_S,
) -> Enrolled:
    """Wait for one host that has the token, and certify it. ``announce`` gets the line to copy to it.

    Raises `EnrolmentError` when nobody came in time or too many wrong tokens came, `AuthorityError`, OSError when the
    address is taken.
    """
    offer = Offer(secrets.token_bytes(16), time.monotonic() + valid_s)
    done: asyncio.Future[Enrolled | None] = asyncio.get_running_loop().create_future()
    context, fingerprint = _listener_context()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            peer = str((writer.get_extra_info("peername") or ("",))[0])
            enrolled, answer = await _answer(reader, offer, authority, candidate, peer)
            writer.write(encode(answer))
            await asyncio.wait_for(writer.drain(), ANSWER_S)
        except (OSError, TimeoutError):
            enrolled = None
        finally:
            writer.close()
            with contextlib.suppress(OSError, TimeoutError):  # the host is gone as soon as it has its answer
                await asyncio.wait_for(writer.wait_closed(), ANSWER_S)
        if offer.over() and not done.done():
            done.set_result(enrolled)

    server = await asyncio.start_server(
        serve, *listen, ssl=context, ssl_handshake_timeout=ANSWER_S, limit=MAXIMUM_MESSAGE_BYTES
    )
    try:
        port = server.sockets[0].getsockname()[1]
        address = join_address(_reachable(listen[0], candidate.addresses), port)
        announce(f"benchfleet-agent join {address} {Token(offer.secret, fingerprint)}")
        enrolled = await asyncio.wait_for(done, valid_s)
    except TimeoutError:
        raise EnrolmentError(f"{candidate.name} did not join in time; run the command again for a new line") from None
    finally:
        server.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(server.wait_closed(), 1.0)
    if enrolled is None:
        why = "the host did not take its certificate" if offer.used else "too many wrong tokens were shown"
        raise EnrolmentError(f"{why}; run the command again for a new line")
    return enrolled


async def _answer(
    reader: asyncio.StreamReader, offer: Offer, authority: Authority, candidate: Candidate, peer: str
) -> tuple[Enrolled | None, dict[str, str]]:
    """What one connection gets: certificates, or a reason without details."""
    try:
        line = await asyncio.wait_for(reader.readline(), ANSWER_S)
        asked = decode(line, "secret", "request")
        secret = bytes.fromhex(asked["secret"])
    except (EnrolmentError, ValueError):
        return None, {"error": "this is no request to join; install the same benchfleet on both"}
    refused = offer.refuse(secret, time.monotonic())
    if refused:
        return None, {"error": f"{refused}; run `benchfleet certs enrol` again and copy its line"}
    addresses = candidate.addresses or ([] if is_loopback(peer) else [peer.partition("%")[0]])
    try:
        key = requested_key(asked["request"].encode())
        now = datetime.datetime.now(datetime.UTC)
        issued = authority.issue_host(candidate.name, addresses, key, now, candidate.days)
    except (AuthorityError, ValueError) as error:
        return None, {"error": str(error)}
    answer = {
        "certificate": issued.pem.decode(),
        "authority": authority.authority_pem.decode(),
        "revocations": authority.revocations_pem.decode(),
    }
    return Enrolled(issued, peer), answer


def _listener_context() -> tuple[ssl.SSLContext, bytes]:
    """TLS 1.3 with a certificate made for this one listener, and its fingerprint."""
    key, now = new_key(), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "benchfleet enrolment")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    with tempfile.TemporaryDirectory() as directory:  # the ssl module reads keys from files only
        path = Path(directory) / "listener.pem"
        write_private(path, private_pem(key) + certificate.public_bytes(serialization.Encoding.PEM))
        context.load_cert_chain(path)
    return context, Token.fingerprint_of(certificate.public_bytes(serialization.Encoding.DER))


def _reachable(listen: str, addresses: Sequence[str]) -> str:
    """The address of this machine as the new host sees it, as well as can be known."""
    if listen not in _WILDCARDS:
        return listen
    family = socket.AF_INET6 if listen == "::" else socket.AF_INET
    # Connecting a UDP socket sends nothing: it only asks which way packets would go (RFC 5737: for documentation).
    for target in (*addresses, "192.0.2.1"):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((target, 9))
            return str(probe.getsockname()[0])
    return socket.gethostname()
