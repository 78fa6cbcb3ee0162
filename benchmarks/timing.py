"""How true are our timestamps? The load process against the plain ``openai`` loop, on one server that knows.

Both clients talk to the same scripted server in the same run, one after the other, at 1 x 1,000, 1 x 5,000 and
32 x 100 tokens/s; and where a client may disturb itself: beside a stream others end and have their tokens counted
(no usage), and a stream has a line of 1 MB. Printed are ratios (ours / plain) against the project's budgets; absolute
numbers depend on the machine. The error of a stamp is the client's arrival stamp minus the server's stamp just before
it sent that chunk.

    python benchmarks/timing.py --seconds 5

Exit code 1 when a budget is missed. Needs the load process's dependencies and, to be fair, an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchfleet_agent.child import Child

ROOT = Path(__file__).resolve().parent.parent
SERVER = ROOT / "tests" / "fakes" / "openai_server.py"
TTFT_REQUESTS = 60
CLIENTS = ("plain", "socket", "kernel")
Requests = list[dict[str, Any]]


@dataclass(frozen=True)
class Shape:
    """A load: streams side by side, tokens/s in each."""

    streams: int
    rate: int
    big_line_bytes: int = 0
    """One line of that size in the middle of each."""
    neighbour_s: float = 0.0
    """Beside the stream, another one has an answer of that length after the other, at the same rate, without usage."""

    @property
    def disturbed(self) -> bool:
        """Whether something but tokens goes on."""
        return bool(self.neighbour_s or self.big_line_bytes)

    def requests(self, seconds: float) -> Requests:
        """One long answer a stream, and the neighbours' short ones."""
        script = {"gap_ms": 1000 / self.rate, "ttft_ms": 200, "big_line_bytes": self.big_line_bytes}
        if not self.neighbour_s:
            tokens = int(seconds * self.rate)
            return [{**script, "tokens": tokens, "tag": f"stream-{number}"} for number in range(self.streams)]
        long = {**script, "tokens": int(seconds * self.rate), "tag": JUDGED + "stream"}
        short = {**script, "tokens": int(self.neighbour_s * self.rate), "usage": False}
        number = int(seconds / (self.neighbour_s + 0.25))
        return [long, *({**short, "tag": f"neighbour-{index}"} for index in range(number))]

    def __str__(self) -> str:
        beside = ", others end" if self.neighbour_s else f", {self.big_line_bytes >> 20} MB line"
        return f"{self.streams} x {self.rate:,}/s{beside if self.disturbed else ''}"


JUDGED = "judged-"
"""Where one tag begins so, the other requests are only company."""
SHAPES = (
    Shape(1, 1000),
    Shape(1, 5000),
    Shape(32, 100),
    Shape(2, 500, neighbour_s=0.5),
    Shape(1, 500, big_line_bytes=1 << 20),
)
TTFT_SCRIPTS: Requests = [{"tag": f"ttft-{n}", "tokens": 4, "ttft_ms": 20, "gap_ms": 1} for n in range(TTFT_REQUESTS)]


@dataclass
class Measured:
    """What one client said of its requests, by tag: t0 and the arrival of every token (perf_counter ns)."""

    start_ns: dict[str, int] = field(default_factory=dict)
    token_ns: dict[str, list[int]] = field(default_factory=dict)
    cpu_ns: int = 0
    coalesced: int = 0
    rss_bytes: int = 0


def plain_client(base_url: str, streams: int, scripts: Requests) -> Measured:
    """The loop everybody writes: t0 before the call, a stamp for each chunk with content."""
    import openai

    client = openai.OpenAI(base_url=base_url, api_key="none", max_retries=0)
    measured = Measured()
    waiting = deque(scripts)

    def work() -> None:
        while waiting:
            script = waiting.popleft()
            stamps = []
            start_ns = time.perf_counter_ns()
            stream = client.chat.completions.create(
                model="fake", stream=True, messages=[{"role": "user", "content": json.dumps(script)}]
            )
            for chunk in stream:
                if chunk.choices and chunk.choices[0].delta.content:
                    stamps.append(time.perf_counter_ns())  # noqa: PERF401 (the loop is what is measured)
            measured.start_ns[script["tag"]] = start_ns
            measured.token_ns[script["tag"]] = stamps

    client.models.list()  # a connection, imports and pools, before anything counts
    threads = [threading.Thread(target=work) for _ in range(streams)]
    cpu_ns = time.process_time_ns()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    measured.cpu_ns = time.process_time_ns() - cpu_ns
    return measured


