"""What was found, as Markdown. Pure, but for naming the machine."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Iterable, Mapping, Sequence

from benchmarks.peers import guidellm
from benchmarks.peers.client import Client
from benchmarks.peers.errors import Spread, percent
from benchmarks.peers.measurement import CROWD_STREAMS, Amount, Figures, Results
from benchmarks.peers.shapes import CROWD, GAP_MS, ODD, PLAIN, TTFT_MS
from benchmarks.peers.targets import Verdict

NOT_REPORTED = "–"


def report(results: Results, verdicts: Sequence[Verdict], clients: Sequence[Client], amount: Amount, seed: int) -> str:
    """The whole page."""
    names = [client.name for client in clients]
    parts = [
        _head(clients, amount, seed),
        f"## One stream at {1000 / GAP_MS:.0f} tokens/s\n\n" + _plain(names, results.plain),
        f"## Cost\n\n{_COST}\n\n" + _cost(names, results.plain, results),
        f"## Decode rate on odd streams\n\n{_ODD}\n\n" + _rates(names, results),
        f"## {CROWD_STREAMS} streams at {1000 / CROWD.gap_ms:.0f} tokens/s each\n\n{_CROWD}\n\n"
        + _crowd(names, results.crowd),
        "## Targets\n\n" + _verdicts(verdicts),
        _gone(results, names),
        _HOW,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(clients: Sequence[Client], amount: Amount, seed: int) -> str:
    versions = ", ".join(f"`{requirement}`" for client in clients for requirement in client.requirements)
    today = datetime.datetime.now(tz=datetime.UTC).date()
    system = (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} logical cores, Python {platform.python_version()}"
    )
    lines = [
        "# Timing against peers",
        "",
        f"Written by `python -m benchmarks.peers` on {today:%d %B %Y}: {system}; seed {seed}.",
        f"Peers: {versions or 'none'}.",
        (
            f"One server and one machine for all, one client after the other, in an order drawn anew for each part: "
            f"{amount.repetitions} × {amount.requests} requests of the plain stream, {amount.odd_requests} of each odd "
            f"stream, {amount.crowd_requests} side by side. An error is how far what the client reports lies from what "
            "the server did by its own clock, without sign; each statistic is the median over repetitions."
        ),
    ]
    return "\n".join(lines)


_COST = (
    "Of the whole process tree. CPU per token while requests ran, without start and report; memory is the most "
    "resident at any time, shared pages counted in each process; start-up is from the start of the program to the "
    "arrival of its first request. benchfleet is its load process alone: the agent beside it takes no times. The exit "
    "code is that of a run in which every request got HTTP 500; benchfleet's is `benchfleet run`'s."
)
_ODD = (
    "Reported rate against the rate at which tokens became visible. A tick: within 1 %. In brackets: what benchfleet's "
    "`accounting` says where count and stream do not agree. Clients that count for themselves were given the tokenizer."
)
_CROWD = (
    "Here no peer says which request is which, so aggregates are compared: the client's mean, median and 99th "
    "percentile over its requests against the server's. All streams start and tick together, as those of a batching "
    "server do, so TTFT errors include the server's own time to read what arrives at once."
)
_HOW = """## How it is made

`tests/fakes/openai_server.py` runs as one process for the whole benchmark. It streams on an absolute schedule and
notes, just before each write, `time.perf_counter_ns()`. What it streams is set beforehand (`POST /scripts`), because
peers send their own prompts; what it did is asked for afterwards (`GET /truth`). Requests are matched by order, one
stream at a time. True TTFT runs from the request's arrival to just before the first token's write, so the way to
the server and back is in every client's error; the raw socket reader, which stamps each read and does everything else
later, shows how much that is.

- Peers run from virtual environments of their own under `.peers/` with exact versions, with their defaults, but with
  neither dashboards nor GPU scraping, and with warm-up requests where they have such an option.
- ITL is compared twice: each request's mean time between tokens, which most report, and each single gap, which few do.
- benchfleet's numbers are those of the store's own view (`request_metrics`) over the load process's records.
- A client that a busy machine keeps from reading for longer than a gap finds two chunks in one read, and two single
  gaps are wrong, whoever took the stamp; benchfleet counts such chunks. On an idle machine there are none.
- "–": the client does not report it. benchrig gives TTFT in whole milliseconds and no time between tokens, one request
  at a time.

