"""The self-measurement: a loopback server and a load process, the same program that measures runtimes.

Neither knows anything that outlives the measurement, so both are simply killed at its end, however it comes.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchfleet.failures import Reason, WorkFailed
from benchfleet_agent.child import Child, ChildGone, ChildTimeout, Message
from benchfleet_agent.instrument.certificate import NS_PER_S, Certificate, RoundCost, Schedule, SentAnswer, certify
from benchfleet_agent.load.record import RequestRecord

RATE_PER_S = 200
"""Of each stream: a quick local model."""
TOTAL_RATE_PER_S = 3200
"""Of all streams together; beyond it two cores are busy with the server, and the answer is about the machine."""
STREAM_NS = NS_PER_S // 5
"""How long an answer's tokens take."""
FIRST_TOKEN_NS = 20_000_000
FEWEST_REQUESTS = 6
WARM_UP = Schedule(tokens=4, first_token_ns=1_000_000, gap_ns=1_000_000)
POLL_S = 0.1
ANSWER_S = 60.0
"""The longest silence of either process; a cold start with a busy disk takes some of it."""
REQUEST_S = 10.0


@dataclass(frozen=True, slots=True)
class Shape:
    """What is sent to measure one concurrency."""

    concurrency: int
    requests: int
    schedule: Schedule

    @classmethod
    def of(cls, concurrency: int) -> Shape:
        """The shape for so many streams: about half a second. One stream takes longer: each request is one TTFT error.

        Raises ValueError below 1.
        """
        if concurrency < 1:
            raise ValueError(f"a concurrency is 1 or more, not {concurrency}")
        gap_ns = max(NS_PER_S // RATE_PER_S, concurrency * NS_PER_S // TOTAL_RATE_PER_S)
        tokens = max(4, STREAM_NS // gap_ns)
        requests = max(FEWEST_REQUESTS, concurrency, min(2 * concurrency, 64))
        return cls(concurrency, requests, Schedule(tokens, FIRST_TOKEN_NS, gap_ns))


def measure(
    concurrencies: Sequence[int],
    log_dir: Path,
    *,
    cancelled: Callable[[], bool] = lambda: False,
    server_arguments: Sequence[str] = (),
) -> tuple[Certificate, ...]:
    """Measure the load process at each concurrency; one certificate each, in that order.

    Blocks, about two seconds for one stream and one for each further shape. `cancelled` is asked every tenth of a
    second. What the two processes print goes to ``load_process.log`` and ``loopback_server.log`` in `log_dir`.
    `server_arguments` are for tests. Both processes have ended when it returns or raises.

    Raises `WorkFailed`: ``cancelled``, ``load_process_crashed``, ``unsupported`` (a library is missing), the reason
    of a loopback request that failed, or ``internal`` when the server cannot run; ValueError for a concurrency below 1.
    """
    shapes = [Shape.of(concurrency) for concurrency in concurrencies]
    if not shapes:
        return ()
    server_module = ["benchfleet_agent.instrument.loopback_server", *server_arguments]
    with (
        _running("loopback server", server_module, log_dir, Reason.INTERNAL, cancelled) as server,
        _running("load process", ["benchfleet_agent.load"], log_dir, Reason.LOAD_PROCESS_CRASHED, cancelled) as load,
    ):
        base_url = f"http://127.0.0.1:{server.receive('listening')['port']}/v1"
        return tuple(_measure_shape(shape, base_url, server, load) for shape in shapes)


@dataclass(frozen=True, slots=True)
class _Process:
    """A child that answers, or `WorkFailed`."""

    child: Child
    gone: Reason
    """Why the measurement failed when the child does not go on."""
    cancelled: Callable[[], bool]

    def send(self, message: Message) -> None:
        """Write a command."""
        try:
            self.child.send(message)
        except ChildGone as error:
            raise WorkFailed(self.gone, str(error)) from None

    def receive(self, *expected: str) -> Message:
        """The next event, which must be one of the expected."""
        deadline = time.monotonic() + ANSWER_S
        while True:
            if self.cancelled():
                raise WorkFailed(Reason.CANCELLED, "the job was cancelled")
            try:
                event = self.child.receive(POLL_S)
            except ChildTimeout:
                if time.monotonic() > deadline:
                    raise WorkFailed(self.gone, f"{self.child.name} was silent for {ANSWER_S:g} s") from None
            except ChildGone as error:
                raise WorkFailed(self.gone, str(error)) from None
            else:
                break
        if event["event"] in expected:
            return event
        if event["event"] == "failed":
            raise WorkFailed(Reason(event["reason"]), f"{self.child.name} could not go on: {event['message']}")
        raise WorkFailed(self.gone, f"{self.child.name} said {event['event']!r} instead of {' or '.join(expected)}")


@contextlib.contextmanager
def _running(
    name: str, module: Sequence[str], log_dir: Path, gone: Reason, cancelled: Callable[[], bool]
) -> Iterator[_Process]:
    """Run a module of ours as a child; it is dead afterwards."""
    log_path = log_dir / f"{name.replace(' ', '_')}.log"
    try:
        child = Child(name, [sys.executable, "-m", *module], log_path=log_path)
    except OSError as error:
        raise WorkFailed(gone, f"{name} cannot be started: {error}") from error
    try:
        yield _Process(child, gone, cancelled)
    finally:
        child.kill()


def _measure_shape(shape: Shape, base_url: str, server: _Process, load: _Process) -> Certificate:
    settings = {"base_url": base_url, "model": "loopback", "concurrency": shape.concurrency}
    load.send({"do": "open", **settings, "request_timeout_s": REQUEST_S})
    load.receive("opened")
    # The first requests import and connect, which no counted round of a job has in it.
    _round(load, server, shape.concurrency, WARM_UP)
    records, answers, cost = _round(load, server, shape.requests, shape.schedule)
    return certify(shape.concurrency, shape.schedule, records, answers, cost)


def _round(
    load: _Process, server: _Process, requests: int, schedule: Schedule
) -> tuple[list[RequestRecord], dict[str, SentAnswer], RoundCost]:
    load.send({"do": "round", "round_id": "loopback", "requests": [_request(n, schedule) for n in range(requests)]})
    records: list[RequestRecord] = []
    while (event := load.receive("request", "round_finished"))["event"] == "request":
        records.append(RequestRecord.from_dict(event))
    cost = RoundCost(event["end_ns"] - event["start_ns"], event["cpu_ns"], event["rss_bytes"])
    return records, _answers(server), cost


def _answers(server: _Process) -> dict[str, SentAnswer]:
    """What the server sent since the last time, by request id. A dead server, whatever requests met, shows here."""
    server.send({"do": "truth"})
    answers = server.receive("truth")["answers"]
    return {one["request_id"]: SentAnswer(one["received_ns"], tuple(one["sent_ns"])) for one in answers}


def _request(number: int, schedule: Schedule) -> dict[str, Any]:
    request_id = f"loopback-{number}"
    content = json.dumps({"request_id": request_id, **asdict(schedule)})
    return {
        "request_id": request_id,
        "prompt_id": "loopback",
        "messages": [{"role": "user", "content": content}],
    }
