"""Joining a lab: this host makes its own key, and has it certified by the authority that a token vouches for."""

from __future__ import annotations

import datetime
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from benchfleet.addresses import split_address
from benchfleet.enrolment import ANSWER_S, MAXIMUM_MESSAGE_BYTES, EnrolmentError, Token, decode, encode
from benchfleet.tls import CredentialFiles, private_directory, write_private


@dataclass(frozen=True, slots=True)
class Joined:
    """What this host is from now on."""

    name: str
    addresses: tuple[str, ...]
    authority: str
    not_after: datetime.datetime
    directory: Path


def join(address: str, token: Token, directory: Path, *, force: bool = False) -> Joined:
    """Have a new key certified, and write key, certificate, authority and revocation list into a directory.

    The key never leaves this host. Nothing is written before everything is there and fits together. Raises
    `EnrolmentError`, also when the host belongs to another authority and ``force`` is not given.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder(x509.Name([])).sign(key, hashes.SHA256())
    answer = _ask(address, token, request.public_bytes(serialization.Encoding.PEM).decode())
    files = CredentialFiles.host(directory)
    try:
        certificate = x509.load_pem_x509_certificate(answer["certificate"].encode())
        authority = x509.load_pem_x509_certificate(answer["authority"].encode())
        revocations = x509.load_pem_x509_crl(answer["revocations"].encode())
        signer = authority.public_key()
        if not isinstance(signer, ec.EllipticCurvePublicKey):
            raise ValueError("the authority's key is of another kind")
        certificate.verify_directly_issued_by(authority)
        if certificate.public_key() != key.public_key() or not revocations.is_signature_valid(signer):
            raise ValueError("they do not fit this host's key")
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        name = str(certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value)
        if not force and files.authority.exists():
            known = x509.load_pem_x509_certificate(files.authority.read_bytes())
            if known.public_key() != authority.public_key():
                raise EnrolmentError(
                    f"this host belongs to another authority ({known.subject.rfc4514_string()}); "
                    "move it to the new one with --force"
                )
    except EnrolmentError:
        raise
    except Exception as error:  # noqa: BLE001  # what came over the network may be anything
        raise EnrolmentError(f"the certificates from {address} make no sense ({error}); enrol again") from None
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    contents = (secret, *(answer[kind].encode() for kind in ("certificate", "authority", "revocations")))
    try:
        private_directory(directory)
        for path, content in zip(files.paths(), contents, strict=True):
            write_private(path, content)
    except OSError as error:
        raise EnrolmentError(f"{directory} cannot be written: {error.strerror or error}") from None
    addresses = tuple(str(address) for address in names.get_values_for_type(x509.IPAddress))
    dns = tuple(other for other in names.get_values_for_type(x509.DNSName) if other != name)
    return Joined(
        name, (*dns, *addresses), authority.subject.rfc4514_string(), certificate.not_valid_after_utc, directory
    )


def _ask(address: str, token: Token, request: str) -> dict[str, str]:
    """Send the certificate request to the one listener that the token vouches for."""
    try:
        host, port = split_address(address)
    except ValueError as error:
        raise EnrolmentError(str(error)) from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the fingerprint in the token decides, before anything is sent
    try:
        with (
            socket.create_connection((host, port), ANSWER_S) as plain,
            context.wrap_socket(plain) as connection,
        ):
            if not token.vouches_for(connection.getpeercert(binary_form=True) or b""):
                raise EnrolmentError(
                    f"{address} is not where this token was made: somebody is in between, or the line is an old one; "
                    "run `benchfleet certs enrol` again and copy its line"
                )
            connection.sendall(encode({"secret": token.secret.hex(), "request": request}))
            with connection.makefile("rb") as answers:
                line = answers.readline(MAXIMUM_MESSAGE_BYTES + 1)
    except OSError as error:
        why = getattr(error, "strerror", None) or str(error) or "no answer"
        raise EnrolmentError(
            f"{address} does not answer ({why}); a line is good for ten minutes and for one host: "
            "run `benchfleet certs enrol` again, or check the address and the firewall"
        ) from None
    return decode(line, "certificate", "authority", "revocations")
