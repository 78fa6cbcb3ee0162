"""The load process against a server that knows when it sent what: both are real processes over loopback.

Each odd shape of a stream is one row with its expected outcome; all of them run in one round, so each also shows
that the next request goes on.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from benchfleet.failures import Reason
from benchfleet_agent.child import Child
from benchfleet_agent.load.record import Accounting, RequestRecord, StampSource, Status, TokensSource

pytest.importorskip("openai")

# `Child` leaves its ended process's pipe to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

SERVER = Path(__file__).parent.parent / "fakes" / "openai_server.py"
MS = 1_000_000
LATE_NS = 60 * MS
"""What a busy machine may add to any one moment; the median must be far better."""


@dataclass
class Fake:
    """The scripted server."""

    port: int
    truths: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def truth(self, tag: str) -> dict[str, Any]:
        """What the server did for the request with this tag."""
        if tag not in self.truths:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/truth", timeout=10) as response:
                self.truths |= {entry["tag"]: entry for entry in json.load(response)}
        return self.truths[tag]

    def sent_ns(self, tag: str, label: str = "token") -> list[int]:
        """When the server sent what has this label."""
        return [stamp_ns for step, stamp_ns in self.truth(tag)["steps"] if step == label]


@dataclass
class Load:
    """A load process and what it said."""

    child: Child
    fake: Fake
    opened: dict[str, Any] = field(default_factory=dict)

    def open(self, **changes: Any) -> None:
        """Say ``open``."""
        settings = {"base_url": self.fake.base_url, "api_key": "sk-test-secret", "model": "fake", "max_tokens": 16}
        sampling = {"temperature": 0, "top_p": 1, "seed": 42, "request_timeout_s": 20}
        self.child.send({"do": "open", **settings, **sampling, **changes})
        self.opened = self.child.receive(30)
        assert self.opened["event"] == "opened", self.opened

    def start(self, scripts: list[dict[str, Any]]) -> None:
        """Say ``round``; each script's tag is its request's id."""
        requests = [
            {
                "request_id": script["tag"],
                "prompt_id": "p",
                "messages": [{"role": "user", "content": json.dumps(script)}],
            }
            for script in scripts
        ]
        self.child.send({"do": "round", "round_id": "R", "requests": requests})

    def round(self, *scripts: dict[str, Any]) -> tuple[dict[str, RequestRecord], dict[str, Any]]:
        """The records of a round by tag, and what ended it."""
        self.start(list(scripts))
        records = {}
        while (message := self.child.receive(30))["event"] == "request":
            assert message["round_id"] == "R"
            record = RequestRecord.from_dict(message)
            records[record.request_id] = record
        assert message["event"] == "round_finished", message
        return records, message


@pytest.fixture(scope="module")
def fake() -> Iterator[Fake]:
    with subprocess.Popen([sys.executable, str(SERVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield Fake(json.loads(process.stdout.readline())["port"])
        process.stdin.close()


def start_load(folder: Path, fake: Fake, *arguments: str) -> Load:
    command = [sys.executable, "-m", "benchfleet_agent.load", *arguments]
    # What is set here must not reach any request.
    environment = {"OPENAI_BASE_URL": "http://127.0.0.1:1/v1", "OPENAI_ORG_ID": "nobody"}
    return Load(Child("load", command, log_path=folder / "load.log", environment=environment), fake)


@pytest.fixture(scope="module")
def load(fake: Fake, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Load]:
    load = start_load(tmp_path_factory.mktemp("load"), fake)
    yield load
    load.child.send({"do": "close"})
    assert load.child.stop(10)


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


GUESSED = {"accounting": Accounting.NO_USAGE, "source": TokensSource.ESTIMATE, "hidden": None, "reasoning": None}
PACKED = {"accounting": Accounting.SEVERAL_TOKENS_PER_CHUNK, "visible": None, "hidden": None, "reasoning": None}
BODY = {"accounting": Accounting.NOT_STREAMED, "visible": None, "hidden": None, "reasoning": None, "chunks": 0}

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
    Case(
        "hidden",
        {"hidden": 16},
        accounting=Accounting.FEWER_CHUNKS_THAN_TOKENS,
        output=32,
        visible=None,
        hidden=None,
        reasoning=None,
    ),
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
        accounting=Accounting.STOP_TOKEN_COUNTED,
        output=17,
        hidden=1,
    ),
    Case("multi4", {"tokens_per_chunk": 4}, chunks=4, **PACKED),
    Case("multi4_no_usage", {"tokens_per_chunk": 4, "usage": False}, chunks=4, **GUESSED),
    Case("no_usage", {"usage": False}, **GUESSED),
    Case("short_no_usage", {"tokens": 8, "usage": False}, output=8, visible=8, chunks=8, **GUESSED),
    Case("late_finish", {"finish_delay_ms": 100}),
    Case("stall", {"stall_at": 8, "stall_ms": 200}),
    Case("burst", {"chunks_per_write": 4, "role": "none"}),
    Case("cached", {"cached": 5}),
    Case("crlf", {"line_end": "\r\n"}),
    Case("split_utf8", {"split_utf8": True, "token_text": "漢", "tokens": 8}, output=8, visible=8, chunks=8),
    Case("big_line", {"big_line_bytes": 1 << 20}, output=16, chunks=17, visible=None, hidden=None, reasoning=None,
         accounting=Accounting.MORE_CHUNKS_THAN_TOKENS),
    Case("no_done", {"end": "no_done"}),
    Case("cut_after_finish", {"end": "cut_after_finish"}),
    Case("closing", {"close": True}),
    Case("after_closing"),
    Case("ignores_stream", {"ignore_stream": True}, **BODY),
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
]  # fmt: skip

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


def assert_moments_in_order(record: RequestRecord) -> None:
    names = ("start_ns", "sent_ns", "headers_ns", "first_byte_ns", "last_content_ns", "finish_ns", "usage_ns", "done_ns")
    moments = [moment for name in (*names, "end_ns") if (moment := getattr(record, name)) is not None]
    assert moments == sorted(moments)


def assert_stamps_are_true(record: RequestRecord, fake: Fake, tag: str) -> None:
    """No stamp before the server sent; the median right after it (chunks of one read share the last one's stamp)."""
    assert record.start_ns is not None
    sent = fake.sent_ns(tag)
    if len(sent) != record.chunks:  # what a reset threw away
        return
    errors = [record.start_ns + offset - stamp for offset, stamp in zip(record.token_ns, sent, strict=True)]
    assert min(errors) > -MS / 10, errors
    assert max(errors) < LATE_NS, errors
    assert statistics.median(errors) < 3 * MS, errors


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
    gaps = [after - before for before, after in zip(stamps, stamps[1:], strict=False)]
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
    first = [case.tag for case in CASES[: [case.tag for case in CASES].index("after_closing")]]
    ends = {"cut_after_finish"}
    assert {fake.truth(tag)["connection"] for tag in first[: first.index("cut_after_finish")]} == {
        fake.truth("plain")["connection"]
    }
    fresh = [tag for tag in first if records[tag].connect_duration_ns is not None]
    assert fresh == ["plain", "closing"], ends  # the first of all, and the first after a cut
    assert records["after_closing"].connect_duration_ns is not None
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


def test_deadlines(load: Load) -> None:
    load.open(request_timeout_s=0.6, first_token_timeout_s=0.2, token_timeout_s=0.2)
    records, _ = load.round(
        {"tag": "slow_start", "ttft_ms": 5000},
        {"tag": "comments_only", "ttft_ms": 5000, "comments": True, "role": "early"},
        {"tag": "hang", "end": "hang"},
        {"tag": "long", "tokens": 5000},
        {"tag": "fine"},
    )
    expected = {
        "slow_start": (Reason.FIRST_TOKEN_TIMEOUT, 200),
        "comments_only": (Reason.FIRST_TOKEN_TIMEOUT, 200),
        "hang": (Reason.TOKEN_TIMEOUT, 226),
        "long": (Reason.REQUEST_TIMEOUT, 600),
    }
    for tag, (reason, after_ms) in expected.items():
        record = records[tag]
        assert record.reason is reason
        assert record.start_ns is not None
        assert after_ms * MS <= record.end_ns - record.start_ns < after_ms * MS + LATE_NS
    assert records["fine"].status is Status.OK
    assert records["long"].chunks > 100


def test_not_streamed(load: Load, fake: Fake) -> None:
    load.open(stream=False)
    records, _ = load.round(
        {"tag": "whole"},
        {"tag": "whole_cut", "end": "cut"},
        {"tag": "whole_404", "status": 404},
        {"tag": "whole_empty", "tokens": 0},
        {"tag": "whole_last"},
    )
    record = records["whole"]
    assert (record.status, record.accounting, record.output_tokens) == (Status.OK, Accounting.NOT_STREAMED, 16)
    assert record.text == " tok" * 16
    absent = ("role_ns", "first_reasoning_ns", "first_content_ns", "last_content_ns", "finish_ns", "usage_ns")
    assert [getattr(record, name) for name in absent] == [None] * 6
    assert (record.token_ns, record.chunks) == ((), 0)
    assert record.done_ns is not None
    assert abs(record.done_ns - fake.sent_ns("whole", "whole")[0]) < LATE_NS
    assert "stream" not in fake.truth("whole")["body"]
    reasons = [records[tag].reason for tag in ("whole_cut", "whole_404", "whole_empty", "whole_last")]
    assert reasons == [Reason.STREAM_TRUNCATED, Reason.HTTP_ERROR, Reason.EMPTY_ANSWER, None]


def test_concurrency_is_a_closed_loop(load: Load, fake: Fake) -> None:
    load.open(concurrency=4)
    began = time.perf_counter_ns()
    records, finished = load.round(*[{"tag": f"c{number}", "tokens": 50} for number in range(16)])
    assert len(records) == 16
    assert all(record.status is Status.OK for record in records.values())
    edges = [(record.start_ns or 0, 1) for record in records.values()]
    edges += [(record.done_ns or 0, -1) for record in records.values()]
    running = peak = 0
    for _, change in sorted(edges):
        running += change
        peak = max(peak, running)
    assert peak == 4
    assert began < finished["start_ns"] < finished["end_ns"]
    assert len({fake.truth(f"c{number}")["connection"] for number in range(16)}) == 4


def test_refused_connection(load: Load, fake: Fake) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    load.open(base_url=f"http://127.0.0.1:{port}/v1")
    records, _ = load.round({"tag": "nobody"}, {"tag": "still_nobody"})
    for record in records.values():
        assert record.reason is Reason.CONNECTION_FAILED
        assert (record.start_ns, record.http_status, record.stamp_source) == (None, None, None)


def test_nonsense_is_answered(load: Load) -> None:
    for command in ({"do": "dance"}, {"do": "open", "base_url": "x"}, {"do": "round"}, {"no": "do"}):
        load.child.send(command)
        answer = load.child.receive(10)
        assert (answer["event"], answer["reason"]) == ("failed", Reason.INVALID_SPEC)


def test_socket_stamps(fake: Fake, tmp_path: Path) -> None:
    load = start_load(tmp_path, fake, "--no-kernel-stamps")
    load.open()
    assert load.opened["stamp_source"] == StampSource.SOCKET
    records, _ = load.round({"tag": "by_socket"})
    assert records["by_socket"].stamp_source is StampSource.SOCKET
    assert_stamps_are_true(records["by_socket"], fake, "by_socket")
    load.child.send({"do": "close"})
    assert load.child.stop(10)


@pytest.mark.parametrize("how", ["close", "end of stdin", "SIGTERM"])
def test_clean_end(how: str, fake: Fake, tmp_path: Path) -> None:
    if how == "SIGTERM" and sys.platform == "win32":
        pytest.skip("Windows has no SIGTERM")
    load = start_load(tmp_path, fake)
    load.open()
    load.start([{"tag": "short"}, {"tag": "endless", "tokens": 100_000}])
    assert load.child.receive(10)["request_id"] == "short"
    if how == "close":  # in its turn, after the round: so not here
        load.child.send({"do": "close"})
        time.sleep(0.2)
        assert load.child.running
    elif how == "SIGTERM":
        os.kill(load.child.pid, signal.SIGTERM)
    assert load.child.stop(3) or how == "close"
    load.child.kill()
    if how != "close":
        with pytest.raises(Exception, match="exited with code 0"):
            load.child.receive(5)


def test_tokenizer_counts_when_the_server_does_not(fake: Fake, tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    models, splitters = pytest.importorskip("tokenizers.models"), pytest.importorskip("tokenizers.pre_tokenizers")
    tokenizer = tokenizers.Tokenizer(models.WordLevel({"tok": 0, "?": 1}, unk_token="?"))
    tokenizer.pre_tokenizer = splitters.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    load = start_load(tmp_path, fake)
    load.open(tokenizer_path=str(tmp_path / "tokenizer.json"))
    records, _ = load.round(
        {"tag": "t_none", "usage": False, "tokens_per_chunk": 4},
        {"tag": "t_hidden", "hidden": 16},
        {"tag": "t_multi", "tokens_per_chunk": 4},
    )
    none, hidden, multi = (records[tag] for tag in ("t_none", "t_hidden", "t_multi"))
    assert (none.tokens_source, none.output_tokens) == (TokensSource.TOKENIZER, 16)
    assert (hidden.accounting, hidden.visible_tokens, hidden.hidden_tokens) == (Accounting.HIDDEN_TOKENS, 16, 16)
    assert (multi.accounting, multi.visible_tokens) == (Accounting.SEVERAL_TOKENS_PER_CHUNK, 16)
    load.child.send({"do": "open", "base_url": fake.base_url, "model": "m", "tokenizer_path": str(tmp_path / "no")})
    assert load.child.receive(10)["reason"] == Reason.INVALID_SPEC
    load.child.send({"do": "close"})
    assert load.child.stop(10)
