"""The certificate against errors that were put in: each is found, and found in its own figure only."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable

import pytest

from benchfleet.failures import Reason, WorkFailed
from benchfleet_agent.instrument.certificate import (
    Certificate,
    RoundCost,
    Schedule,
    SentAnswer,
    certify,
    percentile,
)
from benchfleet_agent.instrument.measurement import TOTAL_RATE_PER_S, Shape
from benchfleet_agent.load.record import Accounting, RequestRecord, StampSource, Status

US = 1_000
MS = 1_000_000
SCHEDULE = Schedule(tokens=40, first_token_ns=20 * MS, gap_ns=5 * MS)
COST = RoundCost(duration_ns=700 * MS, cpu_ns=12 * MS, rss_bytes=50 << 20)
REQUESTS = 3
Shift = Callable[[int, int], int]
"""Nanoseconds for a request's number and a chunk's number."""


def no_shift(_request: int, _chunk: int) -> int:
    return 0


def answers(late: Shift = no_shift) -> dict[str, SentAnswer]:
    """What a server sent whose every chunk was so late."""
    found = {}
    for request in range(REQUESTS):
        received_ns = 1_000 * MS + request * 300 * MS
        due = SCHEDULE.due_ns(received_ns)
        sent = tuple(moment + late(request, chunk) for chunk, moment in enumerate(due))
        found[f"r-{request}"] = SentAnswer(received_ns, sent)
    return found


def records(
    sent: dict[str, SentAnswer], arrival: Shift = no_shift, start: Shift = no_shift, **changes: object
) -> list[RequestRecord]:
    """What a client saw whose every stamp was so far off, and whose t0 was so long before the server's."""
    found = []
    for request, (request_id, answer) in enumerate(sent.items()):
        start_ns = answer.received_ns - start(request, 0)
        record = RequestRecord(
            request_id=request_id,
            prompt_id="p",
            status=Status.OK,
            start_ns=start_ns,
            end_ns=answer.sent_ns[-1] + MS,
            token_ns=tuple(moment + arrival(request, chunk) - start_ns for chunk, moment in enumerate(answer.sent_ns)),
            accounting=Accounting.CONSISTENT,
            stamp_source=StampSource.KERNEL,
        )
        found.append(dataclasses.replace(record, **changes))  # type: ignore[arg-type]
    return found


def certificate(late: Shift = no_shift, arrival: Shift = no_shift, start: Shift = no_shift) -> Certificate:
    sent = answers(late)
    return certify(1, SCHEDULE, records(sent, arrival, start), sent, COST)


def test_a_perfect_instrument_has_no_error() -> None:
    assert certificate() == Certificate(
        concurrency=1,
        request_count=3,
        token_count=120,
        token_rate_per_s=200.0,
        stamp_source="kernel",
        ttft_error_p50_ns=0,
        ttft_error_p99_ns=0,
        itl_error_p50_ns=0,
        itl_error_p99_ns=0,
        stamp_error_p50_ns=0,
        stamp_error_p99_ns=0,
        jitter_ns=0,
        server_lateness_p99_ns=0,
        cpu_per_token_ns=100 * US,
        rss_bytes=50 << 20,
        duration_ns=700 * MS,
    )


@pytest.mark.parametrize("shift_ns", [300 * US, -200 * US])
def test_stamps_that_are_all_off_alike_shift_ttft_and_no_gap(shift_ns: int) -> None:
    found = certificate(arrival=lambda *_: shift_ns)
    assert (found.stamp_error_p50_ns, found.stamp_error_p99_ns) == (shift_ns, abs(shift_ns))
    assert (found.ttft_error_p50_ns, found.ttft_error_p99_ns) == (shift_ns, abs(shift_ns))
    assert (found.itl_error_p50_ns, found.itl_error_p99_ns, found.jitter_ns) == (0, 0, 0)


def test_an_early_t0_is_an_error_of_ttft_only() -> None:
    found = certificate(start=lambda *_: 150 * US)
    assert (found.ttft_error_p50_ns, found.ttft_error_p99_ns) == (150 * US, 150 * US)
    assert (found.itl_error_p99_ns, found.stamp_error_p99_ns, found.jitter_ns) == (0, 0, 0)


def test_stamps_that_alternate_make_every_gap_wrong() -> None:
    found = certificate(arrival=lambda _, chunk: -100 * US if chunk % 2 else 100 * US)
    assert (found.itl_error_p50_ns, found.itl_error_p99_ns) == (200 * US, 200 * US)
    assert found.stamp_error_p50_ns == 0
    assert found.stamp_error_p99_ns == 100 * US
    assert found.jitter_ns == 100 * US


