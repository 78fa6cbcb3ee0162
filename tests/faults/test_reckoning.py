"""The judge must be able to condemn: every defect it looks for is shown to it once."""

from __future__ import annotations

import dataclasses
import json

import pytest

from faults.reckoning import Answer, Job, Named, Row, Tally, confine, read_record, reckon

ENDED = Job("finished", None, 9, last_sequence=9)


def answer(number: int, *, connection: int = 1, done: bool = True) -> Answer:
    """Answer `number` is read at number × 10 and left at number × 10 + 5."""
    moment = 10 * number
    return Answer(number, connection, f"sha{number}", 4, 7, moment, moment + 5 if done else None)


def row(number: int) -> Row:
    return Row(f"id{number}", "ok", None, f"sha{number}", 4, 7)


def judge(
    answers: list[Answer],
    rows: list[Row],
    *,
    jobs: tuple[Job, ...] = (ENDED,),
    kills: tuple[int, ...] = (),
    concurrency: int = 1,
    damage: bool = False,
) -> Tally:
    return reckon(answers, rows, jobs, kills, concurrency, damage=damage)


def numbers(tally: Tally) -> tuple[int, int, int, int, int, int]:
    return tally.expected, tally.stored, tally.lost, tally.twice, tally.wrong, tally.in_flight


def test_what_is_stored_once_with_its_numbers_is_kept() -> None:
    tally = judge([answer(1), answer(2)], [row(1), row(2)])

    assert numbers(tally) == (2, 2, 0, 0, 0, 0)
    assert tally.kept


def test_a_missing_answer_is_lost_when_nobody_died() -> None:
    tally = judge([answer(1), answer(2)], [row(1)])

    assert numbers(tally) == (2, 1, 1, 0, 0, 0)
    assert not tally.kept


def test_the_last_answer_of_a_connection_before_a_kill_was_in_flight() -> None:
    tally = judge([answer(1), answer(2)], [row(1)], kills=(26,))

    assert numbers(tally) == (1, 1, 0, 0, 0, 1)


def test_an_earlier_answer_of_the_connection_is_lost_all_the_same() -> None:
    tally = judge([answer(1), answer(2), answer(3)], [row(1), row(3)], kills=(36,))

    assert numbers(tally) == (3, 2, 1, 0, 0, 0)


def test_no_more_are_in_flight_than_there_are_workers() -> None:
    answers = [answer(1, connection=1), answer(2, connection=2), answer(3, connection=3)]

    tally = judge(answers, [], kills=(36,), concurrency=2)

    assert (tally.in_flight, tally.lost) == (2, 1)


def test_an_answer_under_way_at_the_kill_is_nobodys_and_the_one_before_it_was_in_flight() -> None:
    tally = judge([answer(1), answer(2), answer(3)], [row(1)], kills=(32,))

    assert numbers(tally) == (1, 1, 0, 0, 0, 1)


def test_an_answer_for_an_agent_that_is_already_dead_is_nobodys() -> None:
    tally = judge([answer(1), answer(2)], [row(1)], kills=(16,))

    assert numbers(tally) == (1, 1, 0, 0, 0, 0)


def test_the_first_answer_after_a_restart_counts_again() -> None:
    tally = judge([answer(1), answer(2, connection=2)], [row(1)], kills=(16,))

    assert tally.lost == 1


def test_an_unfinished_answer_is_not_expected() -> None:
    assert numbers(judge([answer(1), answer(2, done=False)], [row(1)])) == (1, 1, 0, 0, 0, 0)


@pytest.mark.parametrize("double", [row(1), dataclasses.replace(row(1), request_id="another")])
def test_a_row_stored_twice_is_found_by_its_id_or_its_answer(double: Row) -> None:
    assert judge([answer(1)], [row(1), double]).twice > 0


@pytest.mark.parametrize(
    "wrong",
    [
        dataclasses.replace(row(1), tokens=5),
        dataclasses.replace(row(1), prompt_tokens=None),
        dataclasses.replace(row(1), sha256="never given"),
        Row("id1", "failed", None, None, None, None),
    ],
)
def test_a_row_with_other_numbers_or_no_reason_is_wrong(wrong: Row) -> None:
    assert judge([answer(1)], [wrong]).wrong == 1


@pytest.mark.parametrize(
    "job", [Job("running", None, 9), Job("failed", None, 9), Job("finished", None, 8, last_sequence=9)]
)
def test_a_job_without_a_definite_end_is_wrong(job: Job) -> None:
    assert judge([answer(1)], [row(1)], jobs=(job,)).wrong == 1


def test_answers_without_a_job_are_wrong_and_nothing_at_all_is_not() -> None:
    assert judge([answer(1)], [row(1)], jobs=()).wrong == 1
    assert judge([], [], jobs=()).kept


def test_what_a_damaged_file_held_is_destroyed_and_not_expected() -> None:
    tally = judge([answer(1), answer(2)], [row(1)], damage=True)

    assert numbers(tally) == (1, 1, 0, 0, 0, 0)
    assert tally.destroyed == 1


def test_the_record_is_read_by_request() -> None:
    facts = {"connection": 3, "sha256": "x", "tokens": 2, "prompt_tokens": 9}
    lines = [
        {"request": 1, "received_ns": 10, **facts},
        {"request": 2, "received_ns": 11, **facts},
        {"request": 2, "answered_ns": 20},
    ]

    found = read_record("".join(json.dumps(line) + "\n" for line in lines), after=1)

    assert found == [Answer(2, 3, "x", 2, 9, 11, 20)]


@pytest.mark.parametrize(
    ("named", "seen", "expected"),
    [
        (("3, 7-9",), {"sha2": 8, "sha3": 3}, (2, 0)),
        (("3, 7-9",), {"sha2": 8, "sha3": 4}, (1, 1)),
        (("after 40",), {"sha2": 41, "sha3": 40}, (1, 1)),
        (("",), {}, (0, 2)),
        (("5",), {}, (1, 1)),
        (("5", "6"), {}, (2, 0)),
        (("everything",), {"sha2": 1}, (2, 0)),
    ],
)
def test_what_damage_destroyed_is_lost_unless_the_record_names_it(
    named: tuple[str, ...], seen: dict[str, int], expected: tuple[int, int]
) -> None:
    tally = judge([answer(1), answer(2), answer(3)], [row(1)], damage=True)
    assert (tally.destroyed, tally.lost, tally.problems) == (2, 0, [])

    confine(tally, Named(*named), seen)

    assert (tally.destroyed, tally.lost) == expected
    assert (tally.expected, len(tally.problems)) == (1 + tally.lost, tally.lost)
