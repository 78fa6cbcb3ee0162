"""What is read faster than it can be parsed: held back with its stamps until the answer has ended. Opens nothing.

Parsing one token's chunk takes less time than the next token, so chunks are handed on as they arrive. Once a read was
large (a long line, or a pile of small ones that a busy machine kept us from reading) that is no longer so: what
arrives while it is parsed piles up in the kernel, which merges packets and keeps one stamp for all of them, so that
neither a kernel stamp nor a smaller read would tell their arrivals apart. Only prompt reading does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from benchfleet_agent.load.http_body import BrokenBody
from benchfleet_agent.load.wire import Exchange

LARGE_READ_BYTES = 8 << 10
"""About 30 tokens' chunks; parsing them takes 1 ms."""
MAXIMUM_HELD_BYTES = 4 << 20
"""Of one answer; beyond that the oldest parts are parsed as new ones arrive."""
_LAST_LINE = b"[DONE]"


def held_back(parts: Iterator[bytes], exchange: Exchange) -> Iterator[bytes]:
    """Hand parts on; from a large read on, only when the answer has ended, each with its own stamp in force.

    While parts are held back nobody sees whether they bear tokens, so every read counts as progress and moves the
    deadline on. What ended the parts (OSError, `BrokenBody`) is raised after the last of them.
    """
    held: deque[tuple[bytes, int, int]] = deque()
    size_bytes = 0
    holding = False
    failure: Exception | None = None
    try:
        for part in parts:
            holding = holding or exchange.read_bytes >= LARGE_READ_BYTES
            if not holding:
                yield part
                continue
            held.append((part, exchange.last_ns, exchange.last_read))
            size_bytes += len(part)
            newest = exchange.last_ns, exchange.last_read
            while held and (size_bytes > MAXIMUM_HELD_BYTES or _LAST_LINE in part):
                size_bytes -= len(held[0][0])
                yield _next(held, exchange)
            # Not from the stamps of older parts that were handed on meanwhile: the newest read is the progress.
            exchange.last_ns, exchange.last_read = newest
            exchange.move_on()
    except (OSError, BrokenBody) as error:
        failure = error
    end_ns = exchange.last_ns
    while held:
        yield _next(held, exchange)
    exchange.last_ns = end_ns
    if failure is not None:
        raise failure


def _next(held: deque[tuple[bytes, int, int]], exchange: Exchange) -> bytes:
    """The oldest part, its stamp put in force."""
    part, exchange.last_ns, exchange.last_read = held.popleft()
    return part
