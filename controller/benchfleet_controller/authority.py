"""A lab's certificate authority: one directory with its key, its revocation list and all it ever issued.

Nothing is recorded but certificates themselves: who has one, until when and for what is read from them.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from benchfleet.tls import CredentialFiles, private_directory, read_limited, write_private
from benchfleet_controller.certificates import (
    CONTROLLER,
    HOST,
    AuthorityError,
    Issued,
    authority_identifier,
    builder_of,
    checked_name,
    common_name,
    host_names,
    key_usage,
    load_key,
    new_key,
    private_pem,
    revocation_list,
)

DAY = datetime.timedelta(days=1)
AUTHORITY_DAYS = 3650
DEFAULT_DAYS = 397
MAXIMUM_DAYS = 825
_KINDS = {HOST: "host", CONTROLLER: "controller"}


class Authority:
    """The authority in a directory of mode 0700; all its files are 0600 and replaced whole."""

    def __init__(self, directory: Path) -> None:
        """Open an authority. Raises `AuthorityError` when there is none."""
        self.directory = directory
        try:
            self.certificate = x509.load_pem_x509_certificate(read_limited(directory / "ca.pem"))
            self._key = load_key(directory / "ca.key")
            self._revoked = x509.load_pem_x509_crl(read_limited(directory / "crl.pem"))
        except FileNotFoundError as error:
            name = Path(error.filename).name
            raise AuthorityError(
                f"there is no authority in {directory} (no {name}); make one with `benchfleet certs init`, "
                "or name its directory with --dir"
            ) from None
        except (OSError, ValueError, TypeError) as error:
            raise AuthorityError(f"the authority in {directory} cannot be read: {error}") from None
        if self.certificate.public_key() != self._key.public_key():
            raise AuthorityError(f"ca.key and ca.pem in {directory} do not belong together")

    @classmethod
    def create(cls, directory: Path, name: str, now: datetime.datetime) -> Authority:
        """Make a new authority with an empty revocation list. Raises `AuthorityError` when there is one."""
        checked_name(name)
        if any((directory / file).exists() for file in ("ca.key", "ca.pem")):
            raise AuthorityError(f"there is an authority in {directory} already; every host and controller trusts it")
        key = new_key()
        subject = common_name(name)
        certificate = (
            builder_of(subject, subject, key.public_key(), now, now + AUTHORITY_DAYS * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(key_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        try:
            private_directory(directory)
            write_private(directory / "ca.key", private_pem(key))
            write_private(directory / "ca.pem", certificate.public_bytes(serialization.Encoding.PEM))
            write_private(directory / "crl.pem", revocation_list(certificate, key, [], 1, now))
        except OSError as error:
            raise AuthorityError(f"{directory} cannot be written: {error.strerror or error}") from None
        return cls(directory)

    @property
    def authority_pem(self) -> bytes:
        """The authority's own certificate, which everybody trusts."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def revocations_pem(self) -> bytes:
        """The revocation list."""
        return self._revoked.public_bytes(serialization.Encoding.PEM)

    def issue_host(
        self,
        name: str,
        addresses: Sequence[str],
        key: ec.EllipticCurvePublicKey,
        now: datetime.datetime,
        days: int = DEFAULT_DAYS,
    ) -> Issued:
        """Certify a host under its name and its addresses (IP addresses or DNS names, without ports)."""
        return self._issue(name, HOST, host_names(name, addresses), key, now, days)

    def issue_controller(
        self, name: str, key: ec.EllipticCurvePublicKey, now: datetime.datetime, days: int = DEFAULT_DAYS
    ) -> Issued:
        """Certify a controller under a name such as ``anna@laptop``; agents decide by it what it may do."""
        return self._issue(name, CONTROLLER, [], key, now, days)

    def renew(self, name: str, now: datetime.datetime, days: int = DEFAULT_DAYS) -> Issued:
        """Certify the same key under the same names for longer.

        Raises `AuthorityError` for a name without a certificate, or whose newest one is revoked.
        """
        newest = self.newest(name)
        if newest.revoked:
            raise AuthorityError(f"{name} is revoked; certify it anew: `benchfleet certs enrol {name}`")
        if newest.kind == "host":
            return self.issue_host(name, newest.addresses, newest.public_key, now, days)
        return self.issue_controller(name, newest.public_key, now, days)

    def revoke(self, name_or_serial: str, now: datetime.datetime) -> list[Issued]:
        """Take back every certificate of a name, or the one of a serial number; those that are revoked now.

        Raises `AuthorityError` when there is none.
        """
        known = self.issued()
        chosen = [one for one in known if name_or_serial in (one.name, one.serial)]
        if not chosen:
            raise AuthorityError(self._unknown(name_or_serial, known))
        fresh = [one for one in chosen if not one.revoked]
        if fresh:
            builders = [x509.RevokedCertificateBuilder().serial_number(one.certificate.serial_number) for one in fresh]
            entries = [*self._revoked, *(builder.revocation_date(now).build() for builder in builders)]
            number = self._revoked.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number + 1
            content = revocation_list(self.certificate, self._key, entries, number, now)
            self._write(self.directory / "crl.pem", content)
            self._revoked = x509.load_pem_x509_crl(content)
            for bundle in self.directory.glob("*/*/crl.pem"):
                self._write(bundle, content)
        return [Issued(one.certificate, revoked=True) for one in chosen]

    def issued(self) -> list[Issued]:
        """All it ever issued, by kind and name, the newest of a name first."""
        found = []
        for path in sorted((self.directory / "issued").glob("*.pem")):
            try:
                certificate = Issued.read(path).certificate
                entry = self._revoked.get_revoked_certificate_by_serial_number(certificate.serial_number)
                one = Issued(certificate, revoked=entry is not None)
                order = (one.kind, one.name, -certificate.not_valid_after_utc.timestamp())
            except (OSError, ValueError, x509.ExtensionNotFound) as error:
                raise AuthorityError(f"{path} cannot be read: {error}") from None
            found.append((order, one))
        return [one for _, one in sorted(found, key=lambda pair: pair[0])]

    def newest(self, name: str) -> Issued:
        """The newest certificate of a name. Raises `AuthorityError` when there is none."""
        known = self.issued()
        for one in known:
            if one.name == name:
                return one
        raise AuthorityError(self._unknown(name, known))

    def write_bundle(self, files: CredentialFiles, issued: Issued, key: ec.EllipticCurvePrivateKey | None) -> None:
        """Write what a side needs; without a key, one that is there stays and must be the certificate's."""
        try:
            private_directory(files.key.parent)
            if key is None and files.key.exists() and load_key(files.key).public_key() != issued.public_key:
                raise AuthorityError(f"{files.key} is not the key of the certificate of {issued.name}")
        except ValueError as error:
            raise AuthorityError(str(error)) from None
        except OSError as error:
            raise AuthorityError(f"{files.key.parent} cannot be written: {error.strerror or error}") from None
        if key is not None:
            self._write(files.key, private_pem(key))
        self._write(files.certificate, issued.pem)
        self._write(files.authority, self.authority_pem)
        self._write(files.revocations, self.revocations_pem)

    def bundle(self, issued: Issued) -> CredentialFiles:
        """Where the files of a host or another controller are written, to be copied there."""
        if issued.kind == "host":
            return CredentialFiles.host(self.directory / "hosts" / issued.name)
        return CredentialFiles.controller(self.directory / "controllers" / issued.name)

    def _issue(
        self,
        name: str,
        purpose: x509.ObjectIdentifier,
        names: Sequence[x509.GeneralName],
        key: ec.EllipticCurvePublicKey,
        now: datetime.datetime,
        days: int,
    ) -> Issued:
        checked_name(name)
        if any(one.name == name and one.kind != _KINDS[purpose] for one in self.issued()):
            raise AuthorityError(f"{name} names a {'host' if purpose == CONTROLLER else 'controller'} already")
        if not 0 < days <= MAXIMUM_DAYS:
            raise AuthorityError(f"a certificate may be valid for 1 to {MAXIMUM_DAYS} days, not {days}")
        if not isinstance(key.curve, ec.SECP256R1):
            raise AuthorityError(f"the key is on {key.curve.name}; benchfleet uses P-256")
        end = min(now + days * DAY, self.certificate.not_valid_after_utc)
        if end <= now:
            raise AuthorityError("the authority has expired; make a new one in another directory")
        builder = (
            builder_of(common_name(name), self.certificate.subject, key, now, end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(authority_identifier(self.certificate), critical=False)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        try:
            directory = private_directory(self.directory / "issued")
        except OSError as error:
            raise AuthorityError(f"{self.directory} cannot be written: {error.strerror or error}") from None
        issued = Issued(certificate)
        self._write(directory / f"{issued.serial}.pem", issued.pem)
        return issued

    def _unknown(self, name: str, known: Sequence[Issued]) -> str:
        names = ", ".join(sorted({one.name for one in known})) or "nobody yet"
        return f"there is no certificate of {name[:100]!r}; there are those of: {names}"

    def _write(self, path: Path, content: bytes) -> None:
        try:
            write_private(path, content)
        except OSError as error:
            raise AuthorityError(f"{path} cannot be written: {error.strerror or error}") from None
