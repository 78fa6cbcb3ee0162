"""HTTP/1.1 response bodies (RFC 9112 §6 and §7), decoded as they arrive. Pure: it is given bytes, it opens nothing.

h11 would do it too, at a third of the whole client's CPU per token: it parses every chunk's frame with regular
expressions and passes each through a state machine. Nothing is held back: a part of a chunk is yielded when it is
there, and `receive` is called only when everything before has been yielded, so that a stamp taken in `receive` is
the arrival of what comes out next.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

Receive = Callable[[], bytes]
"""The next bytes of the connection; b"" at its end."""

_MAXIMUM_LINE_BYTES = 1 << 16
_SIZE = re.compile(rb"[0-9A-Fa-f]{1,15}\Z")


class BrokenBody(Exception):
    """The body breaks its own framing; ``cut`` when the connection ended inside it."""

    def __init__(self, message: str, *, cut: bool = False) -> None:
        super().__init__(message)
        self.cut = cut


class Body:
    """One response's body: iterate over it; ``reusable`` tells afterwards whether the connection is."""

    def __init__(
        self, status: int, version: bytes, headers: Sequence[tuple[bytes, bytes]], rest: bytes, receive: Receive
    ) -> None:
        """`version` is ``1.0`` or ``1.1``, `headers` have lower-case names, `rest` arrived together with them."""
        named = {name: value.strip().lower() for name, value in headers}
        wishes = named.get(b"connection", b"")
        self.reusable = False
        self._keep = b"close" not in wishes and (version != b"1.0" or b"keep-alive" in wishes)
        self._buffer = rest
        self._receive = receive
        if 100 <= status < 200 or status in (204, 304):
            self._parts = self._sized(0)
        elif b"transfer-encoding" in named:
            self._parts = self._chunked()
        elif b"content-length" in named:
            self._parts = self._sized(int(named[b"content-length"]))
        else:
            self._parts = self._until_closed()

    def __iter__(self) -> Iterator[bytes]:
        return self._parts

    def _chunked(self) -> Iterator[bytes]:
        while True:
            line = self._line()
            # Servers may pad the size and add extensions; Python's int() would take signs and underscores as well.
            digits = line.partition(b";")[0].strip()
            if not _SIZE.match(digits):
                raise BrokenBody(f"a chunk's size is no number: {line[:40]!r}")
            left = int(digits, 16)
            if not left:
                while self._line():  # trailers
                    pass
                self.reusable = self._keep and not self._buffer
                return
            while left:
                part = self._buffer or self._more()
                if len(part) > left:
                    part, self._buffer = part[:left], part[left:]
                else:
                    self._buffer = b""
                left -= len(part)
                yield part
            if self._line():
                raise BrokenBody("a chunk is longer than its size")

    def _sized(self, left: int) -> Iterator[bytes]:
        while left:
            part = self._buffer or self._more()
            part, self._buffer = part[:left], part[left:]
            left -= len(part)
            yield part
        self.reusable = self._keep and not self._buffer

    def _until_closed(self) -> Iterator[bytes]:
        part = self._buffer or self._receive()
        while part:
            yield part
            part = self._receive()

    def _line(self) -> bytes:
        buffer = self._buffer
        while (end := buffer.find(b"\n")) < 0:
            if len(buffer) > _MAXIMUM_LINE_BYTES:
                raise BrokenBody("a line of the framing has no end")
            buffer += self._more()
        self._buffer = buffer[end + 1 :]
        return buffer[: end - 1] if buffer[end - 1 : end] == b"\r" else buffer[:end]

    def _more(self) -> bytes:
        data = self._receive()
        if not data:
            raise BrokenBody("the connection ended inside the body", cut=True)
        return data