def run_plain(base_url: str, streams: int, scripts: Requests) -> Measured:
    """The plain client in a process of its own, as ours is."""
    command = [sys.executable, __file__, "--plain-client", base_url, str(streams)]
    done = subprocess.run(command, input=json.dumps(scripts), capture_output=True, text=True, check=True)
    return Measured(**json.loads(done.stdout))


def run_ours(base_url: str, streams: int, scripts: Requests, arguments: Sequence[str]) -> Measured:
    """The load process."""
    from benchmarks.peers.tokenizer import write_tokenizer

    measured = Measured()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchfleet_agent.load", *arguments]
        child = Child("load", command, log_path=Path(folder) / "load.log")
        settings = {"base_url": base_url, "model": "fake", "concurrency": streams, "request_timeout_s": 120}
        tokenizer = write_tokenizer(ROOT / ".peers" / "tokenizer") / "tokenizer.json"
        child.send({"do": "open", **settings, "tokenizer_path": str(tokenizer)})
        child.receive(60)
        messages = [[{"role": "user", "content": json.dumps(script)}] for script in scripts]
        requests = [
            {"request_id": script["tag"], "prompt_id": "p", "messages": said}
            for script, said in zip(scripts, messages, strict=True)
        ]
        child.send({"do": "round", "round_id": "R", "requests": requests})
        while (event := child.receive(180))["event"] == "request":
            if event["status"] != "ok":
                raise SystemExit(f"{event['request_id']}: {event['message']}")
            start_ns = measured.start_ns[event["request_id"]] = event["start_ns"]
            measured.token_ns[event["request_id"]] = [start_ns + offset for offset in event["token_ns"]]
            measured.coalesced += event["coalesced_chunks"]
        measured.cpu_ns, measured.rss_bytes = event["cpu_ns"], event["rss_bytes"] or 0
        child.send({"do": "close"})
        child.stop(10)
    return measured


def take_truth(base_url: str) -> dict[str, dict[str, Any]]:
    """What the server did since it was last asked, by tag."""
    with urllib.request.urlopen(base_url.removesuffix("/v1") + "/truth", timeout=60) as response:
        return {entry["tag"]: entry for entry in json.load(response)}


def sent_ns(entry: dict[str, Any]) -> list[int]:
    """When the server sent each token."""
    return [stamp for label, stamp in entry["steps"] if label == "token"]


def quantile(values: Iterable[float], share: float) -> float:
    """The value below which that share lies, linearly interpolated."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def errors_us(measured: Measured, truth: dict[str, dict[str, Any]]) -> list[float]:
    """Every stamp's error in microseconds, of the judged requests where there are such."""
    tags = [tag for tag in measured.token_ns if tag.startswith(JUDGED)] or list(measured.token_ns)
    return [
        (stamp - sent) / 1e3
        for tag in tags
        for stamps in (measured.token_ns[tag],)
        for stamp, sent in zip(stamps, sent_ns(truth[tag]), strict=True)
    ]


def overheads_us(measured: Measured, truth: dict[str, dict[str, Any]]) -> list[float]:
    """The client's TTFT minus the server's (request read to first token sent), in microseconds."""
    found = []
    for tag, stamps in measured.token_ns.items():
        entry = truth[tag]
        found.append((stamps[0] - measured.start_ns[tag] - (sent_ns(entry)[0] - entry["received_ns"])) / 1e3)
    return found[5:]


def measure(client: str, base_url: str, streams: int, scripts: Requests) -> Measured:
    """One client's run."""
    if client == "plain":
        return run_plain(base_url, streams, scripts)
    return run_ours(base_url, streams, scripts, ["--no-kernel-stamps"] if client == "socket" else [])


