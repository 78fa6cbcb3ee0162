"""Parts of a body that arrive faster than they can be parsed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchfleet_agent.child import json_line
from benchfleet_agent.load.held_back import LARGE_READ_BYTES, MAXIMUM_HELD_BYTES, held_back
from benchfleet_agent.load.wire import Exchange

Read = tuple[bytes, int]
"""A part and the size of the read it came with."""


class Wire:
    """Reads one part after the other; read number N is stamped N ms."""

    def __init__(self, *reads: Read, failure: Exception | None = None) -> None:
        self.exchange = Exchange()
        self.exchange.start_ns = 0
        self.exchange.silence_limit_ns = 50
        self.exchange.total_limit_ns = 3_000_010
        self.log: list[str] = []
        self._reads = reads
        self._failure = failure

    def parts(self) -> Iterator[bytes]:
        exchange = self.exchange
        for number, (part, size) in enumerate(self._reads, 1):
            exchange.reads = exchange.last_read = number
            exchange.last_ns, exchange.read_bytes = number * 1_000_000, size
            self.log.append(f"read {number}")
            yield part
        if self._failure:
            raise self._failure

    def handed_on(self) -> list[tuple[bytes, int, int]]:
        found = []
        for part in held_back(self.parts(), self.exchange):
            found.append((part, self.exchange.last_ns, self.exchange.last_read))
            self.log.append(f"parse {self.exchange.last_read}")
        return found


SMALL = [(bytes([number]), 300) for number in range(3)]
LARGE = (b"x" * LARGE_READ_BYTES, LARGE_READ_BYTES)


def watched(wire: Wire, deadlines: list[int]) -> Iterator[bytes]:
    """The parts of a wire; notes the deadline that is in force after each."""
    for part in wire.parts():
        yield part
        deadlines.append(wire.exchange.deadline_ns)


def test_small_reads_are_parsed_as_they_arrive() -> None:
    wire = Wire(*SMALL)

    wire.handed_on()

    assert wire.log == ["read 1", "parse 1", "read 2", "parse 2", "read 3", "parse 3"]


def test_after_a_large_read_everything_is_read_first_and_keeps_its_own_stamp() -> None:
    wire = Wire(SMALL[0], LARGE, SMALL[1], SMALL[2])

    found = wire.handed_on()

    assert wire.log == ["read 1", "parse 1", "read 2", "read 3", "read 4", "parse 2", "parse 3", "parse 4"]
    assert [(stamp_ns, read) for _, stamp_ns, read in found] == [(n * 1_000_000, n) for n in (1, 2, 3, 4)]
    assert wire.exchange.last_ns == 4_000_000


def test_the_last_line_is_parsed_at_once_because_the_body_may_not_end() -> None:
    wire = Wire(LARGE, (b"data: [DONE]\n\n", 20), SMALL[0])

    wire.handed_on()

    assert wire.log == ["read 1", "read 2", "parse 1", "parse 2", "read 3", "parse 3"]


def test_what_is_held_is_bounded() -> None:
    quarter = (b"x" * (MAXIMUM_HELD_BYTES // 4), LARGE_READ_BYTES)
    wire = Wire(*[quarter] * 6)

    wire.handed_on()

    assert wire.log[:7] == ["read 1", "read 2", "read 3", "read 4", "read 5", "parse 1", "read 6"]


def test_old_parts_that_make_room_do_not_set_the_deadline_back() -> None:
    wire = Wire(*[(b"x" * (MAXIMUM_HELD_BYTES // 4), LARGE_READ_BYTES)] * 6)
    wire.exchange.total_limit_ns = 1_000_000_000
    deadlines: list[int] = []

    for _ in held_back(watched(wire, deadlines), wire.exchange):
        wire.exchange.move_on()  # as whoever parses does for a token

    assert deadlines == [n * 1_000_000 + 50 for n in range(1, 7)]


def test_a_failure_comes_after_what_had_arrived() -> None:
    wire = Wire(LARGE, SMALL[0], failure=TimeoutError("the deadline passed"))

    with pytest.raises(TimeoutError):
        wire.handed_on()

    assert wire.log == ["read 1", "read 2", "parse 1", "parse 2"]


def test_while_nobody_parses_every_read_moves_the_deadline_on_up_to_the_last() -> None:
    wire = Wire(LARGE, SMALL[0], SMALL[1])
    deadlines: list[int] = []

    list(held_back(watched(wire, deadlines), wire.exchange))

    assert deadlines == [1_000_050, 2_000_050, 3_000_010]


def test_a_long_record_is_the_same_json_in_pieces() -> None:
    import json

    fields = {"event": "request", "token_ns": tuple(range(1234)), "text": 'a "é"', "none": None, "few": [1, 2]}

    assert json.loads(json_line(fields)) == {**fields, "token_ns": list(range(1234))}
    assert json_line(fields).endswith("}\n")
