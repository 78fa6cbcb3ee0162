"""Mutual TLS, both sides: the files that hold a certificate, and what gRPC and sockets make of them.

A lab has one certificate authority. Hosts show a certificate for server authentication with their name and addresses
in it, controllers one for client authentication with their name as common name. TLS 1.3 only: gRPC for Python cannot
be told so, but with our P-256 certificates no TLS 1.2 handshake is possible once `require_tls13` has been called.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import re
import ssl
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import grpc

EXPIRY_WARNING = datetime.timedelta(days=30)
MAXIMUM_NAME_CHARACTERS = 64
"""The longest common name there may be (RFC 5280, appendix A, ub-common-name)."""
REVOCATIONS_HEADER, CERTIFICATE_HEADER = "benchfleet-crl-bin", "benchfleet-certificate-bin"
"""Metadata of GetHost over TLS, each DER: the newest revocation list, and the host's renewed certificate."""
_MAXIMUM_FILE_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._@-]*[A-Za-z0-9])?")


class TlsError(Exception):
    """A certificate, key or list cannot be used; says which and what to do."""


@dataclass(frozen=True, slots=True)
class CredentialFiles:
    """Where one side's key, certificate, authority and revocation list lie."""

    key: Path
    certificate: Path
    authority: Path
    revocations: Path

    @classmethod
    def host(cls, directory: Path) -> CredentialFiles:
        """A host's, in ``tls`` of the agent's data directory."""
        return cls._named(directory, "host")

    @classmethod
    def controller(cls, directory: Path) -> CredentialFiles:
        """A controller's, in its certificates directory."""
        return cls._named(directory, "controller")

    @classmethod
    def _named(cls, directory: Path, name: str) -> CredentialFiles:
        return cls(directory / f"{name}.key", directory / f"{name}.pem", directory / "ca.pem", directory / "crl.pem")

    def paths(self) -> tuple[Path, Path, Path, Path]:
        """All four."""
        return self.key, self.certificate, self.authority, self.revocations

    def present(self) -> bool:
        """Whether all are there. Raises `TlsError` when some are and some are not: that is never taken for none."""
        missing = [path for path in self.paths() if not path.is_file()]
        if not missing:
            return True
        # A laptop that only keeps the authority has no credentials of its own.
        if self.key in missing and self.certificate in missing:
            return False
        names = ", ".join(path.name for path in missing)
        raise TlsError(f"{self.key.parent} lacks {names}; enrol again, or copy what is missing")

    def read(self) -> Credentials:
        """Key, certificate and authority, which must fit together. Raises `TlsError`."""
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.load_cert_chain(self.certificate, self.key, password=_no_password)
            context.load_verify_locations(self.authority)
            return Credentials(*(read_limited(path) for path in (self.key, self.certificate, self.authority)))
        except ssl.SSLError as error:
            what = error.reason or str(error)
            message = f"{self.key.name}, {self.certificate.name} and ca.pem in {self.key.parent} do not fit together"
            raise TlsError(f"{message} ({what}); enrol again, or copy them again") from None
        except OSError as error:
            raise TlsError(f"{error.filename or self.key.parent} cannot be read: {error.strerror or error}") from None

    def stamp(self) -> tuple[tuple[int, int, int], ...]:
        """Changes when one of the files does."""
        return tuple(file_stamp(path) for path in self.paths())


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """What one side shows and trusts, as PEM. Has no repr: it holds a private key."""

    key: bytes
    certificate: bytes
    authority: bytes

    def channel(self) -> grpc.ChannelCredentials:
        """For a controller."""
        import grpc

        return grpc.ssl_channel_credentials(self.authority, self.key, self.certificate)


def require_tls13() -> None:
    """Make TLS 1.2 impossible for this process's gRPC. Takes effect only before grpc is imported.

    gRPC for Python offers no least version. BoringSSL chooses among these suites for TLS 1.2 only, and all of them
    need an RSA certificate, which no benchfleet authority issues.
    """
    os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-RSA-AES256-GCM-SHA384"


