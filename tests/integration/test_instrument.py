"""The self-measurement with its real processes: what it finds, whom it blames, and that it leaves nothing behind."""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from benchfleet.failures import Reason, WorkFailed
from benchfleet_agent.instrument import Certificate, measure
from benchfleet_agent.instrument.loopback_server import LoopbackServer

pytestmark = pytest.mark.timing
pytest.importorskip("openai")

MS = 1_000_000


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    before = {child.pid for child in psutil.Process().children()}
    yield
    assert {child.pid for child in psutil.Process().children()} <= before


def child_running(module: str) -> psutil.Process | None:
    """Our child that runs this module."""
    for child in psutil.Process().children():
        try:
            if module in child.cmdline():
                return child
        except psutil.Error:
            continue
    return None


def assert_client_is_good(certificate: Certificate) -> None:
    assert certificate.itl_error_p50_ns < MS
    assert abs(certificate.ttft_error_p50_ns) < 2 * MS
    assert -MS / 10 < certificate.stamp_error_p50_ns < MS


def test_one_measurement_certifies_each_shape(tmp_path: Path) -> None:
    one, eight = measure([1, 8], tmp_path)
    assert_client_is_good(one)
    assert_client_is_good(eight)
    assert (one.concurrency, one.request_count, one.token_count, one.token_rate_per_s) == (1, 6, 240, 200)
    assert (eight.concurrency, eight.request_count, eight.token_count) == (8, 16, 640)
    assert one.stamp_source == ("kernel" if sys.platform == "linux" else "socket")
    # Six answers, one after the other, of 20 ms and 40 tokens 5 ms apart; two times eight side by side.
    assert 6 * 215 * MS < one.duration_ns < 5000 * MS
    assert 2 * 215 * MS < eight.duration_ns < 5000 * MS
    assert 0 < one.cpu_per_token_ns < 5 * MS
    if sys.platform == "linux":
        assert one.rss_bytes is not None
        assert one.rss_bytes > 10 << 20


def test_a_server_that_delays_is_not_blamed_on_the_client(tmp_path: Path) -> None:
    (certificate,) = measure([1], tmp_path, server_arguments=["--late-ms", "3"])
    assert certificate.server_lateness_p99_ns >= 3 * MS
    assert_client_is_good(certificate)


def test_nothing_asked_is_nothing_started(tmp_path: Path) -> None:
    assert measure([], tmp_path) == ()
    assert list(tmp_path.iterdir()) == []


def test_a_cancelled_measurement_ends_within_a_second(tmp_path: Path) -> None:
    cancelled_at: list[float] = []

    def cancelled() -> bool:
        # Somewhere in the round: the load process has answered open.
        if not cancelled_at and time.monotonic() > begin + 1.5:
            cancelled_at.append(time.monotonic())
        return bool(cancelled_at)

    begin = time.monotonic()
    with pytest.raises(WorkFailed) as failed:
        measure([1] * 20, tmp_path, cancelled=cancelled)
    assert failed.value.failure.reason is Reason.CANCELLED
    assert time.monotonic() - cancelled_at[0] < 1


def test_a_server_that_cannot_run_says_why(tmp_path: Path) -> None:
    with pytest.raises(WorkFailed, match=r"loopback server exited with code 2: .*--nonsense") as failed:
        measure([1], tmp_path, server_arguments=["--nonsense"])
    assert failed.value.failure.reason is Reason.INTERNAL


@pytest.mark.parametrize(
    ("module", "reason", "words"),
    [
        ("benchfleet_agent.load", Reason.LOAD_PROCESS_CRASHED, "load process killed"),
        ("benchfleet_agent.instrument.loopback_server", Reason.INTERNAL, "loopback server killed"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="how a kill is told differs")
def test_a_killed_process_is_named(tmp_path: Path, module: str, reason: Reason, words: str) -> None:
    begin = time.monotonic()

    def kill() -> bool:
        victim = child_running(module)
        if time.monotonic() > begin + 1.5 and victim is not None:
            victim.kill()
        return False

    with pytest.raises(WorkFailed, match=words) as failed:
        measure([1] * 20, tmp_path, cancelled=kill)
    assert failed.value.failure.reason is reason


def test_a_folder_for_logs_that_is_not_there_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(WorkFailed, match="cannot be started"):
        measure([1], tmp_path / "absent")


def test_the_server_refuses_what_it_cannot_read_and_goes_on() -> None:
    with LoopbackServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        wish = {"request_id": "r", "tokens": 3, "first_token_ns": 1, "gap_ns": 1}
        good = json.dumps({"messages": [{"role": "user", "content": json.dumps(wish)}]})
        statuses = []
        answer = b""
        for body in ("{", "{}", '{"messages": [{"content": "hello"}]}', good):
            connection = http.client.HTTPConnection(*server.server_address[:2], timeout=10)  # type: ignore[arg-type]
            connection.request("POST", "/v1/chat/completions", body)
            response = connection.getresponse()
            statuses.append(response.status)
            answer = response.read()
            connection.close()
        server.shutdown()
        thread.join()
        (told,) = server.take_answers()
    assert statuses == [400, 400, 400, 200]
    assert answer.count(b" tok") == 3
    assert answer.endswith(b"data: [DONE]\n\n")
    assert told["request_id"] == "r"
    assert len(told["sent_ns"]) == 3
    assert told["received_ns"] < told["sent_ns"][0] < told["sent_ns"][2]
