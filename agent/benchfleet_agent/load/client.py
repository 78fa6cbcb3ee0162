"""The OpenAI client, and the only module that imports ``openai``.

``cast_to=object`` hands chunks over as parsed JSON, untouched: openai's lenient model construction would cost
about 90 µs a chunk, more than everything else together. ``max_retries=0``: a retry inside a timed region would be
a lie. Its decoder drains one part of the body before it reads the next, so the wire's stamp in force when a chunk
comes out is that chunk's arrival.
"""

from __future__ import annotations

import importlib.metadata
import ssl
from collections.abc import Iterator

import httpx2
import openai

from benchfleet_agent.load.settings import LoadSettings
from benchfleet_agent.load.transport import StampTransport
from benchfleet_agent.load.wire import Exchange


class Overdue(Exception):
    """The exchange's deadline passed."""


class ConnectionLost(Exception):
    """No connection, or it broke off; says how."""


class Refused(Exception):
    """The server answered with a status that is no success."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status
        self.body = body


class ErrorObject(Exception):
    """The server sent an error object inside a stream; the message is its own."""


class Garbled(Exception):
    """What arrived is not what was announced: no JSON, no UTF-8."""


class Client:
    """One worker's client with a connection of its own. Not for use by several threads at once."""

    def __init__(self, settings: LoadSettings, *, kernel: bool, ssl_context: ssl.SSLContext | None) -> None:
        self._transport = StampTransport(settings.base_url, kernel=kernel, ssl_context=ssl_context)
        self._openai = openai.OpenAI(
            base_url=settings.base_url,
            api_key=settings.api_key,
            max_retries=0,
            timeout=None,  # the wire keeps the deadlines
            # A compressed stream is held back until a block is full, which would falsify every arrival.
            default_headers={"Accept-Encoding": "identity"},
            http_client=openai.DefaultHttpxClient(
                transport=self._transport, follow_redirects=False, trust_env=False, timeout=None
            ),
        )

    def begin(self, exchange: Exchange) -> None:
        """Have a connection ready for the exchange. Raises `ConnectionLost`."""
        try:
            self._transport.begin(exchange)
        except OSError as error:
            raise ConnectionLost(str(error)) from error

    def stream(self, body: dict[str, object]) -> Iterator[object]:
        """Send a request and yield its chunks as parsed JSON. Raises the exceptions of this module."""
        try:
            with self._openai.post(
                "/chat/completions", cast_to=object, body=body, stream=True, stream_cls=openai.Stream[object]
            ) as chunks:
                yield from chunks
        except (openai.OpenAIError, httpx2.TransportError, ValueError) as error:
            raise _explained(error) from error

    def ask(self, body: dict[str, object]) -> object:
        """Send a request and return its whole answer as parsed JSON. Raises the exceptions of this module."""
        try:
            return self._openai.post("/chat/completions", cast_to=object, body=body)
        except (openai.OpenAIError, httpx2.TransportError, ValueError) as error:
            raise _explained(error) from error

    def close(self) -> None:
        """Close the connection."""
        self._openai.close()


def tls_context(settings: LoadSettings) -> ssl.SSLContext | None:
    """The TLS settings all workers share; None for plain http. Trusts what the operating system trusts."""
    if not settings.secure:
        return None
    context = httpx2.create_ssl_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def versions() -> dict[str, str]:
    """Versions of what decides how requests are sent."""
    return {name: importlib.metadata.version(name) for name in ("openai", "httpx2", "h11")}


def _explained(error: Exception) -> Exception:
    match error:
        case openai.APITimeoutError():
            return Overdue(str(error))
        case openai.APIStatusError():
            return Refused(error.status_code, error.response.text)
        case openai.APIConnectionError():
            return ConnectionLost(str(error.__cause__ or error))
        case openai.APIError():
            return ErrorObject(error.message)
        case httpx2.TimeoutException():  # while the body of an error response was read
            return Overdue(str(error))
        case httpx2.TransportError():
            return ConnectionLost(str(error))
        case _:
            return Garbled(f"{type(error).__name__}: {error}")