def server_credentials(files: CredentialFiles, warn: Callable[[str], None]) -> grpc.ServerCredentials:
    """Credentials of an agent that demands a client's certificate and reads changed files without a restart.

    Files that do not fit together, as half-way through copying, are told to ``warn`` and the ones before kept.
    Raises `TlsError` when there are none to begin with.
    """
    import grpc

    def configuration() -> grpc.ServerCertificateConfiguration:
        read = files.read()
        return grpc.ssl_server_certificate_configuration([(read.key, read.certificate)], read.authority)

    served = files.stamp()
    first = configuration()

    def changed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal served
        stamp = files.stamp()
        if stamp == served:
            return None
        try:
            fresh = configuration()
        except TlsError as error:
            warn(f"the certificate from before stays in use: {error}")
            return None
        served = stamp
        return fresh

    # None means no change, which the stubs do not know.
    return grpc.dynamic_ssl_server_credentials(first, changed, require_client_authentication=True)  # type: ignore[arg-type]


def client_context(files: CredentialFiles | None) -> ssl.SSLContext:
    """A TLS 1.3 client that checks the server's chain and its revocation, not its name; None: checks nothing.

    Raises `TlsError`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.set_alpn_protocols(["h2"])
    if files is None:
        context.verify_mode = ssl.CERT_NONE
        return context
    files.read()
    context.load_cert_chain(files.certificate, files.key, password=_no_password)
    try:
        context.load_verify_locations(files.authority)
        context.load_verify_locations(files.revocations)
    except (OSError, ssl.SSLError) as error:
        raise TlsError(f"{files.revocations} cannot be used: {error}") from None
    context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
    return context


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """What a verified certificate says: its names and addresses, and until when."""

    names: tuple[str, ...]
    not_after: datetime.datetime

    @classmethod
    def of(cls, connection: ssl.SSLObject) -> PeerCertificate:
        """The other side's, after a handshake that verified it."""
        found = connection.getpeercert() or {}
        names = tuple(_normal(str(pair[1])) for pair in found.get("subjectAltName", ()))
        seconds = ssl.cert_time_to_seconds(str(found["notAfter"]))
        return cls(names, datetime.datetime.fromtimestamp(seconds, datetime.UTC))

    def is_for(self, name: str) -> bool:
        """Whether it carries a name or an address."""
        return _normal(name) in map(_normal, self.names)


def expiry_warning(not_after: datetime.datetime, now: datetime.datetime) -> str | None:
    """What to say about a certificate that ends within `EXPIRY_WARNING`, or has ended."""
    if not_after <= now:
        return f"expired on {not_after:%Y-%m-%d}"
    if not_after - now <= EXPIRY_WARNING:
        return f"expires on {not_after:%Y-%m-%d}, in {(not_after - now).days} days"
    return None


def certificate_end(pem: bytes) -> datetime.datetime:
    """Until when a certificate is valid. Raises `TlsError`."""
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(pem).not_valid_after_utc
    except ValueError as error:
        raise TlsError(f"this is no certificate: {error}") from None


def check_name(name: str) -> None:
    """Raise `TlsError` for what cannot be a host's or controller's name in a certificate."""
    if len(name) > MAXIMUM_NAME_CHARACTERS or not _NAME.fullmatch(name):
        raise TlsError(
            f"{name[:100]!r} cannot be a certificate's name; use up to {MAXIMUM_NAME_CHARACTERS} letters, digits, "
            "dots, dashes and @"
        )


def private_directory(path: Path) -> Path:
    """Make a directory that only its owner reads (on Windows the user's profile sees to that)."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.chmod(0o700)
    return path


def write_private(path: Path, content: bytes) -> None:
    """Write a file of mode 0600, all of it or none."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".new")  # mkstemp makes it 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise


def read_limited(path: Path) -> bytes:
    """A small file. Raises OSError, also when it is not small."""
    with path.open("rb") as file:
        content = file.read(_MAXIMUM_FILE_BYTES + 1)
    if len(content) > _MAXIMUM_FILE_BYTES:
        raise OSError(f"{path} is larger than {_MAXIMUM_FILE_BYTES} bytes")
    return content


def pem_content(pem: bytes) -> bytes:
    """The DER in a PEM file that holds one thing, of whatever kind. Raises ValueError."""
    lines = pem.decode("ascii").strip().splitlines()
    return ssl.PEM_cert_to_DER_cert("\n".join([ssl.PEM_HEADER, *lines[1:-1], ssl.PEM_FOOTER]))


def file_stamp(path: Path) -> tuple[int, int, int]:
    """Changes when the file does; zeros when there is none."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0, 0
    return status.st_mtime_ns, status.st_size, status.st_ino


def _normal(name: str) -> str:
    """IP addresses in their one short form, names in lower case."""
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name.lower()


def _no_password() -> str:
    raise TlsError("the key is encrypted; benchfleet cannot ask for its password")
