"""Who may do what here: each call's client certificate against the revocation list and agent.toml.

TLS has verified by then that the certificate is one of the lab's authority, in its time, and for clients. Serial
numbers are read here, from the bytes, because the library for certificates would cost a resting agent 9 MB.
"""

from __future__ import annotations

import datetime
import logging
import math
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import grpc

from benchfleet.failures import Failure, Reason
from benchfleet.tls import file_stamp, read_limited
from benchfleet.transport import refusal
from benchfleet_agent import followers
from benchfleet_agent.renewal import Renewal

READ_CALLS = frozenset({"GetHost", "ListModels", "GetJob", "ListJobs", "StreamJobEvents"})
"""What ``read`` allows, none of which takes a path or a model's name, nor a URL (`needs`): a reader sends the agent
nowhere."""
RUN_CALLS = frozenset(
    {
        "ResolveModel",  # asks the server that the caller names
        "PullModel", "RemoveModel", "UnloadModel", "MeasureLimits", "StartJob", "CancelJob", "ReleaseJobEvents",
    }
)  # fmt: skip
"""What takes ``run``, which also allows what ``read`` does. Calls in neither set are nobody's (a test finds them)."""
EVERYONE = "*"
LOOK_S = 1.0
"""How often at most the revocation list's file is looked at."""
_SEQUENCE, _INTEGER, _VERSION = 0x30, 0x02, 0xA0
_TIMES = (0x17, 0x18)
_BEGIN, _END = "-----BEGIN X509 CRL-----", "-----END X509 CRL-----"
_log = logging.getLogger(__name__)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


def needs(call: str, request: Any) -> str:
    """The call whose permission a request takes: one that names a server is a runner's, whatever it asks there."""
    names_server = bool(getattr(request, "endpoint_url", None))
    return "ResolveModel" if call in READ_CALLS and names_server else call


@dataclass(frozen=True, slots=True)
class AccessPolicy:
    """``[access]`` of agent.toml: names of controllers' certificates, ``*`` for every one.

    When neither is given, every controller that the authority certified may run: whoever certified it decided that.
    """

    read: frozenset[str] | None = None
    run: frozenset[str] | None = None

    def allows(self, name: str, call: str) -> bool:
        """Whether the controller of that name may make that call."""
        if self.read is None and self.run is None:
            return True
        if {name, EVERYONE} & (self.run or frozenset()):
            return call in READ_CALLS | RUN_CALLS
        return call in READ_CALLS and bool({name, EVERYONE} & (self.read or frozenset()))


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose call it is, as TLS verified it."""

    name: str
    serial: int
    tls_version: str
    end_s: float = math.inf
    """Until when the certificate is valid, in seconds since 1970: TLS looked at it when the connection began."""

    @classmethod
    def of(cls, context: Context) -> Caller | None:
        """None when the connection shows no certificate that can be read."""
        shown = context.auth_context()

        def first(key: str) -> bytes:
            values = list(shown.get(key, ()))
            return bytes(values[0]) if values else b""

        try:
            serial, end_s = serial_and_end(ssl.PEM_cert_to_DER_cert(first("x509_pem_cert").decode()))
        except ValueError:
            return None
        name = first("x509_common_name").decode(errors="replace")
        return cls(name, serial, first("ssl_tls_version").decode(errors="replace"), end_s) if name else None


def follower(context: Context, policy: AccessPolicy) -> followers.Caller:
    """Who wants to follow a job; in clear text, where nobody has a name, each connection is somebody who may run."""
    caller = Caller.of(context)
    if caller is None:
        return followers.Caller(str(context.peer()), may_run=True)
    return followers.Caller(caller.name, policy.allows(caller.name, "StartJob"))


class Revocations:
    """The serial numbers that the authority took back, read again when the file changes."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Raise OSError or ValueError for a list that cannot be read: without one nobody is let in."""
        self._path = path
        self._clock = clock
        self._stamp = file_stamp(path)
        self._serials = revoked_serials(read_limited(path))
        self._looked_at = clock()

    def hold(self, serial: int) -> bool:
        """Whether a certificate is revoked."""
        now = self._clock()
        if now - self._looked_at >= LOOK_S:
            self._looked_at = now
            self._look()
        return serial in self._serials

    def _look(self) -> None:
        stamp = file_stamp(self._path)
        if stamp == self._stamp:
            return
        try:
            self._serials = revoked_serials(read_limited(self._path))
        except (OSError, ValueError) as error:  # perhaps half-way through copying
            _log.warning("the revocation list from before stays in use: %s: %s", self._path, error)
            return
        self._stamp = stamp
        _log.info("%s: %d certificates are revoked", self._path, len(self._serials))


