"""Who follows which job: how many may at a time, and whether somebody still needs a job that was given back.

Pure but for its clock; used on one event loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from benchfleet.failures import Reason, WorkFailed

MAXIMUM_STREAMS = 16
"""Followers at a time: each that does not read holds a message in the agent's memory."""
MOST_OF_A_CALLER = 6
"""Of one certificate's name; in clear text, where nobody has one, of one connection."""
KEPT_FOR_RUN = 6
"""Places that callers who may only read leave free: they must not keep out whoever owns a job."""
RETURN_S = 60.0
"""How long a follower is waited for that was cut off before the job's end, or asked for the job and is about to come;
controllers try about as long."""
MOST_EXPECTED = 256
LONGEST_WAIT_S = 300.0
"""How long a job that was given back is kept at most for those who follow it."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose call it is: the certificate's name, or the connection where there are none."""

    name: str
    may_run: bool


@dataclass(slots=True, eq=False)
class Follower:
    """One stream of a job's events."""

    caller: Caller
    job_id: str
    sequence: int
    """The last event that was sent."""


class Followers:
    """All that follow one agent's jobs."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._here: set[Follower] = set()
        self._expected: dict[tuple[str, str], float] = {}
        """Since when, by job and caller."""
        self._given_back: dict[str, tuple[int, float]] = {}
        """Jobs to be forgotten: their last sequence and when they were given back."""

    def join(self, caller: Caller, job_id: str, sequence: int) -> Follower:
        """Take a place. Raises `WorkFailed` ``host_busy``."""
        taken = len(self._here)
        if sum(one.caller.name == caller.name for one in self._here) >= MOST_OF_A_CALLER:
            message = f"{caller.name!r} follows {MOST_OF_A_CALLER} jobs here already; end one, or try again later"
            raise WorkFailed(Reason.HOST_BUSY, message)
        if taken >= MAXIMUM_STREAMS - (0 if caller.may_run else KEPT_FOR_RUN):
            raise WorkFailed(Reason.HOST_BUSY, f"{taken} callers follow jobs here already; try again later")
        follower = Follower(caller, job_id, sequence)
        self._here.add(follower)
        return follower

    def expect(self, caller: Caller, job_id: str) -> None:
        """Note that a caller asked for a job, and will follow it."""
        self._drop_old()
        if len(self._expected) < MOST_EXPECTED:
            self._expected[job_id, caller.name] = self._clock()

    def leave(self, follower: Follower, *, complete: bool) -> None:
        """Give the place up; ``complete``: everything was sent."""
        self._here.discard(follower)
        if complete:
            self._expected.pop((follower.job_id, follower.caller.name), None)
        else:
            self.expect(follower.caller, follower.job_id)

    def give_back(self, job_id: str, last_sequence: int) -> None:
        """Note that a job may be forgotten as soon as nobody needs it."""
        self._given_back.setdefault(job_id, (last_sequence, self._clock()))

    def forgettable(self) -> list[str]:
        """Jobs given back that nobody needs any more; each is told once."""
        now = self._clock()
        self._drop_old()
        found = [
            job_id
            for job_id, (last, since) in self._given_back.items()
            if now - since >= LONGEST_WAIT_S or not self._needed(job_id, last)
        ]
        for job_id in found:
            del self._given_back[job_id]
        return found

    def waits(self, job_id: str) -> bool:
        """Whether this job was given back and is still kept."""
        return job_id in self._given_back

    @property
    def waiting(self) -> bool:
        """Whether a job that was given back is still kept."""
        return bool(self._given_back)

    def _needed(self, job_id: str, last: int) -> bool:
        behind = any(one.job_id == job_id and one.sequence < last for one in self._here)
        return behind or any(expected == job_id for expected, _ in self._expected)

    def _drop_old(self) -> None:
        now = self._clock()
        self._expected = {who: since for who, since in self._expected.items() if now - since < RETURN_S}
