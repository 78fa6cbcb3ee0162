"""The wire as an httpx2 transport: httpcore2's public connection pool over our network backend.

One transport, one pool and one connection per worker: nothing is retried, shared or redirected.
"""

from __future__ import annotations

import contextlib
import ssl
import urllib.parse
from collections.abc import Iterable, Iterator
from time import perf_counter_ns

import httpcore2
import httpx2

from benchfleet_agent.load.wire import DRAIN_S, Exchange, StampBackend

MAXIMUM_UNPARSED_BYTES = 16 << 20
"""How much of a body that is no event stream is kept."""


class StampTransport(httpx2.BaseTransport):
    """Carries one worker's requests and notes their moments in the backend's current exchange."""

    def __init__(self, base_url: str, *, kernel: bool, ssl_context: ssl.SSLContext | None) -> None:
        parts = urllib.parse.urlsplit(base_url)
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._ssl_context = ssl_context
        self._backend = StampBackend(kernel=kernel)
        self._pool = httpcore2.ConnectionPool(
            ssl_context=ssl_context,
            max_connections=1,
            max_keepalive_connections=1,
            retries=0,
            http2=False,
            network_backend=self._backend,
        )

    def begin(self, exchange: Exchange) -> None:
        """Make `exchange` the current one and have a connection ready. Raises httpx2.ConnectError."""
        self._backend.exchange = exchange
        try:
            self._backend.prepare(self._host, self._port, self._ssl_context)
        except httpcore2.ConnectError as error:
            raise httpx2.ConnectError(str(error)) from error

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request and return its response as soon as the headers are there."""
        exchange = self._backend.exchange
        assert isinstance(request.stream, httpx2.SyncByteStream)
        url = request.url
        outgoing = httpcore2.Request(
            method=request.method,
            url=httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=request.stream,
        )
        with _translated():
            response = self._pool.handle_request(outgoing)
        exchange.headers_ns = exchange.last_ns
        exchange.status = response.status
        headers = httpx2.Headers(response.headers)
        exchange.content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        exchange.location = headers.get("location")
        return httpx2.Response(status_code=response.status, headers=headers, stream=_Body(response, exchange))

    def close(self) -> None:
        """Close the connection."""
        self._pool.close()
        self._backend.close()


class _Body(httpx2.SyncByteStream):
    """A response's body: notes its first byte and its end, and reads the connection free for the next request."""

    def __init__(self, response: httpcore2.Response, exchange: Exchange) -> None:
        assert isinstance(response.stream, Iterable)
        self._response = response
        self._exchange = exchange
        self._parts: Iterator[bytes] = iter(response.stream)
        self._keep = exchange.content_type != "text/event-stream"

    def __iter__(self) -> Iterator[bytes]:
        exchange = self._exchange
        with _translated():
            for part in self._parts:
                if exchange.first_byte_ns is None:
                    exchange.first_byte_ns = exchange.last_ns
                if self._keep and len(exchange.unparsed) < MAXIMUM_UNPARSED_BYTES:
                    exchange.unparsed += part
                yield part
        exchange.body_ended = True
        exchange.done_ns = exchange.last_ns

    def close(self) -> None:
        exchange = self._exchange
        if not exchange.body_ended and not exchange.closed_early:
            # openai stops reading at [DONE] and so leaves the body's end behind on the connection, which httpcore2
            # would then close: every request would pay for a new one.
            exchange.closed_early = True
            exchange.done_ns = exchange.last_ns
            exchange.draining = True
            exchange.deadline_ns = min(exchange.deadline_ns, perf_counter_ns() + int(DRAIN_S * 1e9))
            with contextlib.suppress(httpcore2.TimeoutException, httpcore2.NetworkError, httpcore2.ProtocolError):
                for _ in self._parts:
                    pass
        self._response.close()


_TRANSLATIONS: tuple[tuple[type[Exception], type[httpx2.TransportError]], ...] = (
    (httpcore2.ConnectError, httpx2.ConnectError),
    (httpcore2.TimeoutException, httpx2.ReadTimeout),
    (httpcore2.NetworkError, httpx2.ReadError),
    (httpcore2.ProtocolError, httpx2.RemoteProtocolError),
)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Raise httpcore2's errors as the httpx2 errors that a transport owes its client."""
    try:
        yield
    except Exception as error:
        for ours, theirs in _TRANSLATIONS:
            if isinstance(error, ours):
                raise theirs(str(error)) from error
        raise
