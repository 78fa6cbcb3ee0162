"""Every odd shape of a stream, sent by a server that knows when it sent what, and its expected outcome.

All of them run in one round of a real load process, so each also shows that the next request goes on.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from benchmarks.peers.answers import Answer, true_answer
from benchmarks.peers.ours import judged

from benchfleet.failures import Reason
from benchfleet_agent.load.record import Accounting, RequestRecord, StampSource, Status, TokensSource
from fakes.load_link import LATE_NS, MS, Fake, Load, assert_stamps_are_true, running_load, running_server

pytestmark = pytest.mark.timing
pytest.importorskip("openai")


@pytest.fixture(scope="module")
def fake() -> Iterator[Fake]:
    with running_server() as fake:
        yield fake


@pytest.fixture(scope="module")
def load(fake: Fake, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Load]:
    with running_load(tmp_path_factory.mktemp("load"), fake) as load:
        yield load


@dataclass
class Case:
    """A script and its expected outcome."""

    tag: str
    script: dict[str, Any] = field(default_factory=dict)
    reason: Reason | None = None
    accounting: Accounting = Accounting.CONSISTENT
    source: TokensSource | None = TokensSource.USAGE
    output: int | None = 16
    visible: int | None = 16
    hidden: int | None = 0
    reasoning: int | None = 0
    chunks: int = 16
    status: int | None = 200


def failed(tag: str, reason: Reason, chunks: int, http: int | None = 200, **script: Any) -> Case:
    accounting, source = Accounting.INCOMPLETE, None
    return Case(tag, script, reason, accounting, source, None, None, None, None, chunks, http)


def guessed(tag: str, tokens: int = 16, chunks: int = 16, output: int | None = None, **script: Any) -> Case:
    script |= {"usage": False, "tokens": tokens}
    output = output or tokens
    flags = Accounting.NO_USAGE, TokensSource.ESTIMATE
    return Case(tag, script, None, *flags, output, output, None, None, chunks)


def unproven(tag: str, accounting: Accounting, output: int = 16, chunks: int = 16, **script: Any) -> Case:
    return Case(tag, script, None, accounting, TokensSource.USAGE, output, None, None, None, chunks)


CASES = [
    Case("plain"),
    Case("role_early", {"role": "early"}),
    Case("role_null", {"role": "early", "role_content": None}),
    Case("role_with_content", {"role": "with"}),
    Case("no_role", {"role": "none"}),
    Case("comments", {"comments": True}),
    Case("reasoning", {"reasoning": 6}, reasoning=6),
    Case("reasoning_details", {"reasoning": 6, "reasoning_key": "reasoning", "details": True}, reasoning=6),
    Case("tool_call", {"tool_call": True, "finish_reason": "tool_calls"}),
    unproven("hidden", Accounting.FEWER_CHUNKS_THAN_TOKENS, 32, hidden=16),
    Case(
        "hidden_details",
        {"hidden": 16, "details": True},
        accounting=Accounting.HIDDEN_TOKENS,
        output=32,
        hidden=16,
        reasoning=16,
    ),
    Case(
        "stop_token",
        {"stop_token": True, "finish_reason": "stop"},
        accounting=Accounting.STRUCTURE_TOKENS_COUNTED,
        output=17,
        hidden=1,
    ),
    unproven("multi4", Accounting.SEVERAL_TOKENS_PER_CHUNK, chunks=4, tokens_per_chunk=4),
    unproven("multi4_reasoning", Accounting.SEVERAL_TOKENS_PER_CHUNK, chunks=4, tokens_per_chunk=4, reasoning=8),
    # 96 bytes at four a token; 16 it was: a guess, and flagged as one.
    guessed("multi4_no_usage", chunks=4, output=24, tokens_per_chunk=4, token_text=" token"),
    guessed("no_usage"),
    guessed("short_no_usage", 8, 8),
    Case("late_finish", {"finish_delay_ms": 100}),
    Case("stall", {"stall_at": 8, "stall_ms": 200}),
    Case("burst", {"chunks_per_write": 4, "role": "none"}),
    Case("cached", {"cached": 5}),
    Case("crlf", {"line_end": "\r\n"}),
    Case("split_utf8", {"split_utf8": True, "token_text": "漢", "tokens": 8}, output=8, visible=8, chunks=8),
    unproven("big_line", Accounting.MORE_CHUNKS_THAN_TOKENS, chunks=17, big_line_bytes=1 << 20),
    Case("no_done", {"end": "no_done"}),
    Case("cut_after_finish", {"end": "cut_after_finish"}),
    Case("closing", {"close": True}),
    Case("after_closing"),
    unproven("ignores_stream", Accounting.NOT_STREAMED, chunks=0, ignore_stream=True),
    failed("empty", Reason.EMPTY_ANSWER, 0, tokens=0, usage=False, finish_reason="stop"),
    failed("error_object", Reason.STREAM_ERROR, 4, end="error", error="failed to create generator"),
    failed("no_finish", Reason.STREAM_TRUNCATED, 16, end="no_finish"),
    failed("cut", Reason.STREAM_TRUNCATED, 4, end="cut"),
    failed("reset", Reason.STREAM_TRUNCATED, 4, end="reset"),
    failed("broken_json", Reason.BAD_RESPONSE, 4, end="broken_json"),
    failed("bad_utf8", Reason.BAD_RESPONSE, 4, end="bad_utf8"),
    failed("no_object", Reason.BAD_RESPONSE, 4, end="no_object"),
    failed("body_cut", Reason.STREAM_TRUNCATED, 0, ignore_stream=True, end="cut"),
    failed("drop", Reason.CONNECTION_FAILED, 0, None, end="drop"),
    failed("garbage", Reason.BAD_RESPONSE, 0, None, end="garbage"),
    failed("no_model", Reason.MODEL_NOT_FOUND, 0, 404, status=404, error="Model not found: No model matching x"),
    failed("no_path", Reason.HTTP_ERROR, 0, 404, status=404, error="no such path"),
    failed("overflow", Reason.CONTEXT_OVERFLOW, 0, 400, status=400, error="exceeds the maximum context length"),
    failed("limited", Reason.RATE_LIMITED, 0, 429, status=429, error="slow down, sk-test-secret"),
    failed("broken", Reason.HTTP_ERROR, 0, 500, status=500),
    failed("busy", Reason.HTTP_ERROR, 0, 503, status=503),
    failed("moved", Reason.REDIRECTED, 0, 307, status=307, location="http://127.0.0.1:1/v1/chat/completions"),
    Case("last"),
]

GUESSED = {"multi4_no_usage"}
"""Where nobody can count what arrived."""

Outcome = tuple[dict[str, RequestRecord], dict[str, Any]]


@pytest.fixture(scope="module")
def shapes(load: Load) -> Outcome:
    load.open()
    return load.round(*[{"tag": case.tag, **case.script} for case in CASES])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.tag)
def test_shape(case: Case, shapes: Outcome, fake: Fake) -> None:
    record = shapes[0][case.tag]
    assert (record.status, record.reason) == (Status.FAILED if case.reason else Status.OK, case.reason), record.message
    assert record.http_status == case.status
    assert (record.accounting, record.tokens_source) == (case.accounting, case.source)
    counts = (record.output_tokens, record.visible_tokens, record.hidden_tokens, record.reasoning_tokens)
    assert counts == (case.output, case.visible, case.hidden, case.reasoning)
    assert record.chunks == len(record.token_ns) == case.chunks
    assert record.prompt_tokens == (7 if case.source is TokensSource.USAGE else None)
    if case.reason is None:
        assert record.message is None
        assert_moments_in_order(record)
    if case.chunks:
        assert_stamps_are_true(record, fake, case.tag)


@pytest.fixture(scope="module")
def answers(shapes: Outcome) -> dict[str, Answer]:
    """What a user of the store would see, by tag."""
    started = sorted((record.start_ns or 0, tag) for tag, record in shapes[0].items() if record.status is Status.OK)
    tags = [tag for _, tag in started]
    return dict(zip(tags, judged([shapes[0][tag] for tag in tags]), strict=True))


STREAMED = [case for case in CASES if case.reason is None and case.chunks]


@pytest.mark.parametrize("case", STREAMED, ids=lambda case: case.tag)
def test_rates_of_each_shape_are_the_servers(
    case: Case, shapes: Outcome, answers: dict[str, Answer], fake: Fake
) -> None:
    """Times may be late, as the machine is; what is divided by them may not be wrong at all."""
    record, answer = shapes[0][case.tag], answers[case.tag]
    truth = true_answer(fake.truth(case.tag), case.script.get("tokens", 16), case.script.get("tokens_per_chunk", 1))
    sent = fake.sent_ns(case.tag)
    assert answer.ttft_s is not None
    assert truth.ttft_s is not None
    assert -0.001 < answer.ttft_s - truth.ttft_s < LATE_NS / 1e9
    assert answer.tokens_per_s is not None
    assert truth.tokens_per_s is not None
    assert answer.itl_s == pytest.approx(1 / answer.tokens_per_s)
    if case.tag in GUESSED:
        assert record.tokens_source is TokensSource.ESTIMATE
        return
    decode_s = (record.token_ns[-1] - record.token_ns[0]) / 1e9
    after_the_first = truth.tokens_per_s * (sent[-1] - sent[0]) / 1e9
    assert answer.tokens_per_s * decode_s == pytest.approx(
        after_the_first
    )  # where it sends one chunk uncounted, its count decides


def assert_moments_in_order(record: RequestRecord) -> None:
    wire = (record.start_ns, record.sent_ns, record.headers_ns, record.first_byte_ns)
    answer = (record.last_content_ns, record.finish_ns, record.usage_ns, record.done_ns, record.end_ns)
    moments = [moment for moment in (*wire, *answer) if moment is not None]
    assert moments == sorted(moments)


def test_everything_is_sent_explicitly(shapes: Outcome, fake: Fake) -> None:
    sampling = {"max_tokens": 16, "temperature": 0, "top_p": 1, "seed": 42}
    wanted = {"model": "fake", "stream": True, "stream_options": {"include_usage": True}, **sampling}
    assert fake.truth("plain")["body"] == wanted


def test_role_chunk_is_apart_from_the_first_token(shapes: Outcome, fake: Fake) -> None:
    for tag in ("role_early", "role_null"):
        record = shapes[0][tag]
        assert record.role_ns is not None
        assert record.first_content_ns is not None
        assert abs(record.role_ns - fake.sent_ns(tag, "role")[0]) < LATE_NS
        assert record.first_content_ns - record.role_ns > 8 * MS  # 5 and 20 ms after the request
        assert record.start_ns is not None
        assert record.token_ns[0] == record.first_content_ns - record.start_ns
    assert shapes[0]["role_with_content"].role_ns == shapes[0]["role_with_content"].first_content_ns
    assert shapes[0]["no_role"].role_ns is None


def test_reasoning_is_tokens_before_the_content(shapes: Outcome, fake: Fake) -> None:
    record = shapes[0]["reasoning"]
    sent = fake.sent_ns("reasoning")
    assert record.first_reasoning_ns is not None
    assert record.first_content_ns is not None
    assert abs(record.first_reasoning_ns - sent[0]) < LATE_NS
    assert record.first_content_ns >= sent[6]
    assert (record.text, record.reasoning_text) == (" tok" * 10, " tok" * 6)


def test_hidden_tokens_delay_the_first_token(shapes: Outcome) -> None:
    record = shapes[0]["hidden_details"]
    assert record.token_ns[0] > 50 * MS  # 20 ms and 16 hidden tokens of 2 ms


def test_a_late_finish_is_no_token(shapes: Outcome, fake: Fake) -> None:
    record = shapes[0]["late_finish"]
    assert record.last_content_ns is not None
    assert record.finish_ns is not None
    assert abs(record.finish_ns - fake.sent_ns("late_finish", "finish")[0]) < LATE_NS
    assert record.finish_ns - record.last_content_ns > 90 * MS
    assert (record.token_ns[-1] - record.token_ns[0]) / 15 < 4 * MS  # the gaps are 2 ms; 100 more would show as 8.7


def test_a_stall_is_one_gap(shapes: Outcome) -> None:
    stamps = shapes[0]["stall"].token_ns
    gaps = [after - before for before, after in itertools.pairwise(stamps)]
    assert [number for number, gap in enumerate(gaps) if gap > 190 * MS] == [7]


def test_coalesced_chunks_are_counted(shapes: Outcome) -> None:
    assert shapes[0]["burst"].coalesced_chunks >= 12  # 16 chunks in four writes
    assert shapes[0]["comments"].coalesced_chunks <= 4


def test_texts(shapes: Outcome) -> None:
    records = shapes[0]
    assert records["split_utf8"].text == "漢" * 8
    assert len(records["big_line"].text) == (1 << 20) + 16 * 4
    assert records["cached"].cached_prompt_tokens == 5
    assert records["tool_call"].text == ""
    assert records["tool_call"].first_content_ns is not None
    assert "failed to create generator" in str(records["error_object"].message)
    assert "127.0.0.1:1" in str(records["moved"].message)


def test_no_secret_in_any_message(shapes: Outcome) -> None:
    assert all("sk-test-secret" not in json.dumps(record.to_dict()) for record in shapes[0].values())


def test_connections_are_kept_and_made_before_they_are_timed(shapes: Outcome, fake: Fake) -> None:
    records = shapes[0]
    tags = [case.tag for case in CASES]
    until_cut = tags[: tags.index("cut_after_finish") + 1]
    assert len({fake.truth(tag)["connection"] for tag in until_cut}) == 1
    fresh = [tag for tag in tags[: tags.index("ignores_stream")] if records[tag].connect_duration_ns is not None]
    assert fresh == ["plain", "closing", "after_closing"]  # the first of all, after a cut, after Connection: close
    assert records["after_closing"].token_ns[0] < 20 * MS + LATE_NS


def test_round_tells_its_cost(shapes: Outcome) -> None:
    finished = shapes[1]
    assert finished["round_id"] == "R"
    assert 0 < finished["cpu_ns"] < finished["end_ns"] - finished["start_ns"]
    if sys.platform == "linux":
        assert 10 << 20 < finished["rss_bytes"] < 80 << 20


def test_stamp_source(shapes: Outcome, load: Load) -> None:
    expected = StampSource.KERNEL if sys.platform == "linux" else StampSource.SOCKET
    assert load.opened["stamp_source"] == expected
    assert set(load.opened["versions"]) >= {"openai", "python"}
    good = [record for record in shapes[0].values() if record.status is Status.OK]
    assert sum(record.stamp_source is expected for record in good) > 0.8 * len(good)