def test_one_stall_of_the_client_shows_in_the_jitter_and_not_in_the_median() -> None:
    found = certificate(arrival=lambda request, chunk: 12 * MS if (request, chunk) == (1, 7) else 10 * US)
    assert found.stamp_error_p50_ns == 10 * US
    # One of n values that differs by d: d·√(n − 1)/n.
    assert found.jitter_ns == pytest.approx((12 * MS - 10 * US) * 119**0.5 / 120, abs=1)
    assert found.itl_error_p50_ns == 0


def test_a_late_server_is_not_the_clients_error() -> None:
    found = certificate(late=lambda _, chunk: 3 * MS * (chunk % 2))
    assert found.server_lateness_p99_ns == 3 * MS
    assert found == dataclasses.replace(certificate(), server_lateness_p99_ns=3 * MS)


def test_a_late_first_chunk_is_in_the_servers_ttft() -> None:
    found = certificate(late=lambda _, chunk: 0 if chunk else 4 * MS, arrival=lambda *_: 20 * US)
    assert (found.ttft_error_p50_ns, found.ttft_error_p99_ns) == (20 * US, 20 * US)
    assert found.itl_error_p99_ns == 0


def test_lateness_counts_from_the_request_and_does_not_add_up() -> None:
    assert SCHEDULE.due_ns(7)[:3] == [7 + 20 * MS, 7 + 25 * MS, 7 + 30 * MS]
    assert len(SCHEDULE.due_ns(7)) == 40


def test_one_request_without_kernel_stamps_decides_the_source() -> None:
    sent = answers()
    seen = records(sent)
    seen[1] = dataclasses.replace(seen[1], stamp_source=StampSource.SOCKET)
    assert certify(1, SCHEDULE, seen, sent, COST).stamp_source == "socket"


def test_memory_that_cannot_be_told_stays_unknown() -> None:
    sent = answers()
    cost = dataclasses.replace(COST, rss_bytes=None)
    assert certify(1, SCHEDULE, records(sent), sent, cost).rss_bytes is None


def test_a_failed_request_is_no_measurement() -> None:
    sent = answers()
    seen = records(sent, status=Status.FAILED, reason=Reason.CONNECTION_FAILED, message="refused")
    with pytest.raises(WorkFailed, match="refused") as failed:
        certify(1, SCHEDULE, seen, sent, COST)
    assert failed.value.failure.reason is Reason.CONNECTION_FAILED


def test_an_answer_the_server_knows_nothing_of_is_refused() -> None:
    sent = answers()
    seen = records(sent)
    del sent["r-2"]
    with pytest.raises(WorkFailed, match="sent no answer and 40 chunks arrived") as failed:
        certify(1, SCHEDULE, seen, sent, COST)
    assert failed.value.failure.reason is Reason.INTERNAL


def test_a_chunk_that_is_missing_is_refused_and_not_paired_with_its_neighbour() -> None:
    sent = answers()
    seen = records(sent)
    seen[0] = dataclasses.replace(seen[0], token_ns=seen[0].token_ns[1:])
    with pytest.raises(WorkFailed, match="sent 40 chunks and 39 chunks arrived, of 40"):
        certify(1, SCHEDULE, seen, sent, COST)


def test_percentiles_are_interpolated_within_what_was_seen() -> None:
    values = list(range(0, 1001, 10))
    assert percentile(values, 50) == 500
    assert percentile(values, 99) == 990
    assert percentile([0, 100], 99) == 99
    assert percentile([5, 1], 50) == 3


@pytest.mark.parametrize("concurrency", [1, 8, 16, 17, 64, 1024])
def test_many_streams_share_one_total_rate_and_every_worker_has_a_request(concurrency: int) -> None:
    shape = Shape.of(concurrency)
    assert 1e9 / shape.schedule.gap_ns * concurrency <= TOTAL_RATE_PER_S * 1.001
    assert shape.requests >= max(6, concurrency)
    assert shape.schedule.tokens >= 4
    waves = -(-shape.requests // concurrency)
    last_ns = shape.schedule.first_token_ns + shape.schedule.tokens * shape.schedule.gap_ns
    assert waves * last_ns < 1.5e9


def test_a_shape_needs_a_stream() -> None:
    with pytest.raises(ValueError, match="1 or more"):
        Shape.of(0)


def test_the_agents_side_imports_no_client_library() -> None:
    code = "import sys, benchfleet_agent.instrument; print({'openai', 'numpy', 'httpx2', 'grpc'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
