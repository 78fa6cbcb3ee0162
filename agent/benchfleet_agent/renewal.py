"""A newer revocation list or a renewed certificate that a controller brings along, so that nobody carries files.

Nobody is trusted for bringing them: both must be signed by the authority, be newer than what is here, and a certificate
must be for the same key and names. A child process reads and checks the bytes, because they come from outside and the
library for certificates would stay in the agent's memory.
"""

from __future__ import annotations

import asyncio
import collections
import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from benchfleet.tls import (
    CERTIFICATE_HEADER,
    REVOCATIONS_HEADER,
    CredentialFiles,
    pem_content,
    read_limited,
    write_private,
)

PAUSE_S = 10.0
"""Least time between two attempts: a controller that brings nonsense must not keep this host busy."""
CHECK_S = 30.0
_log = logging.getLogger(__name__)


class Renewal:
    """Takes what calls bring in their metadata."""

    def __init__(self, files: CredentialFiles, clock: Callable[[], float] = time.monotonic) -> None:
        self._files = files
        self._clock = clock
        self._not_before = 0.0
        self._one = asyncio.Lock()
        self._seen: collections.deque[str] = collections.deque(maxlen=64)

    async def take(self, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """Install what is new and valid; anything else is logged and left alone."""
        brought = {key: value for key, value in metadata if key in (CERTIFICATE_HEADER, REVOCATIONS_HEADER)}
        known = {CERTIFICATE_HEADER: self._files.certificate, REVOCATIONS_HEADER: self._files.revocations}
        news = {
            key: value.hex()
            for key, value in brought.items()
            if isinstance(value, bytes) and value != _der(known[key])
        }  # fmt: skip
        text = json.dumps(news, sort_keys=True)
        if not news or text in self._seen or self._one.locked() or self._clock() < self._not_before:
            return
        async with self._one:
            self._seen.append(text)  # a controller with an old list brings it every time
            self._not_before = self._clock() + PAUSE_S
            await asyncio.to_thread(self._check, text)

    def _check(self, news: str) -> None:
        command = [sys.executable, "-m", "benchfleet_agent.renewal", str(self._files.key.parent)]
        try:
            done = subprocess.run(command, input=news, capture_output=True, text=True, timeout=CHECK_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            _log.warning("what a controller brought could not be checked: %s", error)
            return
        for line in (done.stdout + done.stderr).splitlines()[:10]:
            _log.info("brought by a controller: %s", line[:300])


def install(files: CredentialFiles, news: dict[str, bytes]) -> list[str]:
    """Write what is signed by the authority and newer; what became of each, in words. Raises OSError, ValueError."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    authority = x509.load_pem_x509_certificate(read_limited(files.authority))
    signer = authority.public_key()
    if not isinstance(signer, ec.EllipticCurvePublicKey):
        raise ValueError("the authority's key is of another kind")
    held = x509.load_pem_x509_crl(read_limited(files.revocations))
    said = []
    if content := news.get(REVOCATIONS_HEADER):
        brought = x509.load_der_x509_crl(content)
        if not brought.is_signature_valid(signer) or brought.issuer != authority.subject:
            said.append("a revocation list that the authority did not sign is refused")
        elif _number(brought) <= _number(held):
            said.append("an older revocation list is left alone")
        else:
            write_private(files.revocations, brought.public_bytes(serialization.Encoding.PEM))
            said.append(f"revocation list number {_number(brought)} is in use")
            held = brought
    if content := news.get(CERTIFICATE_HEADER):
        own = x509.load_pem_x509_certificate(read_limited(files.certificate))
        renewed = x509.load_der_x509_certificate(content)
        renewed.verify_directly_issued_by(authority)
        if renewed.public_key() != own.public_key() or _said(renewed) != _said(own):
            said.append("a certificate for another key or other names is refused")
        elif renewed.not_valid_after_utc <= own.not_valid_after_utc:
            said.append("a certificate that ends no later is left alone")
        elif held.get_revoked_certificate_by_serial_number(renewed.serial_number) is not None:
            said.append("a revoked certificate is refused")
        else:
            write_private(files.certificate, renewed.public_bytes(serialization.Encoding.PEM))
            said.append(f"the renewed certificate is in use, valid until {renewed.not_valid_after_utc:%Y-%m-%d}")
    return said


def _number(crl: object) -> int:
    from cryptography import x509

    assert isinstance(crl, x509.CertificateRevocationList)
    return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


def _said(certificate: object) -> tuple[object, ...]:
    """What renewing must not change: the subject, its other names, and what it is for."""
    from cryptography import x509

    assert isinstance(certificate, x509.Certificate)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    return certificate.subject, frozenset(names), frozenset(usage)


def _der(path: Path) -> bytes:
    """The content of a PEM file, or nothing."""
    try:
        return pem_content(read_limited(path))
    except (OSError, ValueError):
        return b""


def main() -> int:
    """The child: directory as argument, JSON of hexadecimal DER on stdin; says on stdout what it did."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.x509 import ExtensionNotFound

    try:
        news = {key: bytes.fromhex(value) for key, value in json.load(sys.stdin).items()}
        for line in install(CredentialFiles.host(Path(sys.argv[1])), news):
            print(line)
    except (OSError, ValueError, TypeError, InvalidSignature, ExtensionNotFound) as error:
        print(f"refused: {error!r}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