class AccessControl(grpc.aio.ServerInterceptor):
    """Refuses calls before the service sees them; a stream also ends when its caller expires or is revoked."""

    def __init__(
        self,
        policy: AccessPolicy,
        revocations: Revocations,
        renewal: Renewal | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._policy = policy
        self._revocations = revocations
        self._renewal = renewal
        self._wall_clock = wall_clock

    def judge(self, caller: Caller | None, call: str) -> tuple[grpc.StatusCode, Failure] | None:
        """Why a call is refused; None when it may go on."""
        if caller is None:
            message = "the connection shows no certificate with a name; make one with `benchfleet certs controller`"
            return grpc.StatusCode.UNAUTHENTICATED, Failure(Reason.UNAUTHENTICATED, message)
        if caller.tls_version != "TLSv1.3":
            message = f"this agent speaks TLS 1.3 only, not {caller.tls_version[:20]!r}"
            return grpc.StatusCode.UNAUTHENTICATED, Failure(Reason.UNAUTHENTICATED, message)
        if caller.end_s < self._wall_clock():
            message = f"the certificate of {caller.name!r} has expired; renew it with `benchfleet certs renew`"
            return grpc.StatusCode.UNAUTHENTICATED, Failure(Reason.UNAUTHENTICATED, message)
        if self._revocations.hold(caller.serial):
            message = (
                f"the certificate of {caller.name!r} with serial number {caller.serial:x} is revoked; "
                "ask for a new one: `benchfleet certs controller`"
            )
            return grpc.StatusCode.UNAUTHENTICATED, Failure(Reason.UNAUTHENTICATED, message)
        if not self._policy.allows(caller.name, call):
            what = (
                "look but not run or change anything" if self._policy.allows(caller.name, "GetHost") else "do nothing"
            )
            message = f"{caller.name!r} may {what} here; the host's agent.toml says who may ([access], read and run)"
            return grpc.StatusCode.PERMISSION_DENIED, Failure(Reason.PERMISSION_DENIED, message)
        return None

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Put the check in front of a call's handler."""
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return None
        call = str(handler_call_details.method).rpartition("/")[2]

        async def answer(request: Any, context: Context) -> Any:
            await self._begin(context, Caller.of(context), call, needs(call, request))
            if self._renewal is not None and call == "GetHost":
                await self._renewal.take(context.invocation_metadata() or ())
            return await handler.unary_unary(request, context)

        async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
            caller = Caller.of(context)  # one connection, one certificate
            await self._begin(context, caller, call, call)
            async for message in handler.unary_stream(request, context):
                await self._check(context, caller, call, call)
                yield message

        coders = {
            "request_deserializer": handler.request_deserializer, "response_serializer": handler.response_serializer,
        }  # fmt: skip
        if handler.request_streaming:
            return None  # the contract has no such call
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(stream, **coders)
        return grpc.unary_unary_rpc_method_handler(answer, **coders)

    async def _begin(self, context: Context, caller: Caller | None, call: str, needed: str) -> None:
        await self._check(context, caller, call, needed)
        if caller is not None and needed not in READ_CALLS:
            _log.info("%s by %r", call, caller.name)

    async def _check(self, context: Context, caller: Caller | None, call: str, needed: str) -> None:
        """Abort unless the caller may do what ``call`` needs: the permission for ``needed``."""
        refused = self.judge(caller, needed)
        if refused is None:
            return
        _log.warning("%s refused: %s", call, refused[1].message)
        await context.abort_with_status(refusal(*refused))


def serial_and_end(der: bytes) -> tuple[int, float]:
    """A certificate's serial number, and until when it is valid in seconds since 1970 (RFC 5280 §4.1).

    Raises ValueError.
    """
    signed = next(_elements(_one(der, _SEQUENCE)), (0, b""))
    parts = list(_elements(_expect(signed, _SEQUENCE)))
    # version?, serialNumber, signature, issuer, validity, …
    parts = parts[1:] if parts and parts[0][0] == _VERSION else parts
    if len(parts) < 4:
        raise ValueError("a DER element is missing in a certificate")
    _, end = [*_elements(_expect(parts[3], _SEQUENCE)), (0, b""), (0, b"")][:2]
    return int.from_bytes(_expect(parts[0], _INTEGER), signed=True), _moment(*end)


def _moment(tag: int, content: bytes) -> float:
    """A UTCTime (its years are 1950 to 2049) or GeneralizedTime."""
    if tag not in _TIMES:
        raise ValueError("a DER element of a time was expected")
    text = content.decode("ascii")
    if tag == _TIMES[0]:
        text = ("19" if text[:2] >= "50" else "20") + text
    return datetime.datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=datetime.UTC).timestamp()


