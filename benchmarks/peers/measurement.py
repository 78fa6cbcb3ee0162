"""All clients in turn on one server: what each says, what the server did, what it cost."""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.peers import environments, errors, ours, process, product, raw_socket
from benchmarks.peers.answers import Answer
from benchmarks.peers.client import Client, Load
from benchmarks.peers.environments import Unavailable
from benchmarks.peers.errors import Errors, Rate
from benchmarks.peers.server import Server
from benchmarks.peers.shapes import BY_NAME, CROWD, ERROR, ODD, PLAIN, Shape

RUN_S = 180
FAILING_S = 60
CROWD_STREAMS = 32
FAILING_REQUESTS = 4


class NoResult(Exception):
    """A client ran and left nothing to judge; the message says what was seen."""


@dataclass(frozen=True, slots=True)
class Amount:
    """How much of everything."""

    repetitions: int = 3
    """Of the plain shape."""
    requests: int = 10
    """In each of them."""
    odd_requests: int = 3
    """Of each odd shape."""
    crowd_requests: int = 64


QUICK = Amount(repetitions=1, requests=4, odd_requests=1, crowd_requests=32)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run of one client."""

    answers: Sequence[Answer]
    truths: Sequence[Answer]
    shapes: Sequence[str]
    """Of each request."""
    cpu_us_per_token: float | None
    """Of the whole process tree while requests ran, start and report left out."""
    cpu_s: float
    """All of it."""
    rss_bytes: int
    processes: int
    start_s: float
    """From the start of the program to its first request's arrival."""


@dataclass(frozen=True, slots=True)
class Figures:
    """A client's row: errors, and medians of the rest."""

    errors: Errors
    cpu_us_per_token: float | None
    cpu_s: float
    rss_bytes: int
    processes: int
    start_s: float


@dataclass
class Results:
    """Everything found, by client name."""

    unavailable: dict[str, str] = field(default_factory=dict)
    """Not measured at all, and why."""
    missing: dict[str, list[str]] = field(default_factory=dict)
    """What one part of the measurement did not find, and why."""
    plain: dict[str, Figures] = field(default_factory=dict)
    crowd: dict[str, Figures] = field(default_factory=dict)
    rates: dict[str, dict[str, Rate]] = field(default_factory=dict)
    exit_codes: dict[str, int | None] = field(default_factory=dict)


