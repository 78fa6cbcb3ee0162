"""Certificates as a lab has them: what one says, and the forms in which they are made. P-256 throughout.

BoringSSL, inside gRPC, takes no Ed25519 in a handshake unless told to, and Python cannot tell it.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from benchfleet.tls import TlsError, check_name, read_limited

BACKDATED = datetime.timedelta(hours=1)
"""A certificate is valid a little before it was made: the clocks of a lab differ."""
HOST, CONTROLLER = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH


class AuthorityError(Exception):
    """The authority cannot do what was asked; says why and what to do."""


@dataclass(frozen=True, slots=True)
class Issued:
    """One certificate of the authority."""

    certificate: x509.Certificate
    revoked: bool = False

    @classmethod
    def read(cls, path: Path) -> Issued:
        """The certificate in a file. Raises OSError or ValueError."""
        return cls(x509.load_pem_x509_certificate(read_limited(path)))

    @property
    def name(self) -> str:
        """The host's or the controller's name."""
        return str(self.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)

    @property
    def kind(self) -> str:
        """``host`` or ``controller``."""
        usage = self.certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        return "host" if HOST in usage else "controller"

    @property
    def addresses(self) -> tuple[str, ...]:
        """Names and addresses under which a host may be reached, without its own name."""
        if self.kind != "host":
            return ()
        names = self.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        texts = [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]
        return tuple(text for text in texts if text != self.name)

    @property
    def public_key(self) -> ec.EllipticCurvePublicKey:
        """The key it certifies."""
        key = self.certificate.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        return key

    @property
    def serial(self) -> str:
        """The serial number in hexadecimal."""
        return f"{self.certificate.serial_number:x}"

    @property
    def not_after(self) -> datetime.datetime:
        """Until when it is valid."""
        return self.certificate.not_valid_after_utc

    @property
    def pem(self) -> bytes:
        """The certificate itself."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def state(self, now: datetime.datetime) -> str:
        """``valid``, ``expired`` or ``revoked``."""
        if self.revoked:
            return "revoked"
        return "expired" if self.not_after <= now else "valid"


def host_names(name: str, addresses: Sequence[str]) -> list[x509.GeneralName]:
    """A host's name and addresses as its certificate will say them. Raises `AuthorityError`."""
    names: list[x509.GeneralName] = []
    for text in dict.fromkeys((name, *addresses)):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(text)))
        except ValueError:
            checked_name(text)
            if "@" in text:
                raise AuthorityError(f"{text!r} cannot be a host's name or address") from None
            names.append(x509.DNSName(text))
    checked_name(name)
    return names


def new_key() -> ec.EllipticCurvePrivateKey:
    """A key such as every certificate here has."""
    return ec.generate_private_key(ec.SECP256R1())


def requested_key(request: bytes) -> ec.EllipticCurvePublicKey:
    """The public key of a signing request, whose owner has shown to hold the private one. Raises `AuthorityError`."""
    try:
        parsed = x509.load_pem_x509_csr(request)
        public = parsed.public_key()
        if parsed.is_signature_valid and isinstance(public, ec.EllipticCurvePublicKey):
            return public
    except Exception:  # noqa: BLE001, S110  # what came over the network may be anything
        pass
    raise AuthorityError("the signing request makes no sense, or is not for a P-256 key")


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The key as a file of it holds it: not encrypted, so that services start without a person."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The private key in a file. Raises OSError, ValueError or TypeError (it is encrypted)."""
    key = serialization.load_pem_private_key(read_limited(path), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{path} is not a P-256 key")
    return key


def checked_name(name: str) -> None:
    """Raise `AuthorityError` for what cannot be a name in a certificate."""
    try:
        check_name(name)
    except TlsError as error:
        raise AuthorityError(str(error)) from None


def common_name(name: str) -> x509.Name:
    """A subject or issuer."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def builder_of(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: datetime.datetime,
    end: datetime.datetime,
) -> x509.CertificateBuilder:
    """What every certificate begins with."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(end)
    )


def key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    """What a key may sign: certificates and revocation lists, or handshakes."""
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def authority_identifier(certificate: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """Which key signed; Python from 3.13 on demands it of every certificate."""
    identifier = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def revocation_list(
    certificate: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    entries: Sequence[x509.RevokedCertificate],
    number: int,
    now: datetime.datetime,
) -> bytes:
    """Valid as long as the authority: a lab has nobody who would publish a new one every week."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(certificate.subject)
        .last_update(now - BACKDATED)
        .next_update(certificate.not_valid_after_utc)
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(authority_identifier(certificate), critical=False)
    )
    for entry in entries:
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
