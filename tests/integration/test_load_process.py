"""The load process as a process: deadlines, concurrency, refusals and its end, against the scripted server."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchfleet.failures import Reason
from benchfleet_agent.load.record import Accounting, RequestRecord, StampSource, Status, TokensSource
from fakes.dialects import serving
from fakes.dialects.llamacpp import FakeLlamaCpp
from fakes.load_link import (
    LATE_NS,
    MS,
    Fake,
    Load,
    assert_stamps_are_true,
    end,
    running_load,
    running_server,
    start_load,
)

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
    with running_load(tmp_path, fake, "--no-kernel-stamps") as load:
        load.open()
        assert load.opened["stamp_source"] == StampSource.SOCKET
        records, _ = load.round({"tag": "by_socket"})
    assert records["by_socket"].stamp_source is StampSource.SOCKET
    assert_stamps_are_true(records["by_socket"], fake, "by_socket")


@pytest.mark.skipif(sys.platform == "win32", reason="ends are told apart by POSIX signals")
@pytest.mark.parametrize("how", ["close", "end of stdin", "SIGTERM"])
def test_end_in_the_middle_of_a_round(how: str, fake: Fake, tmp_path: Path) -> None:
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
    stopped = how == "close" or load.child.stop(3)
    gone = end(load.child)
    assert stopped
    assert gone.returncode == (-9 if how == "close" else 0)


def test_tokenizer_counts_when_the_server_does_not(fake: Fake, tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    models, splitters = pytest.importorskip("tokenizers.models"), pytest.importorskip("tokenizers.pre_tokenizers")
    tokenizer = tokenizers.Tokenizer(models.WordLevel({"tok": 0, "?": 1}, unk_token="?"))
    tokenizer.pre_tokenizer = splitters.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with running_load(tmp_path, fake) as load:
        load.open(tokenizer_path=str(tmp_path / "tokenizer.json"))
        records, _ = load.round(
            {"tag": "t_none", "usage": False, "tokens_per_chunk": 4},
            {"tag": "t_hidden", "hidden": 16},
            {"tag": "t_multi", "tokens_per_chunk": 4},
        )
        (tmp_path / "none.json").write_text("{}")
        load.open(tokenizer_path=str(tmp_path / "none.json"))
        without = load.round({"tag": "t_unreadable", "usage": False})[0]["t_unreadable"]
        load.child.send({"do": "open", "base_url": fake.base_url, "model": "m", "tokenizer_path": str(tmp_path / "no")})
        assert load.child.receive(10)["reason"] == Reason.INVALID_SPEC
    assert (without.tokens_source, without.output_tokens) == (TokensSource.ESTIMATE, 16)
    assert_counted(*(records[tag] for tag in ("t_none", "t_hidden", "t_multi")))


def assert_counted(none: RequestRecord, hidden: RequestRecord, multi: RequestRecord) -> None:
    assert (none.tokens_source, none.output_tokens) == (TokensSource.TOKENIZER, 16)
    assert (hidden.accounting, hidden.visible_tokens, hidden.hidden_tokens) == (Accounting.HIDDEN_TOKENS, 16, 16)
    assert (multi.accounting, multi.visible_tokens) == (Accounting.SEVERAL_TOKENS_PER_CHUNK, 16)


def test_a_server_that_counts_when_asked_is_asked_where_its_answers_do_not_say(fake: Fake, tmp_path: Path) -> None:
    counts = FakeLlamaCpp()
    with serving(counts) as root, running_load(tmp_path, fake) as load:
        load.open(tokenize_url=f"{root}/tokenize")
        records, _ = load.round(
            {"tag": "s_none", "usage": False, "tokens_per_chunk": 4},
            {"tag": "s_hidden", "hidden": 16},
            {"tag": "s_multi", "tokens_per_chunk": 4},
            {"tag": "s_plain"},
        )
        asked = [body for _, path, body in counts.requests if path == "/tokenize"]
        load.open(tokenize_url=f"{root}/no-such-path")
        without = load.round({"tag": "s_missing", "usage": False})[0]["s_missing"]
    assert_counted(*(records[tag] for tag in ("s_none", "s_hidden", "s_multi")))
    assert all(body["model"] == "fake" and body["add_special"] is False for body in asked)
    assert len(asked) == 4, "once to see that it counts, then only where it decides"
    assert (without.tokens_source, without.output_tokens) == (TokensSource.ESTIMATE, 16)


def test_a_server_that_stops_counting_leaves_estimates_and_the_answers(fake: Fake, tmp_path: Path) -> None:
    with running_load(tmp_path, fake) as load:
        with serving(FakeLlamaCpp()) as root:
            load.open(tokenize_url=f"{root}/tokenize")
        record = load.round({"tag": "s_gone", "usage": False})[0]["s_gone"]
    assert record.status is Status.OK
    assert (record.tokens_source, record.output_tokens) == (TokensSource.ESTIMATE, 16)
