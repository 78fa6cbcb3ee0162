"""Progress for people, on stderr: a line a host that changes in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from benchfleet.v1 import event_pb2, job_pb2

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

PLAIN_PERIOD_S = 2.0
_NO_ROUNDS = frozenset({"calibration", "keepwarm"})
"""Kinds that are not among the rounds that were asked for."""


@dataclass(slots=True)
class HostProgress:
    """What one host does now, built up from its events. Pure."""

    cases: int = 0
    case: int = 0
    planned: dict[str, str] = field(default_factory=dict)
    """By case: how many rounds there will be, as said after a round's number."""
    of: str = ""
    round: int = 0
    kind: str = ""
    not_rounds: int = 0
    """Rounds so far that are none to people: those that find the length of prompts."""
    requests: int = 0
    model: str = ""
    text: str = "waiting"
    ended: bool = False

    def apply(self, event: event_pb2.Event) -> bool:
        """Take in one event; True when it is worth a line of its own where lines cannot be rewritten."""
        kind = event.WhichOneof("kind")
        if kind == "job_started":
            spec = event.job_started.spec
            self.cases = len(spec.cases)
            self.planned = {case.case_id: _planned(case) for case in spec.cases}
            self.text = "accepted"
        elif kind == "certificate_recorded":
            self.text = _certificate(event.certificate_recorded)
            return True
        elif kind == "case_started":
            started = event.case_started
            self.case, self.not_rounds = self.case + 1, 0
            self.of = self.planned.get(started.case_id, "")
            self.model = started.model.variant
            self.text = f"{self._case}: {self.model or 'no such model'}"
            return True
        elif kind == "progress_reported":
            reported = event.progress_reported
            share = f" {reported.fraction:.0%}" if reported.HasField("fraction") else ""
            self.text = f"{reported.message}{share}"
            return not share or reported.fraction >= 1
        elif kind == "model_loaded":
            seconds = (event.model_loaded.end_ns - event.model_loaded.start_ns) / 1e9
            self.text = f"{self.model or 'the model'} loaded in {seconds:.1f} s"
            return True
        elif kind == "round_started":
            begun = event.round_started
            self.kind = begun.kind or ("warmup" if begun.warmup else "counted")
            self.not_rounds += self.kind in _NO_ROUNDS
            self.round, self.requests = begun.round_index + 1 - self.not_rounds, 0
            self._say_round()
        elif kind == "request_finished":
            self.requests += 1
            self._say_round()
        elif kind == "round_finished":
            self._say_round()
            return self.kind not in _NO_ROUNDS
        elif kind == "case_finished":
            finished = event.case_finished
            why = f": {finished.failure.message}" if finished.HasField("failure") else ""
            self.text = f"{self._case} {finished.status}{why}"
            return True
        elif kind == "job_finished":
            finished_job = event.job_finished
            why = f": {finished_job.failure.message}" if finished_job.HasField("failure") else ""
            self.text, self.ended = f"done{why}", True
            return True
        return False

    def _say_round(self) -> None:
        if self.kind == "calibration":
            self.text = f"{self._case} checking prompt lengths"
        elif self.kind == "keepwarm":
            self.text = f"{self._case} keeping the model warm"
        elif self.kind == "idle":
            self.text = f"{self._case} request after the pause"
        else:
            kind = "warm-up round" if self.kind == "warmup" else "round"
            self.text = f"{self._case} {kind} {self.round}{self.of}, {self.requests} requests"

    @property
    def _case(self) -> str:
        """Which case; its number is unknown when the events before it were fetched earlier (`benchfleet collect`)."""
        return f"case {self.case}/{self.cases}" if self.cases else "case"


def _certificate(recorded: event_pb2.CertificateRecorded) -> str:
    if recorded.HasField("failure"):
        return f"its time stamps could not be checked: {recorded.failure.message}"
    error_ms = recorded.ttft_error_p99_ns / 1e6
    return (
        f"checked its time stamps: first tokens are known to ±{error_ms:.3g} ms with {recorded.concurrency} in flight"
    )


def _planned(case: job_pb2.CaseSpec) -> str:
    """``/4`` where the number of rounds, warm-up ones included, is fixed; else the most there may be."""
    most = max(case.round_count, case.stop.maximum_round_count)
    text = "/{}" if most == case.round_count else " (at most {})"
    return text.format(case.warmup_round_count + most)


class Progress:
    """Shows the hosts' progress while it is entered."""

    def __init__(self, hosts: list[str], stream: TextIO | None = None, *, quiet: bool = False) -> None:
        self._stream = stream or sys.stderr
        self._hosts = {name: HostProgress() for name in hosts}
        self._quiet = quiet
        self._live: Live | None = None
        self._spoken: dict[str, tuple[str, float]] = {}
        if not quiet and self._stream.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(file=self._stream), refresh_per_second=8, transient=True)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._quiet:
            return
        text = printable_lines(text)
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._stream, flush=True)

    def watch(self, host: str, event: event_pb2.Event) -> None:
        """Take in one event of a host."""
        progress = self._hosts.setdefault(host, HostProgress())
        important = progress.apply(event)
        if self._quiet:
            return
        if self._live is not None:
            self._live.update(self._table())
        elif important:
            self._speak(host, progress.text)

    def _speak(self, host: str, text: str) -> None:
        text = printable(text)
        last, when = self._spoken.get(host, ("", 0.0))
        now = time.monotonic()
        same_kind = text.split(":", 1)[0] == last.split(":", 1)[0]
        if text != last and not (same_kind and now - when < PLAIN_PERIOD_S):
            self._spoken[host] = (text, now)
            print(f"{host}: {text}", file=self._stream, flush=True)

    def _table(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        for name, progress in self._hosts.items():
            mark = "✓" if progress.ended else "…"
            table.add_row(Text(mark), Text(printable(name), style="bold"), Text(printable(progress.text)))
        return table


def printable(text: str) -> str:
    """The text without control characters: names and answers come from elsewhere and must not steer a terminal."""
    return "".join(character if character.isprintable() else " " for character in text)


def printable_lines(text: str) -> str:
    """The same of a text of several lines."""
    return "\n".join(printable(line) for line in text.split("\n"))
