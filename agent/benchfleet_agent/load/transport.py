"""The wire as an httpx2 transport: one request at a time over one connection.

h11 writes requests and reads response heads; bodies are decoded by `http_body`. Nothing is retried or redirected.
"""

from __future__ import annotations

import contextlib
import ssl
import urllib.parse
from collections.abc import Iterator
from time import perf_counter_ns

import h11
import httpx2

from benchfleet_agent.load.held_back import held_back
from benchfleet_agent.load.http_body import Body, BrokenBody
from benchfleet_agent.load.wire import Connection, Exchange, Wire

DRAIN_S = 0.02
"""How long an answer's last bytes behind ``[DONE]`` are awaited, so that the connection can be used again."""
MAXIMUM_HEAD_BYTES = 100 << 10
MAXIMUM_UNPARSED_BYTES = 16 << 20
"""How much of a body that is no event stream is kept."""


class StampTransport(httpx2.BaseTransport):
    """Carries one worker's requests and notes their moments in the current exchange."""

    def __init__(self, base_url: str, *, kernel: bool, ssl_context: ssl.SSLContext | None) -> None:
        parts = urllib.parse.urlsplit(base_url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        self._wire = Wire(parts.hostname or "", port, kernel=kernel, ssl_context=ssl_context)
        self._exchange = Exchange()

    def begin(self, exchange: Exchange) -> None:
        """Make `exchange` the current one and have a connection ready. Raises OSError."""
        self._exchange = exchange
        self._wire.connection()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request and return its response as soon as the head is there."""
        exchange = self._exchange
        try:
            connection = self._wire.connection()
        except OSError as error:
            raise httpx2.ConnectError(str(error)) from error
        exchange.connect_duration_ns, connection.connect_duration_ns = connection.connect_duration_ns, None
        try:
            with _translated():
                machine = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAXIMUM_HEAD_BYTES)
                _send(machine, request, connection, exchange)
                head = _receive_head(machine, connection, exchange)
        except BaseException:
            connection.close()
            raise
        exchange.headers_ns = exchange.last_ns
        exchange.status = head.status_code
        lines = list(head.headers)
        rest, _ = machine.trailing_data
        body = Body(head.status_code, head.http_version, lines, rest, lambda: connection.receive(exchange))
        headers = httpx2.Headers(lines)
        exchange.content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        exchange.location = headers.get("location")
        stream = _Stream(body, connection, exchange)
        return httpx2.Response(status_code=head.status_code, headers=headers, stream=stream)

    def close(self) -> None:
        """Close the connection."""
        self._wire.close()


def _send(machine: h11.Connection, request: httpx2.Request, connection: Connection, exchange: Exchange) -> None:
    """Write the whole request with one call, so that t0 has one meaning."""
    content = request.read()
    start = h11.Request(method=request.method, target=request.url.raw_path, headers=request.headers.raw)
    parts = [machine.send(start), machine.send(h11.Data(data=content)), machine.send(h11.EndOfMessage())]
    # A server may refuse and close before it has read everything; what it said is then still there to be read.
    with contextlib.suppress(ConnectionError):
        connection.send(b"".join(part for part in parts if part), exchange)


def _receive_head(machine: h11.Connection, connection: Connection, exchange: Exchange) -> h11.Response:
    while True:
        event = machine.next_event()
        if isinstance(event, h11.Response):
            return event
        if event is h11.NEED_DATA:
            data = connection.receive(exchange)
            if not data:
                raise httpx2.RemoteProtocolError("the server closed the connection without a response")
            machine.receive_data(data)


class _Stream(httpx2.SyncByteStream):
    """A response's body: notes its first byte and its end, and reads the connection free for the next request."""

    def __init__(self, body: Body, connection: Connection, exchange: Exchange) -> None:
        self._body = body
        self._connection = connection
        self._exchange = exchange
        self._streamed = exchange.content_type == "text/event-stream"

    def __iter__(self) -> Iterator[bytes]:
        exchange = self._exchange
        with _translated():
            yield from held_back(self._parts(), exchange) if self._streamed else self._parts()
        exchange.body_ended = True
        exchange.done_ns = exchange.last_ns

    def _parts(self) -> Iterator[bytes]:
        exchange = self._exchange
        for part in self._body:
            if exchange.first_byte_ns is None:
                exchange.first_byte_ns = exchange.last_ns
            if not self._streamed and len(exchange.unparsed) < MAXIMUM_UNPARSED_BYTES:
                exchange.unparsed += part
            yield part

    def close(self) -> None:
        exchange = self._exchange
        if not exchange.body_ended and not exchange.closed_early:
            # openai stops reading at [DONE] and leaves the body's end behind; read it, or every request would pay
            # for a new connection.
            exchange.closed_early = True
            exchange.done_ns = exchange.last_ns
            exchange.draining = True
            exchange.deadline_ns = min(exchange.deadline_ns, perf_counter_ns() + int(DRAIN_S * 1e9))
            with contextlib.suppress(OSError, BrokenBody):
                for _ in self._body:
                    pass
        if not self._body.reusable:
            self._connection.close()


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Raise what went wrong as the httpx2 errors that a transport owes its client."""
    try:
        yield
    except TimeoutError as error:
        raise httpx2.ReadTimeout(str(error)) from error
    except OSError as error:
        raise httpx2.ReadError(str(error)) from error
    except (h11.ProtocolError, BrokenBody) as error:
        raise httpx2.RemoteProtocolError(str(error)) from error
