"""How true the load process's stamps are, from its records and the stamps of the server that answered it. Pure.

Both sides read ``time.perf_counter_ns()`` on one machine, so their stamps compare directly. The server stamps just
before it hands a chunk to the operating system; what passes between the two stamps (the server's system call,
loopback, the load process's waking) all counts as the load process's error, so every error here is an upper bound.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from benchfleet.failures import Reason, WorkFailed
from benchfleet_agent.load.record import RequestRecord, StampSource, Status

NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Schedule:
    """When the chunks of an answer are due; one token a chunk."""

    tokens: int
    first_token_ns: int
    """From the moment the request was received."""
    gap_ns: int

    def due_ns(self, received_ns: int) -> list[int]:
        """When each chunk is due, counted from the request and not from the chunk before: lateness never adds up."""
        first_ns = received_ns + self.first_token_ns
        return [first_ns + number * self.gap_ns for number in range(self.tokens)]


@dataclass(frozen=True, slots=True)
class SentAnswer:
    """What the server knows of one answer (perf_counter nanoseconds)."""

    received_ns: int
    """The request's first line was read."""
    sent_ns: tuple[int, ...]
    """Just before each chunk was sent."""


@dataclass(frozen=True, slots=True)
class RoundCost:
    """What a round took, as the load process tells it."""

    duration_ns: int
    cpu_ns: int
    rss_bytes: int | None


@dataclass(frozen=True, slots=True)
class Certificate:
    """One load shape's self-measurement.

    Percentiles are linearly interpolated and lie within what was seen; of TTFT there are only ``request_count``
    errors, so their p99 is close to the largest.
    """

    concurrency: int
    """Streams side by side."""
    request_count: int
    token_count: int
    """Streamed tokens, each in a chunk of its own."""
    token_rate_per_s: float
    """Scheduled rate of each stream."""
    stamp_source: str
    """The worst of any request: ``kernel`` or ``socket``."""
    ttft_error_p50_ns: int
    """The client's TTFT minus the server's (first chunk sent - request received); signed."""
    ttft_error_p99_ns: int
    """Of its absolute value."""
    itl_error_p50_ns: int
    """Of the absolute error of each gap between two chunks of a stream. Chunks that one read returned together share
    a stamp and count as they are."""
    itl_error_p99_ns: int
    stamp_error_p50_ns: int
    """Arrival stamp minus send stamp of each chunk; signed."""
    stamp_error_p99_ns: int
    """Of its absolute value."""
    jitter_ns: int
    """Standard deviation of the stamp error over all chunks. One stall of the machine dominates it; the robust
    reading of the spread is stamp_error_p99_ns - stamp_error_p50_ns."""
    server_lateness_p99_ns: int
    """How late the server was against its own schedule: says how quiet the machine was, and is in no error above."""
    cpu_per_token_ns: int
    """CPU time of the load process, all it did for the round, per streamed token; times ``token_count``, divided by
    ``duration_ns``, it is the share of one core."""
    rss_bytes: int | None
    """Resident memory of the load process after the round; null where it cannot tell."""
    duration_ns: int
    """From the round's first request to its last answer, without start and warm-up."""


def certify(
    concurrency: int,
    schedule: Schedule,
    records: Sequence[RequestRecord],
    answers: Mapping[str, SentAnswer],
    cost: RoundCost,
) -> Certificate:
    """Hold a round's records against the server's `answers` (by request id).

    Raises `WorkFailed` when a request failed, and ``internal`` when the two sides do not tell of the same chunks:
    then there is nothing to be compared. Needs two requests and two tokens in each.
    """
    ttft: list[int] = []
    gaps: list[int] = []
    stamps: list[int] = []
    lateness: list[int] = []
    for record in records:
        answer = answers.get(record.request_id)
        start_ns = record.start_ns
        if record.status is not Status.OK:
            raise WorkFailed(record.reason or Reason.INTERNAL, f"a loopback request failed: {record.message}")
        if answer is None or start_ns is None or not schedule.tokens == len(answer.sent_ns) == len(record.token_ns):
            sent = "no answer" if answer is None else f"{len(answer.sent_ns)} chunks"
            message = f"the loopback server sent {sent} and {len(record.token_ns)} chunks arrived"
            raise WorkFailed(Reason.INTERNAL, f"{message}, of {schedule.tokens}")
        errors = [start_ns + offset - sent for offset, sent in zip(record.token_ns, answer.sent_ns, strict=True)]
        ttft.append(record.token_ns[0] - (answer.sent_ns[0] - answer.received_ns))
        # The error of a gap is the difference of its two ends' errors.
        gaps += [abs(after - before) for before, after in pairwise(errors)]
        stamps += errors
        due = schedule.due_ns(answer.received_ns)
        lateness += [sent - moment for sent, moment in zip(answer.sent_ns, due, strict=True)]
    return Certificate(
        concurrency=concurrency,
        request_count=len(records),
        token_count=len(stamps),
        token_rate_per_s=NS_PER_S / schedule.gap_ns,
        stamp_source=_worst_source(records),
        ttft_error_p50_ns=percentile(ttft, 50),
        ttft_error_p99_ns=percentile([abs(error) for error in ttft], 99),
        itl_error_p50_ns=percentile(gaps, 50),
        itl_error_p99_ns=percentile(gaps, 99),
        stamp_error_p50_ns=percentile(stamps, 50),
        stamp_error_p99_ns=percentile([abs(error) for error in stamps], 99),
        jitter_ns=round(statistics.pstdev(stamps)),
        server_lateness_p99_ns=percentile(lateness, 99),
        cpu_per_token_ns=round(cost.cpu_ns / len(stamps)),
        rss_bytes=cost.rss_bytes,
        duration_ns=cost.duration_ns,
    )


def percentile(values: Sequence[int], percent: int) -> int:
    """The value below which `percent` (1 to 99) of two or more values lie, linearly interpolated between them."""
    return round(statistics.quantiles(values, n=100, method="inclusive")[percent - 1])


def _worst_source(records: Sequence[RequestRecord]) -> StampSource:
    sources = [record.stamp_source for record in records if record.stamp_source is not None]
    return max(sources, key=list(StampSource).index)
