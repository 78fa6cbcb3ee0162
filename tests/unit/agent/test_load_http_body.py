"""HTTP bodies cut into every possible pair of reads, and broken in every way."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from benchfleet_agent.load.http_body import Body, BrokenBody

CHUNKED = [(b"transfer-encoding", b"Chunked")]
WIRE = b"4\r\nWiki\r\n6;name=value\r\npedia \r\n00000E \r\nin \r\n\r\nchunks.\r\n0\r\n"
END = b"\r\n"
TEXT = b"Wikipedia in \r\n\r\nchunks."


def reads(*parts: bytes) -> Callable[[], bytes]:
    waiting = list(parts)
    return lambda: waiting.pop(0) if waiting else b""


def body(headers: list[tuple[bytes, bytes]], *parts: bytes, status: int = 200, version: bytes = b"1.1") -> Body:
    return Body(status, version, headers, parts[0], reads(*parts[1:]))


def joined(parts: Iterable[bytes]) -> bytes:
    return b"".join(parts)


@pytest.mark.parametrize("cut", range(len(WIRE + END) + 1))
def test_chunked_however_it_is_cut(cut: int) -> None:
    wire = WIRE + END
    got = body(CHUNKED, wire[:cut], *([wire[cut:]] if wire[cut:] else []))
    assert joined(got) == TEXT
    assert got.reusable


def test_chunked_byte_by_byte_and_with_trailers() -> None:
    wire = WIRE + b"Trailer: x\r\n" + END
    got = body(CHUNKED, b"", *[wire[at : at + 1] for at in range(len(wire))])
    assert joined(got) == TEXT
    assert got.reusable


def test_bare_line_feeds_are_taken() -> None:
    assert joined(body(CHUNKED, b"2\nab\n0\n\n")) == b"ab"


def test_nothing_is_read_before_what_is_there_is_given() -> None:
    calls = []

    def receive() -> bytes:
        calls.append(1)
        return b""

    parts = iter(Body(200, b"1.1", CHUNKED, b"2\r\nab\r\n2\r\ncd\r\n3\r\ne", receive))
    assert [next(parts), next(parts), next(parts)] == [b"ab", b"cd", b"e"]
    assert not calls
    with pytest.raises(BrokenBody) as caught:
        next(parts)
    assert caught.value.cut


@pytest.mark.parametrize(
    "wire", [b"xyz\r\n", b"-1\r\n", b"1_0\r\n", b"+2\r\nab", b"\r\n", b"2\r\nabc\r\n", b"1" * 70_000]
)
def test_broken_framing(wire: bytes) -> None:
    with pytest.raises(BrokenBody) as caught:
        joined(body(CHUNKED, wire))
    assert not caught.value.cut


@pytest.mark.parametrize("cut", range(len(WIRE + END)))
def test_every_cut_is_noticed(cut: int) -> None:
    got = body(CHUNKED, (WIRE + END)[:cut])
    with pytest.raises(BrokenBody) as caught:
        joined(got)
    assert caught.value.cut
    assert not got.reusable


@pytest.mark.parametrize("parts", [(b"hello",), (b"", b"hello"), (b"he", b"llo"), (b"he", b"l", b"lo")])
def test_content_length(parts: tuple[bytes, ...]) -> None:
    got = body([(b"content-length", b"5")], *parts)
    assert joined(got) == b"hello"
    assert got.reusable


def test_content_length_cut() -> None:
    with pytest.raises(BrokenBody) as caught:
        joined(body([(b"content-length", b"6")], b"hello"))
    assert caught.value.cut


def test_what_follows_a_body_spoils_the_connection() -> None:
    got = body([(b"content-length", b"5")], b"hello, world")
    assert joined(got) == b"hello"
    assert not got.reusable


def test_body_until_the_connection_closes() -> None:
    got = body([], b"he", b"llo")
    assert joined(got) == b"hello"
    assert not got.reusable


@pytest.mark.parametrize(
    ("version", "connection", "reusable"),
    [(b"1.1", b"", True), (b"1.1", b"Close", False), (b"1.0", b"", False), (b"1.0", b"Keep-Alive", True)],
)
def test_wishes_for_the_connection(version: bytes, connection: bytes, reusable: bool) -> None:
    got = body([(b"content-length", b"0"), (b"connection", connection)], b"", version=version)
    assert joined(got) == b""
    assert got.reusable is reusable


def test_a_status_without_a_body() -> None:
    got = body([], b"", status=204)
    assert joined(got) == b""
    assert got.reusable
