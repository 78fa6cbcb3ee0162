"""What goes on besides a stream's tokens must not move their stamps."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchfleet_agent.load.record import RequestRecord, TokensSource
from fakes.load_link import MS, Fake, running_load, running_server

pytestmark = pytest.mark.timing
pytest.importorskip("openai")
pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def fake() -> Iterator[Fake]:
    with running_server() as fake:
        yield fake


def test_stamps_after_a_line_of_a_megabyte_are_their_own(fake: Fake, tmp_path: Path) -> None:
    script = {"tokens": 60, "gap_ms": 10, "big_line_bytes": 1 << 20}
    with running_load(tmp_path, fake) as load:
        load.open()
        records, _ = load.round(*[{"tag": f"big{number}", **script} for number in range(3)])
    later = [late_ns(records[f"big{number}"], fake, f"big{number}")[32:] for number in range(3)]
    # Parsing the line takes tens of milliseconds, in which several tokens would share one stamp.
    assert statistics.median(max(errors[:5]) for errors in later) < 8 * MS, later
    assert statistics.median(statistics.median(errors) for errors in later) < MS, later


def test_streams_that_end_and_are_counted_disturb_no_neighbour(fake: Fake, tmp_path: Path) -> None:
    path = write_large_tokenizer(tmp_path)
    with running_load(tmp_path, fake) as load:
        load.open(concurrency=2, tokenizer_path=str(path))
        short = {"tokens": 400, "gap_ms": 0.6, "usage": False}
        records, _ = load.round(
            {"tag": "long", "tokens": 300, "gap_ms": 4}, *[{"tag": f"s{n}", **short} for n in range(4)]
        )
    assert [records[f"s{n}"].tokens_source for n in range(4)] == [TokensSource.TOKENIZER] * 4
    assert [records[f"s{n}"].output_tokens for n in range(4)] == [400] * 4
    errors = late_ns(records["long"], fake, "long")
    near = sorted(
        error
        for error, sent in zip(errors, fake.sent_ns("long"), strict=True)
        if any(0 <= sent - (records[f"s{n}"].done_ns or 0) <= 40 * MS for n in range(4))
    )
    assert near
    assert statistics.median(near) < 2 * MS, (
        near
    )  # reading the tokenizer here would stop every read for 100 ms and more


def write_large_tokenizer(folder: Path) -> Path:
    """A tokenizer to which " tok" is one of 100,000 tokens."""
    import tokenizers

    words = {"tok": 0, "?": 1} | {f"word{number}": number for number in range(2, 100_000)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def late_ns(record: RequestRecord, fake: Fake, tag: str) -> list[int]:
    """How long after it was sent each chunk was stamped."""
    start_ns = record.start_ns or 0
    return [start_ns + offset - sent for offset, sent in zip(record.token_ns, fake.sent_ns(tag), strict=True)]
