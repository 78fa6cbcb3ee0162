"""What a round sends next, and when. Pure but for its lock: the time comes from the caller."""

from __future__ import annotations

import dataclasses
import random
import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from benchfleet_agent.load.settings import NS_PER_S, RequestSpec
from benchfleet_agent.words import prefix

SHORTEST_PATIENCE_NS = 5 * NS_PER_S
"""How far beyond its end a round may go at the least to send what was due in it."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How a round's requests follow each other; all None: each prompt once, the next when one has ended."""

    duration_s: float | None = None
    """The prompts are repeated for so long; no request begins later."""
    rate_per_s: float | None = None
    """Open loop: requests become due at this rate, whatever the answers take."""
    poisson: bool = False
    """Gaps between due moments are exponential (a Poisson process) instead of equal."""
    seed: str = ""
    """Decides the gaps of a Poisson process."""
    prefix_seed: str | None = None
    """Each prompt begins with words of its own, decided by this; None: as it is."""


class Feed:
    """One round's requests in order. Safe from several threads."""

    def __init__(self, requests: Sequence[RequestSpec], pace: Pace, start_ns: int) -> None:
        self._requests = requests
        self._pace = pace
        self._start_ns = start_ns
        self._end_ns = None if pace.duration_s is None else start_ns + int(pace.duration_s * NS_PER_S)
        self._random = random.Random(pace.seed)
        self._due_s = 0.0
        self._position = 0
        self._lock = threading.Lock()
        self.given_up = False
        """An open loop is so late that what was still due is not sent."""

    def next(self, now_ns: int) -> RequestSpec | None:
        """The next request, ``scheduled_ns`` set in an open loop (it may lie ahead); None: the round has sent all."""
        with self._lock:
            position = self._position
            if self._end_ns is None and position >= len(self._requests):
                return None
            scheduled_ns = self._next_due_ns()
            if self._end_ns is not None and (now_ns if scheduled_ns is None else scheduled_ns) >= self._end_ns:
                return None
            if scheduled_ns is not None and self._hopeless(now_ns):
                self.given_up = True
                return None
            self._position += 1
        again, index = divmod(position, len(self._requests))
        spec = self._requests[index]
        seed = self._pace.prefix_seed
        return dataclasses.replace(
            spec,
            request_id=str(uuid.uuid4()) if again else spec.request_id,
            position=position,
            prefix="" if seed is None else prefix(seed, position),
            scheduled_ns=scheduled_ns,
        )

    def _hopeless(self, now_ns: int) -> bool:
        """Whether the round lasts twice as long as it should: its numbers are refused whatever comes."""
        if self._end_ns is None:
            return False
        patience_ns = max(self._end_ns - self._start_ns, SHORTEST_PATIENCE_NS)
        return now_ns >= self._end_ns + patience_ns

    def _next_due_ns(self) -> int | None:
        rate = self._pace.rate_per_s
        if rate is None:
            return None
        if self._pace.poisson:
            self._due_s += self._random.expovariate(rate)
        else:
            self._due_s = self._position / rate
        return self._start_ns + round(self._due_s * NS_PER_S)
