"""What a trial must add up to: the server's own record against the stored rows. Pure: values in, verdict out."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Answer:
    """A request as the server saw it; ``answered_ns`` None: its answer never left completely."""

    request: int
    connection: int
    sha256: str
    tokens: int
    prompt_tokens: int
    received_ns: int
    answered_ns: int | None


@dataclass(frozen=True, slots=True)
class Row:
    """A request as the database has it."""

    request_id: str
    status: str
    reason: str | None
    sha256: str | None
    tokens: int | None
    prompt_tokens: int | None


@dataclass(frozen=True, slots=True)
class Job:
    """A run's job as the database has it; ``last_sequence``: the last event that a reader beside saw, None: unknown."""

    state: str
    reason: str | None
    committed_sequence: int
    last_sequence: int | None = None


@dataclass(slots=True)
class Tally:
    """Counts of one trial, or of many. Everything but the first four must be zero."""

    faults: int = 0
    expected: int = 0
    """Answers that the server completed and that must be stored."""
    stored: int = 0
    """Of those, stored once with the right numbers."""
    in_flight: int = 0
    """Answers that ended with the process that was to keep them: at most the last of each connection at a kill."""
    lost: int = 0
    twice: int = 0
    wrong: int = 0
    """Rows without such an answer, with other numbers, gaps in sequences, jobs without a definite end."""
    destroyed: int = 0
    """Answers in a file that the trial itself damaged, said by the program to be lost."""
    gone: list[str] = field(default_factory=list)
    """The digests of these, in one trial."""
    problems: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Take in another one."""
        for name in ("faults", "expected", "stored", "in_flight", "lost", "twice", "wrong", "destroyed"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.problems += other.problems

    @property
    def kept(self) -> bool:
        """Whether the promises held."""
        return not (self.lost or self.twice or self.wrong)


@dataclass(frozen=True, slots=True, init=False)
class Named:
    """Events that the program says are lost: ``5, 9-12``, ``after 40``, ``everything``."""

    ranges: tuple[tuple[float, float], ...]

    def __init__(self, *lost: str) -> None:
        parts = [part.strip() for text in lost for part in text.split(",") if part.strip()]
        object.__setattr__(self, "ranges", tuple(_range(part) for part in parts))

    def cover(self, sequence: int) -> bool:
        """Whether an event is among them."""
        return any(low <= sequence <= high for low, high in self.ranges)

    @property
    def count(self) -> float:
        """How many they are at most."""
        return sum(high - low + 1 for low, high in self.ranges)


def _range(text: str) -> tuple[float, float]:
    if text == "everything":
        return 1, math.inf
    if text.startswith("after "):
        return int(text.removeprefix("after ")) + 1, math.inf
    low, _, high = text.partition("-")
    return int(low), int(high or low)


def confine(tally: Tally, named: Named, sequences: Mapping[str, int]) -> None:
    """Of what was destroyed, call lost what the program did not name.

    ``sequences``: where a reader beside saw answers; of those it did not see, as many may be gone as events are named.
    """
    unseen = 0
    for digest in tally.gone:
        sequence = sequences.get(digest)
        unseen += sequence is None
        if named.cover(sequence) if sequence is not None else unseen <= named.count:
            continue
        tally.destroyed, tally.lost, tally.expected = tally.destroyed - 1, tally.lost + 1, tally.expected + 1
        where = "at no event that was seen" if sequence is None else f"at event {sequence}"
        tally.problems.append(f"an answer {where} is gone, of which the agent's record of losses does not speak")


def read_record(text: str, after: int = 0) -> list[Answer]:
    """The answers above a number, from the server's record."""
    received: dict[int, dict[str, object]] = {}
    answered: dict[int, int] = {}
    for line in text.splitlines():
        entry = json.loads(line)
        if "received_ns" in entry:
            received[entry["request"]] = entry
        else:
            answered[entry["request"]] = entry["answered_ns"]
    return [
        Answer(answered_ns=answered.get(number), **entry)  # type: ignore[arg-type]
        for number, entry in sorted(received.items())
        if number > after
    ]


