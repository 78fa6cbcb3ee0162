"""How a new host and the authority meet: a token to copy, and two messages over a TLS connection it vouches for.

The token holds a secret, which proves the host to the authority, and the fingerprint of the listener's certificate,
which proves the authority to the host. Each message is one line of JSON.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from dataclasses import dataclass, field

DEFAULT_PORT = 50552
MAXIMUM_MESSAGE_BYTES = 64 << 10
ANSWER_S = 10.0
"""How long either side waits for the other."""
_PREFIX = "join1-"
_SECRET_BYTES = 16


class EnrolmentError(Exception):
    """Enrolment failed; says why and what to do."""


@dataclass(frozen=True, slots=True)
class Token:
    """What is copied from the authority to the new host. Its repr shows nothing of it."""

    secret: bytes = field(repr=False)
    fingerprint: bytes = field(repr=False)

    def __str__(self) -> str:
        return _PREFIX + base64.urlsafe_b64encode(self.secret + self.fingerprint).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> Token:
        """Read a token. Raises `EnrolmentError`, without repeating it."""
        body = text.strip().removeprefix(_PREFIX)
        try:
            content = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            content = b""
        if not text.strip().startswith(_PREFIX) or len(content) != _SECRET_BYTES + hashlib.sha256().digest_size:
            raise EnrolmentError("this is no token; copy the whole line that `benchfleet certs enrol` prints")
        return cls(content[:_SECRET_BYTES], content[_SECRET_BYTES:])

    @staticmethod
    def fingerprint_of(certificate_der: bytes) -> bytes:
        """SHA-256 of a certificate."""
        return hashlib.sha256(certificate_der).digest()

    def vouches_for(self, certificate_der: bytes) -> bool:
        """Whether the listener that shows this certificate made the token."""
        return hmac.compare_digest(self.fingerprint, self.fingerprint_of(certificate_der))


def encode(message: dict[str, str]) -> bytes:
    """One message for the wire."""
    return json.dumps(message).encode() + b"\n"


def decode(line: bytes, *names: str) -> dict[str, str]:
    """The named texts of a message. Raises `EnrolmentError` for anything else, and for what the other side refused."""
    try:
        message = json.loads(line) if 0 < len(line) <= MAXIMUM_MESSAGE_BYTES else None
    except (ValueError, RecursionError):
        message = None
    if isinstance(message, dict) and isinstance(message.get("error"), str):
        raise EnrolmentError(message["error"][:500])
    if not isinstance(message, dict) or not all(isinstance(message.get(name), str) for name in names):
        raise EnrolmentError("the other side does not speak as benchfleet does; install the same version on both")
    return {name: message[name] for name in names}
