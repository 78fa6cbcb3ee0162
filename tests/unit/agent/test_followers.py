from __future__ import annotations

import pytest

from benchfleet.failures import Reason, WorkFailed
from benchfleet_agent.followers import (
    KEPT_FOR_RUN,
    LONGEST_WAIT_S,
    MAXIMUM_STREAMS,
    MOST_OF_A_CALLER,
    RETURN_S,
    Caller,
    Followers,
)

OWNER = Caller("owner", may_run=True)


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def readers(count: int) -> list[Caller]:
    return [Caller(f"reader-{number}", may_run=False) for number in range(count)]


def test_one_name_takes_no_more_than_its_places() -> None:
    followers = Followers()
    taken = [followers.join(readers(1)[0], "job", 0) for _ in range(MOST_OF_A_CALLER)]

    with pytest.raises(WorkFailed, match="'reader-0' follows") as caught:
        followers.join(readers(1)[0], "job", 0)
    followers.leave(taken[0], complete=True)

    assert caught.value.failure.reason is Reason.HOST_BUSY
    assert followers.join(readers(1)[0], "job", 0)


def test_readers_together_leave_places_for_those_who_run() -> None:
    followers = Followers()
    for reader in readers(MAXIMUM_STREAMS - KEPT_FOR_RUN):
        followers.join(reader, "job", 0)

    with pytest.raises(WorkFailed):
        followers.join(Caller("one more", may_run=False), "job", 0)
    for number in range(KEPT_FOR_RUN):
        followers.join(Caller(f"owner-{number}", may_run=True), "job", 0)
    with pytest.raises(WorkFailed):
        followers.join(OWNER, "job", 0)


def test_a_job_given_back_is_forgotten_at_once_when_nobody_is_behind() -> None:
    followers = Followers()
    followers.join(OWNER, "job", 9)
    followers.join(OWNER, "another", 0)

    followers.give_back("job", 9)

    assert (followers.forgettable(), followers.forgettable(), followers.waiting) == (["job"], [], False)


def test_a_job_given_back_waits_for_whoever_is_behind() -> None:
    followers = Followers()
    slow = followers.join(readers(1)[0], "job", 4)
    followers.give_back("job", 9)
    before = followers.forgettable()

    slow.sequence = 9

    assert (before, followers.forgettable()) == ([], ["job"])


def test_who_was_cut_off_may_come_back_for_a_while() -> None:
    clock = Clock()
    followers = Followers(clock)
    followers.leave(followers.join(OWNER, "job", 4), complete=False)
    followers.give_back("job", 9)
    before = followers.forgettable()

    clock.now += RETURN_S

    assert (before, followers.forgettable()) == ([], ["job"])


def test_who_asked_for_a_job_is_waited_for_until_it_has_all() -> None:
    followers = Followers()
    followers.expect(OWNER, "job")
    followers.give_back("job", 9)
    before = followers.forgettable()

    followers.leave(followers.join(OWNER, "job", 4), complete=True)

    assert (before, followers.forgettable()) == ([], ["job"])


def test_nobody_keeps_a_job_that_was_given_back_for_ever() -> None:
    clock = Clock()
    followers = Followers(clock)
    followers.join(readers(1)[0], "job", 4)
    followers.give_back("job", 9)

    clock.now += LONGEST_WAIT_S - 1
    followers.give_back("job", 9)  # asking again starts no new wait
    before = followers.forgettable()
    clock.now += 1

    assert (before, followers.forgettable()) == ([], ["job"])