def reckon(
    answers: Sequence[Answer],
    rows: Sequence[Row],
    jobs: Sequence[Job],
    kills_ns: Sequence[int],
    concurrency: int,
    *,
    damage: bool = False,
) -> Tally:
    """Judge one trial.

    ``kills_ns``: when a process that had answers in its hands (agent, load process) was killed; ``damage``: the trial
    damaged the file that held them, so what is missing is destroyed, not lost.
    """
    tally = Tally()
    _find_doubles(rows, tally)
    _find_wrong(answers, rows, tally)
    stored = {row.sha256 for row in rows if row.status == "ok"}
    complete = _for_the_living(answers, kills_ns)
    missing = [answer for answer in complete if answer.sha256 not in stored]
    _judge_missing(missing, complete, kills_ns, concurrency, tally)
    if damage:
        tally.destroyed, tally.lost, tally.problems = tally.lost, 0, []
    tally.expected = len(complete) - tally.in_flight - tally.destroyed
    tally.stored = len(complete) - len(missing)
    for job in jobs:
        if problem := _unfinished(job):
            tally.wrong += 1
            tally.problems.append(problem)
    if answers and not jobs:
        tally.wrong += 1
        tally.problems.append("the run was answered and has no job in the database")
    return tally


def _for_the_living(answers: Sequence[Answer], kills_ns: Sequence[int]) -> list[Answer]:
    """Without what a load process was still waiting for, or asked for, when it or its agent died."""
    opened: dict[int, int] = {}
    for answer in answers:
        opened.setdefault(answer.connection, answer.received_ns)
    return [
        answer
        for answer in answers
        if answer.answered_ns is not None
        and not any(opened[answer.connection] <= moment < answer.answered_ns for moment in kills_ns)
    ]


def _find_doubles(rows: Sequence[Row], tally: Tally) -> None:
    for kind, values in (
        ("request_id", Counter(row.request_id for row in rows)),
        ("answer", Counter(row.sha256 for row in rows if row.status == "ok")),
    ):
        for value, times in values.items():
            if times > 1:
                tally.twice += times - 1
                tally.problems.append(f"{kind} {value} is stored {times} times")


def _find_wrong(answers: Iterable[Answer], rows: Iterable[Row], tally: Tally) -> None:
    known = {answer.sha256: answer for answer in answers}
    for row in rows:
        if row.status != "ok":
            if not row.reason:
                tally.wrong += 1
                tally.problems.append(f"request {row.request_id} is {row.status} without a reason")
            continue
        answer = known.get(row.sha256 or "")
        if answer is None:
            tally.wrong += 1
            tally.problems.append(f"request {row.request_id} holds an answer that was never given")
        elif (row.tokens, row.prompt_tokens) != (answer.tokens, answer.prompt_tokens):
            tally.wrong += 1
            tally.problems.append(f"request {row.request_id} has other counts than answer {answer.request}")


def _judge_missing(
    missing: Sequence[Answer], complete: Sequence[Answer], kills_ns: Sequence[int], concurrency: int, tally: Tally
) -> None:
    """In flight is only what a worker finished last before a kill, on the one connection that each worker has."""
    finished: dict[int, list[int]] = defaultdict(list)
    for answer in complete:
        assert answer.answered_ns is not None
        finished[answer.connection].append(answer.answered_ns)
    per_kill: Counter[int] = Counter()
    for answer in missing:
        assert answer.answered_ns is not None
        kill = next((moment for moment in sorted(kills_ns) if moment >= answer.answered_ns), None)
        later = sum(moment > answer.answered_ns for moment in finished[answer.connection])
        if kill is not None and not later and per_kill[kill] < concurrency:
            per_kill[kill] += 1
            tally.in_flight += 1
        else:
            tally.lost += 1
            tally.gone.append(answer.sha256)
            tally.problems.append(
                f"answer {answer.request} (connection {answer.connection}, {later} later ones) is not stored; "
                + (f"answered {(kill - answer.answered_ns) / 1e6:.1f} ms before the kill" if kill else "nobody died")
            )


def _unfinished(job: Job) -> str | None:
    if job.state not in ("finished", "failed", "cancelled"):
        return f"the job is {job.state!r} for ever"
    if job.state == "failed" and not job.reason:
        return "the job failed without a reason"
    if job.last_sequence is not None and job.committed_sequence != job.last_sequence:
        return f"event {job.committed_sequence} is stored last, the agent's last was {job.last_sequence}"
    return None
