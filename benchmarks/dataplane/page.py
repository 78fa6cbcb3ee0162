"""The page of the data plane: what was measured, held against its budgets."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Iterator, Sequence

import duckdb
import grpc
from benchmarks.dataplane.fleet import Followed
from benchmarks.dataplane.ingest import EVENTS_A_RESPONSE, RAW_BATCH, Backlog, Growth, Ingested

INGEST_RATIO = 0.5
GROWTH_RATIO = 1.5
LAG_P99_S = 2.0

PAGE = """# The data plane, measured

Written by `make bench-dataplane`. Simulated agents are one process with a gRPC port for each; all else is the program:
its connections, its following of jobs, its store. Both processes share the machine's cores.

{when:%Y-%m-%d}, {cores} logical processors, {system}, Python {python}, duckdb {duckdb}, grpcio {grpc}

{budgets}

## From the wire to committed rows

Parsing, checking and storing messages of ten readings with 13 metrics. A backlog is what jobs left to fetch, {response}
events a response: the program follows them all at once, commits at its own pace and lets others at the file in between.
Against an insert of the same columns from arrays, {batch:,} rows a transaction, on a connection that stays open. Both
write DuckDB's checkpoints meanwhile.

{backlogs}

A commit on its own, as when hosts send live, opens and closes the file, which takes most of its time; against one
transaction of the same rows on a connection that stays open, without a checkpoint mostly:

{ingested}

A commit of 1,000 rows: {small_ms:.0f} ms into a small table, {large_ms:.0f} ms into one of {rows:,} rows.

## Fleets

Every agent sends ten readings a second in one message. Lag: from a message's making to the end of its commit.

{fleets}

## What TLS costs

{agents} agents in clear text and with mutual TLS: CPU of the controller per message {plain_us:.0f} µs and
{tls_us:.0f} µs, **{tls_ratio:.2f} ×** (handshakes not counted).
"""


def page(
    backlogs: Sequence[Backlog],
    ingested: Sequence[Ingested],
    grown: Growth,
    fleets: Sequence[Followed],
    both: tuple[Followed, Followed],
) -> tuple[str, list[str]]:
    """The page, and the budgets that were missed; ``both``: the same fleet in clear text and with TLS."""
    budgets = list(_budgets(backlogs, grown, fleets))
    plain, tls = both
    text = PAGE.format(
        when=datetime.datetime.now(datetime.UTC),
        cores=os.cpu_count(),
        system=platform.system(),
        python=platform.python_version(),
        duckdb=duckdb.__version__,
        grpc=grpc.__version__,
        budgets=_table(
            ("what", "measured", "budget", ""),
            [(what, f"{value:.3g}", budget, "kept" if kept else "**missed**") for what, value, budget, kept in budgets],
        ),
        response=EVENTS_A_RESPONSE,
        batch=RAW_BATCH,
        backlogs=_table(
            ("jobs", "rows", "rows/s", "DuckDB alone, rows/s", "ratio"),
            [
                (f"{o.jobs}", f"{o.rows:,}", f"{o.rows_per_s:,.0f}", f"{o.raw_rows_per_s:,.0f}", f"{o.ratio:.2f}")
                for o in backlogs
            ],
        ),
        ingested=_table(
            ("rows a commit", "rows/s", "DuckDB alone, rows/s", "ratio"),
            [
                (f"{o.rows_per_commit:,}", f"{o.rows_per_s:,.0f}", f"{o.raw_rows_per_s:,.0f}", f"{o.ratio:.2f}")
                for o in ingested
            ],
        ),
        small_ms=grown.small_s * 1e3,
        large_ms=grown.large_s * 1e3,
        rows=grown.rows,
        fleets=_table(
            ("agents", "seconds", "sent", "stored", "lost", "twice", "lag p50 (s)", "p99", "max", "CPU"),
            [_fleet_row(one) for one in fleets],
        ),
        agents=plain.agents,
        plain_us=plain.cpu_per_message_s * 1e6,
        tls_us=tls.cpu_per_message_s * 1e6,
        tls_ratio=tls.cpu_per_message_s / plain.cpu_per_message_s,
    )
    return text, [what for what, _, _, kept in budgets if not kept]


def _budgets(
    backlogs: Sequence[Backlog], grown: Growth, fleets: Sequence[Followed]
) -> Iterator[tuple[str, float, str, bool]]:
    for one in backlogs:
        what = f"a backlog of {one.rows:,} rows of {one.jobs} jobs: rows/s over DuckDB's own insert of the same rows"
        yield what, one.ratio, f"≥ {INGEST_RATIO}", one.ratio >= INGEST_RATIO
    ratio = grown.large_s / grown.small_s
    what = f"time of a commit into {grown.rows:,} rows over one into a small table"
    yield what, ratio, f"≤ {GROWTH_RATIO}", ratio <= GROWTH_RATIO
    for fleet in fleets:
        lag, wrong = fleet.lag_p99_s, float(fleet.lost + fleet.twice)
        yield f"{fleet.agents:,} agents: commit lag p99 (s)", lag, f"< {LAG_P99_S}", lag < LAG_P99_S
        yield f"{fleet.agents:,} agents: readings lost or stored twice", wrong, "0", wrong == 0


def _fleet_row(one: Followed) -> tuple[str, ...]:
    return (
        f"{one.agents:,}",
        f"{one.seconds}",
        f"{one.expected:,}",
        f"{one.stored:,}",
        f"{one.lost}",
        f"{one.twice}",
        f"{one.lag_p50_s:.2f}",
        f"{one.lag_p99_s:.2f}",
        f"{one.lag_max_s:.2f}",
        f"{one.cpu_ratio:.0%} of a core",
    )


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] + ["---:"] * (len(headings) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