@dataclass
class Measurement:
    """The clients on one server. Progress goes to stderr."""

    server: Server
    clients: Sequence[Client]
    tokenizer: Path
    amount: Amount
    seed: int
    results: Results = field(default_factory=Results)
    programs: dict[str, Path] = field(default_factory=dict)

    def measure(self) -> Results:
        """Everything; a peer that cannot be installed or leaves nothing is said to, and the rest goes on."""
        self._install()
        order = random.Random(self.seed)
        plain: dict[str, list[Outcome]] = {}
        for repetition in range(self.amount.repetitions):
            shapes = [PLAIN] * self.amount.requests
            for client in self._shuffled(order):
                what = f"plain {repetition + 1}/{self.amount.repetitions}"
                if (outcome := self._try(client, shapes, 1, what)) is not None:
                    plain.setdefault(client.name, []).append(outcome)
        for name, outcomes in plain.items():
            by_request = [errors.errors_by_request(one.answers, one.truths) for one in outcomes]
            self.results.plain[name] = figures(outcomes, errors.median_errors(by_request))
        for client in self._shuffled(order):
            if client is raw_socket.CLIENT:  # it counts no tokens
                continue
            if (outcome := self._try(client, list(ODD) * self.amount.odd_requests, 1, "odd streams")) is not None:
                self.results.rates[client.name] = rates(outcome)
        for client in self._shuffled(order):
            if client.maximum_concurrency < CROWD_STREAMS:
                continue
            outcome = self._try(client, [CROWD] * self.amount.crowd_requests, CROWD_STREAMS, CROWD.name)
            if outcome is not None:
                found = errors.errors_of_aggregates(outcome.answers, outcome.truths)
                self.results.crowd[client.name] = figures([outcome], found)
        for client in self._shuffled(order):
            if client.peer or client is ours.CLIENT:
                self.results.exit_codes[client.name] = self._fail(client)
        return self.results

    def _install(self) -> None:
        for client in self.clients:
            try:
                self.programs[client.name] = environments.programs_of(client.requirements)
            except Unavailable as reason:
                self.results.unavailable[client.name] = str(reason)
                say(f"{client.name} cannot be installed: {reason}")

    def _shuffled(self, order: random.Random) -> list[Client]:
        able = [client for client in self.clients if client.name in self.programs]
        return order.sample(able, len(able))

    def _try(self, client: Client, shapes: Sequence[Shape], concurrency: int, what: str) -> Outcome | None:
        say(f"{what}: {client.name}")
        try:
            with tempfile.TemporaryDirectory() as folder:
                return self._run(client, shapes, concurrency, Path(folder))
        except NoResult as reason:
            self.results.missing.setdefault(client.name, []).append(f"{what}: {reason}")
            say(f"  {reason}")
            return None

    def _load(self, requests: int, concurrency: int, tokens: int) -> Load:
        return Load(self.server.root, requests, concurrency, tokens, self.tokenizer)

    def _run(self, client: Client, shapes: Sequence[Shape], concurrency: int, folder: Path) -> Outcome:
        self.server.play([PLAIN.script] * client.warm_up + [shape.script for shape in shapes])
        asked = max(shape.tokens for shape in shapes)
        command = client.command(self.programs[client.name], self._load(len(shapes), concurrency, asked), folder)
        ran = process.run(command, folder, RUN_S)
        entries = self.server.take_truth()
        outputs = sorted(folder.glob(client.output))
        if ran.exit_code is None or not outputs:
            ended = "killed" if ran.exit_code is None else f"ended with {ran.exit_code}"
            raise NoResult(f"{ended}, {len(entries)} requests seen; {' '.join(ran.stderr.split())[-200:]}")
        try:
            answers = client.parse(outputs[-1].read_text(encoding="utf-8"))
        except (ValueError, LookupError, TypeError) as error:
            raise NoResult(f"its report cannot be read: {error!r}") from error
        counted = entries[client.warm_up :][: len(answers)]
        if not answers or len(counted) < len(answers):
            raise NoResult(f"{len(answers)} requests reported, {len(counted)} seen by the server")
        used = [BY_NAME[entry["tag"]] for entry in counted]
        first_ns = counted[0]["received_ns"]
        last_ns = max(entry["steps"][-1][1] for entry in counted)
        cpu_s = process.cpu_between(ran.samples, first_ns, last_ns)
        tokens = sum(shape.tokens for shape in used)
        return Outcome(
            answers,
            [shape.truth(entry) for shape, entry in zip(used, counted, strict=True)],
            [shape.name for shape in used],
            None if cpu_s is None else cpu_s / tokens * 1e6,
            ran.samples[-1][1],
            ran.peak_rss_bytes,
            ran.processes,
            (entries[0]["received_ns"] - ran.start_ns) / 1e9,
        )

    def _fail(self, client: Client) -> int | None:
        say(f"{ERROR.name}: {client.name}")
        self.server.play([ERROR.script])
        with tempfile.TemporaryDirectory() as folder:
            if client is ours.CLIENT:
                return product.failing_run(self.server.root, Path(folder))
            load = self._load(FAILING_REQUESTS, 1, ERROR.tokens)
            command = client.command(self.programs[client.name], load, Path(folder))
            return process.run(command, Path(folder), FAILING_S).exit_code


def figures(outcomes: Sequence[Outcome], found: Errors) -> Figures:
    """Medians over runs; the most of memory and processes."""
    cpu = [one.cpu_us_per_token for one in outcomes if one.cpu_us_per_token is not None]
    return Figures(
        found,
        statistics.median(cpu) if cpu else None,
        statistics.median(one.cpu_s for one in outcomes),
        max(one.rss_bytes for one in outcomes),
        max(one.processes for one in outcomes),
        statistics.median(one.start_s for one in outcomes),
    )


def rates(outcome: Outcome) -> dict[str, Rate]:
    """Decode rates by shape."""
    found = {}
    for shape in dict.fromkeys(outcome.shapes):
        of_shape = [index for index, name in enumerate(outcome.shapes) if name == shape]
        answers = [outcome.answers[index] for index in of_shape]
        found[shape] = errors.rate_of(answers, [outcome.truths[index] for index in of_shape])
    return found


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)
