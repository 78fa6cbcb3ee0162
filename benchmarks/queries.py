"""Answers over much data: is a comparison over a million requests still interactive? `make bench-queries`.

    python benchmarks/queries.py [--requests 1000000] [--samples 100000000] [--write docs/queries.md]

A database with the program's own tables is filled by SQL with made-up requests (16 tokens each) and readings. Then the
answers a person asks for are timed, each in a process of its own as a user would ask, against the bare SQL percentile
query in the same database. Exit code 1 when a budget is missed.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import duckdb

from benchfleet_controller.commands.comparing import comparison_of
from benchfleet_controller.metrics import DEFAULT_COMPARED
from benchfleet_controller.store import Store, condensed
from fakes.events import JobEvents, commit_events, host, spec

CASES, ROUNDS, TOKENS = 8, 25, 16
COMPARISON_RATIO = 3.0
HELP_RATIO = 3.0
BARE = (
    "SELECT case_id, quantile_cont(ttft_s, [0.5, 0.95]), quantile_cont(e2e_s, [0.5, 0.95]) "
    "FROM request_metrics WHERE NOT warmup AND status = 'ok' GROUP BY case_id"
)


@dataclass(frozen=True, slots=True)
class Timed:
    """One question and the median of its times in seconds."""

    what: str
    seconds: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--samples", type=int, default=100_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", type=Path, metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="queries-") as folder:
        path = Path(folder) / "large.duckdb"
        fill(path, options.requests, options.samples)
        print(f"filled: {path.stat().st_size / 2**30:.1f} GiB", file=sys.stderr)
        bare = Timed("bare SQL: p50 and p95 of TTFT and latency by case", bare_query(path, options.repeats))
        comparison = Timed(
            "comparison by host, all usual metrics, without the start of Python", compared(path, options)
        )
        start = Timed("`python -c pass`", asked([sys.executable, "-c", "pass"], 10))
        help_ = Timed("`benchfleet --help`", asked([*_benchfleet(), "--help"], 10))
        answers = [
            Timed(
                f"`benchfleet {' '.join(words)}`", asked([*_benchfleet(), *words, "--db", str(path)], options.repeats)
            )
            for words in (
                ["compare", "last", "--by", "host"],
                ["compare", "last", "--by", "host", "--metric", "ttft_p50_s", "--metric", "e2e_p50_s"],
                ["show", "last"],
                ["runs"],
            )
        ]
    text, missed = page(options, bare, [comparison, *answers], (start, help_))
    print(text)
    if options.write:
        options.write.write_text(text, encoding="utf-8")
    return 1 if missed else 0


def fill(path: Path, requests: int, samples: int) -> None:
    """A run on two hosts: cases, counted rounds, requests and readings, spread evenly."""
    store = Store(path)
    names = [f"c{index}" for index in range(CASES)]
    for place in range(2):
        job = JobEvents(f"j{place}")
        mine = names[place::2]
        asked_for = spec(*mine, run_id="large", round_count=ROUNDS)
        for index, case in enumerate(asked_for.cases):
            case.model = f"model-{index}"
        job.job_started(asked_for, host(f"h{place}"))
        for index, name in enumerate(mine):
            job.case_started(name, alias=f"model-{index}", variant=f"model-{index}-cpu:1")
            job.loaded(name)
            for number in range(ROUNDS):
                job.round(name, f"{name}-r{number}", number, 1000 * number, 1000 * (number + 1), [])
            job.case_finished(name)
        job.job_finished()
        commit_events(store, job.job_id, job.events)
    each, gap = requests // (CASES * ROUNDS), 20_000_000
    with duckdb.connect(str(path)) as connection:
        connection.execute(
            f"""
            INSERT INTO requests BY NAME
            SELECT run_id, job_id, case_id, round_id, case_id || '-' || round_id || '-' || n AS request_id,
                   false AS warmup, 'p' || n % 20 AS prompt_id, 'ok' AS status, start_ns + n * 1000000 AS start_ns,
                   start_ns + n * 1000000 + first + {TOKENS} * {gap} AS done_ns, done_ns AS end_ns,
                   list_transform(range({TOKENS}), lambda i: first + i * {gap} + (hash(n * 31 + i) % 2000000)::BIGINT)
                     AS token_offset_ns,
                   list_transform(range({TOKENS}), lambda i: 4) AS piece_length,
                   40 AS prompt_tokens, {TOKENS} AS output_tokens, {TOKENS} AS visible_tokens,
                   'usage' AS tokens_source, 'consistent' AS accounting, 'length' AS finish_reason,
                   0 AS coalesced_chunks,
                   'kernel' AS stamp_source, 'an answer' AS text, n AS position
            FROM (SELECT *, 100000000 + (hash(n, round_id) % 20000000)::BIGINT AS first
                  FROM rounds, (SELECT range AS n FROM range({each})))"""
        )
        connection.execute(
            f"""
            INSERT INTO samples BY NAME
            SELECT run_id, job_id, case_id, round_id, 'round' AS phase, 'system' AS probe_id,
                   start_ns + n * 100000 AS sample_ns, 300 AS cost_us, n * 90000 AS host_cpu_busy_ns,
                   n * 400000 AS host_cpu_total_ns, 8000000000 - n AS host_available_bytes, 0 AS host_swap_used_bytes,
                   400000000 + n % 1000 AS runtime_rss_bytes, n * 80000 AS runtime_cpu_ns, n * 100 AS load_cpu_ns,
                   n * 10 AS agent_cpu_ns
            FROM rounds, (SELECT range AS n FROM range({samples // (CASES * ROUNDS)}))"""
        )
        begun = time.perf_counter()
        for place in range(2):  # what the end of each job does
            condensed.keep(connection, [f"j{place}"])
        print(
            f"condensed {requests:,} requests and {samples:,} samples: {time.perf_counter() - begun:.1f} s",
            file=sys.stderr,
        )


def bare_query(path: Path, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        with duckdb.connect(str(path), read_only=True) as connection:
            connection.execute(BARE).fetchall()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def compared(path: Path, options: argparse.Namespace) -> float:
    """The comparison that `compare last --by host` prints, from the store to its rows."""
    times = []
    for _ in range(options.repeats):
        begun = time.perf_counter()
        comparison_of(Store(path), ["large"], ("host",), None, DEFAULT_COMPARED, measured=True)
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def asked(command: list[str], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def _benchfleet() -> list[str]:
    return [str(Path(sys.executable).parent / "benchfleet")]


def page(
    options: argparse.Namespace, bare: Timed, answers: list[Timed], start: tuple[Timed, Timed]
) -> tuple[str, list[str]]:
    """The page, and the budgets that were missed."""
    budgets = [
        (answers[0].what, answers[0].seconds / bare.seconds, COMPARISON_RATIO, "the bare query"),
        (start[1].what, start[1].seconds / start[0].seconds, HELP_RATIO, start[0].what),
    ]
    rows = [
        f"| {what} | {ratio:.2f} × {of} | ≤ {most:g} × | {'kept' if ratio <= most else '**missed**'} |"
        for what, ratio, most, of in budgets
    ]
    times = [f"| {one.what} | {one.seconds:.2f} | {one.seconds / bare.seconds:.2f} |" for one in (bare, *answers)]
    today = datetime.datetime.now(datetime.UTC)
    text = f"""# Answers over much data, measured

Written by `make bench-queries`: {options.requests:,} requests of {TOKENS} tokens and {options.samples:,} readings in
{CASES} cases of {ROUNDS} rounds on two hosts, made up. Commands are processes, from their start to the printed text.

{today:%Y-%m-%d}, {os.cpu_count()} logical processors, Python {platform.python_version()}, duckdb {duckdb.__version__}

| what | measured | budget | |
| --- | ---: | ---: | --- |
{chr(10).join(rows)}

| question | seconds | × the bare query |
| --- | ---: | ---: |
{chr(10).join(times)}
"""
    return text, [what for what, ratio, most, _ in budgets if ratio > most]


if __name__ == "__main__":
    sys.exit(main())
