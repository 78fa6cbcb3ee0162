"""Each peer's report, as recorded from its named version and shortened, read back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks.peers import aiperf, benchrig, genai_bench, guidellm, ours, plain_openai, raw_socket
from benchmarks.peers.client import Client, Load

from benchfleet_agent.load.record import Accounting, RequestRecord, StampSource, Status, TokensSource

MS = 1_000_000
CLIENTS = [one.CLIENT for one in (raw_socket, plain_openai, ours, aiperf, benchrig, genai_bench, guidellm)]


def aiperf_line(phase: str, start_ns: int, ttft_ms: float, **metadata: object) -> str:
    metrics = {
        "time_to_first_token": {"value": ttft_ms, "unit": "ms"},
        "inter_token_latency": {"value": 10.003, "unit": "ms"},
        "inter_chunk_latency": {"value": [9.813646, 10.082483], "unit": "ms"},
        "output_token_throughput_per_user": {"value": 99.97, "unit": "tokens/sec/user"},
    }
    known = {"x_request_id": "98b8782a", "request_start_ns": start_ns, "benchmark_phase": phase}
    return json.dumps({"metadata": {**known, **metadata}, "metrics": metrics, "error": None})


def test_aiperf_reports_each_counted_request_in_the_order_of_starting() -> None:
    lines = [
        aiperf_line("warmup", 1_795_420_482_105_497_419, 57.85),
        aiperf_line("profiling", 1_795_420_484_000_000_000, 52.5),
        aiperf_line("profiling", 1_795_420_483_000_000_000, 51.5),
    ]

    answers = aiperf.parse("\n".join(lines))

    assert [answer.ttft_s for answer in answers] == pytest.approx([0.0515, 0.0525])
    assert answers[0].itl_s == pytest.approx(0.010003)
    assert answers[0].gaps_s == pytest.approx((0.009813646, 0.010082483))
    assert answers[0].tokens_per_s == 99.97


def test_aiperf_without_a_rate_reports_none() -> None:
    line = json.loads(aiperf_line("profiling", 1, 51.5))
    del line["metrics"]["inter_token_latency"], line["metrics"]["output_token_throughput_per_user"]

    (answer,) = aiperf.parse(json.dumps(line))

    assert (answer.itl_s, answer.tokens_per_s) == (None, None)


def test_benchrig_reports_first_token_and_rate_but_no_gaps() -> None:
    good = {"success": True, "ttft_sec": 0.053, "eval_tok_per_sec": 101.48, "eval_count": 64, "total_time_sec": 0.684}
    bad = {"success": False, "error": "500 Server Error"}

    (answer,) = benchrig.parse(json.dumps({"timestamp": "20261123_075432", "results": [good, bad]}))

    assert (answer.ttft_s, answer.itl_s, answer.gaps_s, answer.tokens_per_s) == (0.053, None, (), 101.48)


def test_genai_bench_reports_each_request_that_did_not_fail() -> None:
    good = {
        "ttft": 0.0612252159990021,
        "tpot": 0.010005478777794263,
        "e2e_latency": 0.6915703790000407,
        "output_inference_speed": 99.94524222262685,
        "num_output_tokens": 64,
        "error_code": None,
    }
    bad = {"ttft": None, "tpot": None, "output_inference_speed": None, "error_code": 500}

    (answer,) = genai_bench.parse(json.dumps({"individual_request_metrics": [good, bad], "_time_unit": "s"}))

    assert (answer.ttft_s, answer.itl_s, answer.tokens_per_s) == (
        0.0612252159990021,
        0.010005478777794263,
        99.94524222262685,
    )


def test_guidellm_rate_is_one_over_its_time_between_tokens() -> None:
    requests = [
        {"request_start_time": 2.0, "time_to_first_token_ms": 51.1, "inter_token_latency_ms": 5.0},
        {"request_start_time": 1.0, "time_to_first_token_ms": 51.5, "inter_token_latency_ms": None},
    ]

    first, second = guidellm.parse(json.dumps({"benchmarks": [{"requests": {"successful": requests}}]}))

    assert first.ttft_s == pytest.approx(0.0515)
    assert (first.itl_s, first.tokens_per_s) == (None, None)
    assert second.tokens_per_s == pytest.approx(200)


def test_the_raw_socket_reader_stamps_an_event_with_the_read_that_completes_it() -> None:
    role = b'6f\r\ndata: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}\n\n\r\n'
    token = b'6f\r\ndata: {"choices": [{"delta": {"content": " tok"}}]}\n\n\r\n'
    thought = b'6f\r\ndata: {"choices": [{"delta": {"reasoning_content": "hm"}}]}\n\n\r\n'
    usage = b'6f\r\ndata: {"choices": [], "usage": {"completion_tokens": 2}}\n\n\r\ne\r\ndata: [DONE]\n\n\r\n0\r\n\r\n'

    pieces = [(1, b"HTTP/1.1 200 OK\r\n\r\n" + role + token), (2, thought[:20]), (3, thought[20:]), (4, usage)]

    assert raw_socket.token_stamps(pieces) == [1, 3]


def test_raw_stamps_become_times() -> None:
    (answer,) = raw_socket.parse(json.dumps([[1000 * MS, [1050 * MS, 1060 * MS, 1080 * MS], 3]]))

    assert answer.ttft_s == pytest.approx(0.05)
    assert answer.gaps_s == pytest.approx((0.01, 0.02))
    assert answer.itl_s == pytest.approx(0.015)


def record(**changes: object) -> RequestRecord:
    """Half of 64 counted tokens came, 10 ms apart."""
    known: dict[str, object] = {
        "request_id": "0",
        "prompt_id": "p",
        "status": Status.OK,
        "start_ns": 1000 * MS,
        "done_ns": 1400 * MS,
        "end_ns": 1400 * MS,
        "token_ns": tuple((50 + 10 * number) * MS for number in range(32)),
        "chunks": 32,
        "output_tokens": 64,
        "visible_tokens": 32,
        "tokens_source": TokensSource.USAGE,
        "accounting": Accounting.HIDDEN_TOKENS,
        "stamp_source": StampSource.KERNEL,
    }
    return RequestRecord(**{**known, **changes})  # type: ignore[arg-type]


def test_our_own_figures_are_those_of_the_store_and_say_what_they_divide() -> None:
    opened = {"event": "opened", "pid": 1}
    warm_up = {"event": "request", "round_id": "warm-up", **record(token_ns=(1,)).to_dict()}
    counted = {"event": "request", "round_id": "counted", **record().to_dict()}

    (answer,) = ours.parse("\n".join(json.dumps(event) for event in (opened, warm_up, counted)))

    assert answer.ttft_s == pytest.approx(0.05)
    assert answer.tokens_per_s == pytest.approx(100)
    assert answer.remark == "hidden_tokens"
    assert len(answer.gaps_s) == 31


def test_our_own_refusal_is_no_answer() -> None:
    with pytest.raises(ValueError, match="no such"):
        ours.parse(json.dumps({"event": "failed", "command": "open", "reason": "x", "message": "no such tokenizer"}))


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_every_command_names_the_server_and_the_amount(client: Client, tmp_path: Path) -> None:
    load = Load("http://127.0.0.1:4711", requests=7, concurrency=1, tokens=64, tokenizer=Path("tok"))

    command = client.command(Path("bin"), load, tmp_path)

    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    said = " ".join(command.arguments) + command.stdin + written
    assert "http://127.0.0.1:4711" in said
    assert "64" in said


@pytest.mark.parametrize("client", [one for one in CLIENTS if one.peer], ids=lambda client: client.name)
def test_peers_are_pinned_exactly(client: Client) -> None:
    assert all("==" in requirement for requirement in client.requirements)