def revoked_serials(pem: bytes) -> frozenset[int]:
    """The serial numbers in a revocation list (RFC 5280 §5.1). Raises ValueError for anything else."""
    try:
        text = pem.decode("ascii").strip()
        if not (text.startswith(_BEGIN) and text.endswith(_END)) or text.count("-----BEGIN") != 1:
            raise ValueError("not in PEM")
        as_certificate = text.replace(_BEGIN, ssl.PEM_HEADER).replace(_END, ssl.PEM_FOOTER)
        return _revoked_serials(ssl.PEM_cert_to_DER_cert(as_certificate))
    except ValueError as error:
        raise ValueError(f"this is no revocation list: {error}") from None


def _revoked_serials(der: bytes) -> frozenset[int]:
    signed = next(_elements(_one(der, _SEQUENCE)), (0, b""))
    parts = list(_elements(_expect(signed, _SEQUENCE)))
    # version, signature, issuer, thisUpdate, nextUpdate?, revokedCertificates?, extensions?
    if len(parts) < 4 or parts[0] != (_INTEGER, b"\x01") or parts[3][0] not in _TIMES:
        raise ValueError("not of version 2")
    rest = parts[5:] if len(parts) > 4 and parts[4][0] in _TIMES else parts[4:]
    if not rest or rest[0][0] != _SEQUENCE:
        return frozenset()
    entries = (_expect(entry, _SEQUENCE) for entry in _elements(rest[0][1]))
    return frozenset(
        int.from_bytes(_expect(next(_elements(entry), (0, b"")), _INTEGER), signed=True) for entry in entries
    )


def _one(der: bytes, tag: int) -> bytes:
    """The content of the one element that the bytes are."""
    elements = list(_elements(der))
    if len(elements) != 1:
        raise ValueError("one DER element was expected")
    return _expect(elements[0], tag)


def _expect(element: tuple[int, bytes], tag: int) -> bytes:
    if element[0] != tag or not element[1]:
        raise ValueError(f"a DER element of tag {tag:#x} was expected, not {element[0]:#x}")
    return element[1]


def _elements(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and content of DER elements that follow each other (X.690 §8.1, with one-byte tags)."""
    at = 0
    while at < len(der):
        if at + 2 > len(der):
            raise ValueError("a DER element is cut off")
        tag, length = der[at], der[at + 1]
        at += 2
        if length & 0x80:
            count = length & 0x7F
            if not 0 < count <= 4 or at + count > len(der):
                raise ValueError("a DER element's length makes no sense")
            length = int.from_bytes(der[at : at + count])
            at += count
        if at + length > len(der):
            raise ValueError("a DER element is cut off")
        yield tag, der[at : at + length]
        at += length
