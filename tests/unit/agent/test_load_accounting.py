"""Accounting on scripted chunks, each with its truth: no socket, no clock.

The table's first rows are the shapes on which other benchmarks are wrong by up to a factor of two.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from benchfleet.failures import Reason, WorkFailed
from benchfleet_agent.load.accounting import Answer, Counts, End, account, estimate_tokens, verdict
from benchfleet_agent.load.record import Accounting, TokensSource
from benchfleet_agent.load.server_timings import ServerTimings, read_timings

MS = 1_000_000


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **extra: Any) -> dict[str, Any]:
    return {"choices": [] if delta is None else [{"delta": delta, "finish_reason": finish}], **extra}


def content(text: str = " tok") -> dict[str, Any]:
    return chunk({"content": text})


def thought(text: str = " tok") -> dict[str, Any]:
    return chunk({"reasoning_content": text})


def finish(reason: str = "length") -> dict[str, Any]:
    return chunk({}, reason)


def usage(output: int, reasoning: int | None = None) -> dict[str, Any]:
    details = {} if reasoning is None else {"completion_tokens_details": {"reasoning_tokens": reasoning}}
    return chunk(usage={"prompt_tokens": 7, "completion_tokens": output, **details})


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("token generation failed: bad allocation: std::bad_alloc", Reason.OUT_OF_MEMORY),
        ("failed to allocate 900 bytes", Reason.OUT_OF_MEMORY),
        ("exceeds the model's maximum context length", Reason.CONTEXT_OVERFLOW),
        ("boom", Reason.STREAM_ERROR),
    ],
)
def test_an_error_inside_a_stream_has_the_reason_it_names(said: str, reason: Reason) -> None:
    for take in (lambda body: Answer().chunk(body, 1, 1), lambda body: Answer().whole(body)):
        with pytest.raises(WorkFailed) as caught:
            take({"error": {"message": said, "type": "server_error"}})
        assert caught.value.failure.reason is reason
        assert said in caught.value.failure.message


TIMINGS = {"prompt_n": 32, "prompt_ms": 201.348, "predicted_n": 4, "predicted_ms": 58.648, "cache_n": 0}


def test_the_servers_own_timings_are_kept() -> None:
    last = {**usage(4), "timings": TIMINGS}
    expected = ServerTimings(201.348 / 1e3, 58.648 / 1e3, 32, 4)
    assert played(content(), content(), finish(), last).server_timings == expected
    whole = Answer()
    whole.whole({"choices": [{"message": {"content": "x"}}], "timings": TIMINGS})
    assert whole.server_timings == expected
    assert played(content(), finish(), usage(1)).server_timings == ServerTimings()


@pytest.mark.parametrize(
    ("timings", "expected"),
    [
        (None, None),
        ([], None),
        ({}, None),
        ({"prompt_ms": -1, "predicted_ms": float("nan"), "prompt_n": True, "predicted_n": 1 << 40}, None),
        ({"prompt_ms": "5", "predicted_ms": 10**400}, None),
        ({"prompt_ms": 0, "prompt_n": 0}, ServerTimings(prefill_s=0.0, prefill_tokens=0)),
    ],
)
def test_timings_that_make_no_sense_are_none(timings: object, expected: ServerTimings | None) -> None:
    assert read_timings(timings) == expected


def count_words(text: str) -> int:
    """A tokenizer with a token a word."""
    return len(text.split())


def played(*chunks: dict[str, Any], reads: list[int] | None = None) -> Answer:
    """The answer after these chunks, one every millisecond, each in a read of its own unless said otherwise."""
    answer = Answer()
    for number, one in enumerate(chunks):
        answer.chunk(one, number * MS, reads[number] if reads else number)
    return answer


@dataclass(frozen=True)
class Case:
    name: str
    chunks: list[dict[str, Any]]
    accounting: Accounting
    output: int
    visible: int | None
    hidden: int | None
    reasoning: int | None
    source: TokensSource = TokensSource.USAGE
    tokenizer: bool = field(default=False)


ROLE = chunk({"role": "assistant", "content": ""})
CASES = [
    Case("a token a chunk", [ROLE, *[content()] * 64, finish(), usage(64)], Accounting.CONSISTENT, 64, 64, 0, 0),
    Case(
        "usage in the finish chunk",
        [content(), content(), chunk({}, "stop", usage={"completion_tokens": 2})],
        Accounting.CONSISTENT, 2, 2, 0, 0,
    ),
    Case(
        "usage on every chunk",
        [chunk({"content": " a"}, usage={"completion_tokens": n}) for n in (1, 2, 3)],
        Accounting.CONSISTENT, 3, 3, 0, 0,
    ),
    Case(
        "streamed reasoning",
        [*[thought()] * 32, *[content()] * 32, finish(), usage(64)],
        Accounting.CONSISTENT, 64, 64, 0, 32,
    ),
    Case(
        "streamed reasoning with details",
        [*[thought()] * 32, *[content()] * 32, finish(), usage(64, 32)],
        Accounting.CONSISTENT, 64, 64, 0, 32,
    ),
    Case(
        "hidden reasoning with details",
        [*[content()] * 32, finish(), usage(64, 32)],
        Accounting.HIDDEN_TOKENS, 64, 32, 32, 32,
    ),
    Case(
        "hidden reasoning, told by the tokenizer",
        [*[content()] * 32, finish(), usage(64)],
        Accounting.HIDDEN_TOKENS, 64, 32, 32, None, tokenizer=True,
    ),
    Case(
        "hidden reasoning without details: cause unproven",
        [*[content()] * 32, finish(), usage(64)],
        Accounting.FEWER_CHUNKS_THAN_TOKENS, 64, None, None, None,
    ),
    Case(
        "reasoning counted apart but inside the content",
        [*[content()] * 64, finish(), usage(64, 32)],
        Accounting.CONSISTENT, 64, 64, 0, 32,
    ),
    Case(
        "hidden reasoning and a stop token",
        [*[content()] * 31, finish("stop"), usage(64, 32)],
        Accounting.HIDDEN_TOKENS, 64, 31, 33, 32,
    ),
    Case(
        "four tokens a chunk",
        [*[content(" tok" * 4)] * 16, finish(), usage(64)],
        Accounting.SEVERAL_TOKENS_PER_CHUNK, 64, None, None, None,
    ),
    Case(
        "four tokens a chunk, told by the tokenizer",
        [*[content(" tok" * 4)] * 16, finish(), usage(64)],
        Accounting.SEVERAL_TOKENS_PER_CHUNK, 64, 64, 0, None, tokenizer=True,
    ),
    Case(
        "stop token counted",
        [*[content()] * 10, finish("stop"), usage(11)],
        Accounting.STRUCTURE_TOKENS_COUNTED, 11, 10, 1, 0,
    ),
    Case(
        "one token missing without a natural end",
        [*[content()] * 10, finish("length"), usage(11)],
        Accounting.FEWER_CHUNKS_THAN_TOKENS, 11, None, None, None,
    ),
    Case(
        "more chunks than tokens",
        [*[content()] * 10, finish(), usage(8)],
        Accounting.MORE_CHUNKS_THAN_TOKENS, 8, None, None, None,
    ),
    Case(
        "no usage",
        [*[content()] * 32, finish()],
        Accounting.NO_USAGE, 32, 32, None, None, TokensSource.ESTIMATE,
    ),
    Case(
        "no usage, four tokens a chunk",
        [*[content(" tok" * 4)] * 16, finish()],
        Accounting.NO_USAGE, 64, 64, None, None, TokensSource.ESTIMATE,
    ),
    Case(
        "no usage, with a tokenizer",
        [thought(), *[content(" tok" * 4)] * 16, finish()],
        Accounting.NO_USAGE, 65, 65, None, 1, TokensSource.TOKENIZER, tokenizer=True,
    ),
    Case(
        "usage without numbers is none",
        [content(), finish(), chunk(usage={"completion_tokens": "many"})],
        Accounting.NO_USAGE, 1, 1, None, None, TokensSource.ESTIMATE,
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_accounting(case: Case) -> None:
    counts = account(played(*case.chunks), count=count_words if case.tokenizer else None)
    assert counts.accounting is case.accounting
    assert (counts.output_tokens, counts.visible_tokens, counts.hidden_tokens) == (
        case.output, case.visible, case.hidden,
    )  # fmt: skip
    assert counts.reasoning_tokens == case.reasoning
    assert counts.tokens_source is case.source


def test_moments() -> None:
    answer = played(ROLE, thought(), content(), content(), finish("stop"), usage(3))
    assert answer.role_ns == 0
    assert answer.first_reasoning_ns == 1 * MS
    assert answer.first_content_ns == 2 * MS
    assert list(answer.stamps) == [1 * MS, 2 * MS, 3 * MS]
    assert answer.finish_ns == 4 * MS
    assert answer.usage_ns == 5 * MS
    assert (answer.text, answer.reasoning_text, answer.finish_reason) == (" tok tok", " tok", "stop")


@pytest.mark.parametrize("value", ["", None])
def test_role_chunk_is_no_token(value: str | None) -> None:
    answer = played(chunk({"role": "assistant", "content": value}))
    assert answer.role_ns == 0
    assert not answer.stamps


def test_role_and_content_in_one_chunk() -> None:
    answer = played(chunk({"role": "assistant", "content": "a"}))
    assert answer.role_ns == answer.first_content_ns == 0


@pytest.mark.parametrize(
    "delta",
    [
        {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]},
        {"function_call": {"arguments": "{"}},
        {"content": [{"type": "text", "text": "a"}]},
        {"refusal": "no"},
    ],
)
def test_all_these_are_tokens_of_the_answer(delta: dict[str, Any]) -> None:
    answer = played(chunk(delta), finish("tool_calls"))
    assert answer.first_content_ns == 0
    assert len(answer.stamps) == 1
    assert verdict(answer, End.DONE) is None


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning"])
def test_reasoning_by_either_name(key: str) -> None:
    answer = played(chunk({key: "hm"}))
    assert answer.first_reasoning_ns == 0
    assert answer.first_content_ns is None
    assert len(answer.stamps) == 1


def test_chunks_of_one_read_are_coalesced() -> None:
    answer = played(ROLE, content(), content(), content(), content(), reads=[1, 1, 1, 2, 2])
    assert answer.coalesced_chunks == 2


@pytest.mark.parametrize(
    ("chunks", "end", "reason"),
    [
        ([content(), finish()], End.DONE, None),
        ([content(), finish()], End.BODY, None),
        ([content(), finish()], End.CUT, None),
        ([content()], End.DONE, None),
        ([content()], End.BODY, Reason.STREAM_TRUNCATED),
        ([content()], End.CUT, Reason.STREAM_TRUNCATED),
        ([], End.BODY, Reason.STREAM_TRUNCATED),
        ([ROLE, finish("stop")], End.DONE, Reason.EMPTY_ANSWER),
        ([], End.DONE, Reason.EMPTY_ANSWER),
    ],
)
def test_verdict(chunks: list[dict[str, Any]], end: End, reason: Reason | None) -> None:
    failure = verdict(played(*chunks), end)
    assert (failure.reason if failure else None) == reason


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"error": {"message": "out of memory"}}, Reason.OUT_OF_MEMORY),
        ({"object": "error", "message": "it broke"}, Reason.STREAM_ERROR),
        ("text", Reason.BAD_RESPONSE),
        ([1], Reason.BAD_RESPONSE),
        ({"choices": "none"}, Reason.BAD_RESPONSE),
        ({"choices": [None]}, Reason.BAD_RESPONSE),
    ],
)
def test_what_is_no_chunk(bad: Any, reason: Reason) -> None:
    with pytest.raises(WorkFailed) as caught:
        Answer().chunk(bad, 0, 0)
    assert caught.value.failure.reason is reason
    said = bad.get("message", "") if isinstance(bad, dict) else ""
    assert said in caught.value.failure.message


@pytest.mark.parametrize(
    "odd", [{}, {"choices": None}, {"choices": [{}]}, {"choices": [{"delta": None}]}, {"usage": 3}]
)
def test_odd_but_harmless_chunks(odd: dict[str, Any]) -> None:
    assert not Answer().chunk(odd, 0, 0)


def whole(**extra: Any) -> Answer:
    answer = Answer()
    message = {"role": "assistant", "content": "a b c", **extra.pop("message", {})}
    answer.whole({"choices": [{"message": message, "finish_reason": "stop"}], **extra})
    return answer


def test_one_body_has_counts_but_no_moments() -> None:
    answer = whole(usage={"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 5}})
    assert verdict(answer, End.BODY) is None
    assert account(answer) == Counts(
        Accounting.NOT_STREAMED,
        prompt_tokens=7,
        cached_prompt_tokens=5,
        output_tokens=3,
        tokens_source=TokensSource.USAGE,
    )
    assert not answer.stamps
    assert (answer.first_content_ns, answer.finish_ns, answer.usage_ns) == (None, None, None)
    assert account(answer, count=count_words).visible_tokens == 3


def test_one_body_with_hidden_reasoning() -> None:
    details = {"completion_tokens": 13, "completion_tokens_details": {"reasoning_tokens": 10}}
    counts = account(whole(usage=details))
    assert (counts.visible_tokens, counts.hidden_tokens, counts.reasoning_tokens) == (3, 10, 10)


@pytest.mark.parametrize("bad", [{"error": {"message": "x"}}, {"hello": 1}, [], None])
def test_one_body_that_is_no_answer(bad: object) -> None:
    with pytest.raises(WorkFailed):
        Answer().whole(bad)


def test_failed_requests_keep_what_the_server_counted() -> None:
    assert account(played(content()), failed=True) == Counts(Accounting.INCOMPLETE)
    counts = account(played(finish(), usage(32)), failed=True)
    assert (counts.accounting, counts.output_tokens, counts.visible_tokens) == (Accounting.INCOMPLETE, 32, None)


@pytest.mark.parametrize(("text", "chunks", "tokens"), [(" tok" * 8, 8, 8), ("x" * 100, 2, 25), ("abcde", 0, 2)])
def test_estimate(text: str, chunks: int, tokens: int) -> None:
    assert estimate_tokens((text,), chunks) == tokens