Again: `make bench-timing`, or `python -m benchmarks.peers --write docs/timing.md` (`--only AIPerf,benchrig`,
`--with guidellm` for 6 GB more, `--quick` to see that everything runs)."""


_NO_GUIDELLM = "- guidellm was not run: its environment takes 6 GB; nothing here is said of it (`--with guidellm`)"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _spread(spread: Spread | None) -> list[str]:
    if spread is None:
        return [NOT_REPORTED] * 3
    return [f"{value:.3f}" for value in (spread.mean, spread.p50, spread.p99)]


_ERRORS = ("TTFT mean", "TTFT p50", "TTFT p99", "ITL mean", "ITL p50", "ITL p99")


def _plain(names: Sequence[str], figures: Mapping[str, Figures]) -> str:
    rows = []
    for name in names:
        if name in figures:
            found = figures[name].errors
            gap = NOT_REPORTED if found.gaps is None else f"{found.gaps.p99:.3f}"
            rows.append([name, *_spread(found.ttft), *_spread(found.itl), gap])
    text = f"Errors in milliseconds; truth: TTFT {TTFT_MS} ms, {PLAIN.tokens} tokens, {GAP_MS} ms between them.\n\n"
    return text + table(["client", *_ERRORS, "single gaps p99"], rows)


def _crowd(names: Sequence[str], figures: Mapping[str, Figures]) -> str:
    rows = []
    for name in names:
        if name in figures:
            found, row = figures[name].errors, figures[name]
            cpu = NOT_REPORTED if row.cpu_us_per_token is None else f"{row.cpu_us_per_token:.0f}"
            rows.append([name, *_spread(found.ttft), *_spread(found.itl), cpu, f"{row.rss_bytes / 1e6:.0f}"])
    return table(["client", *_ERRORS, "CPU µs/token", "memory MB"], rows)


def _cost(names: Sequence[str], figures: Mapping[str, Figures], results: Results) -> str:
    rows = []
    for name in names:
        if name in figures:
            row = figures[name]
            cpu = NOT_REPORTED if row.cpu_us_per_token is None else f"{row.cpu_us_per_token:.0f}"
            memory = f"{row.rss_bytes / 1e6:.0f}"
            numbers = [cpu, f"{row.cpu_s:.1f}", memory, str(row.processes), f"{row.start_s:.2f}"]
            rows.append([name, *numbers, _exit_code(name, results)])
    head = ["client", "CPU µs/token", "CPU s in all", "memory MB", "processes", "start-up s", "exit code, all failed"]
    return table(head, rows)


def _exit_code(name: str, results: Results) -> str:
    if name not in results.exit_codes:
        return NOT_REPORTED
    code = results.exit_codes[name]
    return "did not end" if code is None else str(code)


def _rates(names: Sequence[str], results: Results) -> str:
    shown = [name for name in names if name in results.rates]
    rows = []
    for shape in ODD:
        cells = []
        for name in shown:
            rate = results.rates[name].get(shape.name)
            if rate is None or rate.error is None:
                cells.append(NOT_REPORTED)
                continue
            mark = " ✓" if abs(rate.error) <= 0.01 else ""
            remark = f" ({rate.remark})" if rate.remark not in ("", "consistent") else ""
            cells.append(f"{percent(rate.error)}{mark}{remark}")
        true = [results.rates[name][shape.name].true for name in shown if shape.name in results.rates[name]]
        truth = f"{true[0]:.1f}" if true else NOT_REPORTED
        rows.append([f"{shape.name}: {shape.meaning}", truth, *cells])
    return table(["stream", "truth, tokens/s", *shown], rows)


def _verdicts(verdicts: Sequence[Verdict]) -> str:
    return "\n".join(f"- {'kept' if verdict.kept else '**missed**'}: {verdict.text}" for verdict in verdicts)


def _gone(results: Results, names: Sequence[str]) -> str:
    lines = [] if guidellm.CLIENT.name in names else [_NO_GUIDELLM]
    lines += [f"- {name} is unavailable: {reason}" for name, reason in results.unavailable.items()]
    lines += [f"- {name}, {reason}" for name, reasons in results.missing.items() for reason in reasons]
    return "## Not measured\n\n" + "\n".join(lines) if lines else ""