class Table:
    """Prints rows and remembers misses."""

    def __init__(self) -> None:
        self.missed = 0
        print(f"{'what':<44}{'client':<8}{'p50 us':>10}{'p99 us':>10}{'ratio':>9}{'budget':>8}  ")

    def row(self, what: str, client: str, values: tuple[float, float | None], ratio: float, budget: float) -> None:
        """One row; the plain client's own has no ratio."""
        p50, p99 = values
        judged = "" if client == "plain" else f"{ratio:>9.4f}{budget:>8.2f}  {'ok' if ratio <= budget else 'MISSED'}"
        self.missed += client != "plain" and ratio > budget
        print(f"{what:<44}{client:<8}{p50:>10.1f}{'' if p99 is None else format(p99, '.1f'):>10}{judged}", flush=True)


def median_of(repeats: int, results: list[tuple[float, float, float]]) -> tuple[float, float, float]:
    """The median of each statistic over the repeats."""
    assert len(results) == repeats
    first, second, third = (statistics.median(column) for column in zip(*results, strict=True))
    return first, second, third


def compare(base_url: str, seconds: float, repeats: int) -> int:
    """Measure all, print the table, return how many budgets were missed."""
    table = Table()
    notes = []
    budgets = {"socket": 0.35, "kernel": 0.05}
    for shape in SHAPES:
        found: dict[str, list[tuple[float, float, float]]] = {client: [] for client in CLIENTS}
        for _ in range(repeats):
            for client in CLIENTS:
                measured = measure(client, base_url, shape.streams, shape.requests(seconds))
                errors = errors_us(measured, take_truth(base_url))
                cpu_us = measured.cpu_ns / 1e3 / sum(map(len, measured.token_ns.values()))
                found[client].append((quantile(errors, 0.5), quantile(errors, 0.99), cpu_us))
                if client != "plain":
                    share = measured.coalesced / sum(map(len, measured.token_ns.values()))
                    rss = measured.rss_bytes / (1 << 20)
                    notes.append(f"{shape} {client}: coalesced {share:.2%}, resident {rss:.0f} MiB")
        medians = {client: median_of(repeats, results) for client, results in found.items()}
        for client, (p50, p99, _) in medians.items():
            ratio = p99 / medians["plain"][1]
            # Beside others and after a long line, arrivals wait for the processor and the wire as well.
            budget = budgets["socket"] if shape.disturbed else budgets.get(client, 1)
            table.row(f"stamp error, {shape}", client, (p50, p99), ratio, budget)
        for client, (_, _, cpu) in medians.items():
            table.row(f"CPU per token, {shape}", client, (cpu, None), cpu / medians["plain"][2], 0.5)
    plain_p50 = 0.0
    for client in CLIENTS:
        measured = measure(client, base_url, 1, TTFT_SCRIPTS)
        overheads = overheads_us(measured, take_truth(base_url))
        p50 = quantile(overheads, 0.5)
        plain_p50 = p50 if client == "plain" else plain_p50
        table.row("TTFT overhead", client, (p50, quantile(overheads, 0.99)), p50 / plain_p50, 0.15)
    print("\n".join(notes))
    return table.missed


def main() -> int:
    """Start the server and compare; or be the plain client."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each stream")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each; medians are compared")
    parser.add_argument("--plain-client", nargs=2, metavar=("URL", "STREAMS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plain_client:
        base_url, streams = arguments.plain_client
        json.dump(vars(plain_client(base_url, int(streams), json.load(sys.stdin))), sys.stdout)
        return 0
    sys.path.insert(0, str(ROOT))
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)  # the children import as we do
    with subprocess.Popen([sys.executable, str(SERVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        port = json.loads(server.stdout.readline())["port"]
        missed = compare(f"http://127.0.0.1:{port}/v1", arguments.seconds, arguments.repeats)
        server.stdin.close()
    print(f"{missed} budgets missed" if missed else "all budgets kept")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
