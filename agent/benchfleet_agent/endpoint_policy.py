"""Which servers a caller may name: the agent must not become a way into its host's network. Pure: nothing is resolved.

Without ``[runtime.endpoint] allow`` in agent.toml: the configured ``url`` and this host's loopback. With it: the
configured ``url`` and what the list says, nothing else. Names are compared as they are written, so whoever answers
for a name cannot make an address allowed (docs/decisions/0012).
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass

from benchfleet.addresses import is_loopback
from benchfleet.failures import Reason, WorkFailed
from benchfleet_agent.runtimes.dialects.client import normalise_url, root_of

LOOPBACK = ("http://127.0.0.1:*", "http://localhost:*")
"""How the default is written in agent.toml (all of 127.0.0.0/8, ::1 and https belong to it, too)."""
MAXIMUM_URL = 2_000
_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?|[0-9a-f:.]+")
_PATH = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@/-]*")
_ANY_PORT = re.compile(r"(?<=[^:/]):\*(?=/|$)")


@dataclass(frozen=True, slots=True)
class Server:
    """A URL, taken apart."""

    scheme: str
    host: str
    """In lower case; an IPv6 address as `ipaddress` writes it, without brackets."""
    port: int | None
    """None, in a pattern: any."""
    path: str
    """Of the server's own root, without the API's version (``/v1``) and without a slash at its end."""

    def covers(self, other: Server) -> bool:
        """Whether this, as a pattern, allows the other."""
        return (
            (self.scheme, self.host) == (other.scheme, other.host)
            and self.port in (None, other.port)
            and (other.path == self.path or other.path.startswith(f"{self.path}/"))
        )


@dataclass(frozen=True, slots=True)
class EndpointPolicy:
    """What may be named."""

    patterns: tuple[Server, ...] = ()
    """What agent.toml lists, the configured URL among them."""
    loopback: bool = True
    """Whether this host's loopback is allowed without being listed."""

    @classmethod
    def of(cls, configured_url: str = "", allow: Sequence[str] = ()) -> EndpointPolicy:
        """The policy of agent.toml. Raises ValueError for a pattern that makes no sense."""
        patterns = [parse_pattern(text) for text in allow]
        if configured_url:
            patterns.append(_parse(configured_url))
        return cls(tuple(patterns), loopback=not allow)

    def check(self, url: str) -> str:
        """The API's base URL, when it may be asked: `normalise_url`'s, put together again from what was judged.

        Raises `WorkFailed`: ``endpoint_not_allowed`` (saying what to write into agent.toml), ``invalid_spec``.
        """
        try:
            server, base_url = _taken_apart(url)
        except ValueError as error:
            raise WorkFailed(Reason.INVALID_SPEC, f"the endpoint's URL makes no sense: {error}") from None
        if not ((self.loopback and is_loopback(server.host)) or any(one.covers(server) for one in self.patterns)):
            raise WorkFailed(Reason.ENDPOINT_NOT_ALLOWED, self._advice(server))
        return base_url

    def _advice(self, server: Server) -> str:
        wanted = f'"{_origin(server)}"'
        before = ", ".join(f'"{one}"' for one in LOOPBACK)
        write = f"allow = [{before}, {wanted}]" if self.loopback else f"add {wanted} to allow"
        where = "[runtime.endpoint] of the host's agent.toml"
        return f"this agent may not ask {_origin(server)}: to let it, write {write} in {where} and start it again"


def parse_pattern(text: str) -> Server:
    """Read ``scheme://host[:port|:*][/path]``: the port is the scheme's own when left out, the path covers all below.

    Raises ValueError saying what is wrong.
    """
    if "://" not in text:
        raise ValueError(f"{text[:100]!r} has no scheme; write http://HOST:PORT or https://HOST:*")
    scheme, _, rest = text.partition("://")
    plain, starred = _ANY_PORT.subn("", rest, count=1)
    if "*" in plain.partition("/")[0]:
        raise ValueError(f"{text[:100]!r}: only a port may be *; name each host")
    server = _parse(f"{scheme}://{plain}")
    return Server(server.scheme, server.host, None, server.path) if starred else server


def _parse(url: str) -> Server:
    return _taken_apart(url)[0]


def _taken_apart(url: str) -> tuple[Server, str]:
    """Take a URL apart, refusing whatever programs read differently; also the base URL made of the parts alone.

    Raises ValueError.
    """
    if len(url) > MAXIMUM_URL:
        raise ValueError(f"it has more than {MAXIMUM_URL} characters")
    try:
        base = normalise_url(url)
    except WorkFailed as error:
        raise ValueError(error.failure.message) from None
    parts = urllib.parse.urlsplit(base)
    host = (parts.hostname or "").lower()
    port = parts.port if parts.port is not None else _PORTS[parts.scheme]
    if not _HOST.fullmatch(host) or not 0 < port < 65_536:
        raise ValueError("its host must be a name in ASCII or an address, its port between 1 and 65535")
    written_port = "" if parts.port is None else f":{port}"
    if parts.netloc.lower() != f"{_bracketed(host)}{written_port}":  # such as [::1].example: read as ::1 by some
        raise ValueError("it must have nothing but a host and a port between the scheme and the path")
    path = urllib.parse.urlsplit(root_of(base)).path
    if not _PATH.fullmatch(parts.path) or {".", ".."} & set(path.split("/")) or "//" in path:
        raise ValueError("its path has characters or parts (such as ..) that a server's own path never needs")
    with contextlib.suppress(ValueError):  # a name, compared as it is written; 127.1 and 0x7f000001 are names, too
        host = str(ipaddress.ip_address(host))
    return Server(parts.scheme, host, port, path), f"{parts.scheme}://{_bracketed(host)}{written_port}{parts.path}"


def _origin(server: Server) -> str:
    return f"{server.scheme}://{_bracketed(server.host)}:{server.port}{server.path}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
