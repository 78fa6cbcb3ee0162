from __future__ import annotations

import itertools
import statistics

import pytest

from benchfleet_agent.load.feed import Feed, Pace
from benchfleet_agent.load.settings import RequestSpec

S = 1_000_000_000
REQUESTS = [RequestSpec(f"r{index}", f"p{index}", ({"role": "user", "content": "Hi"},)) for index in range(3)]


def _all(pace: Pace, now_ns: int = 0) -> list[RequestSpec]:
    feed = Feed(REQUESTS, pace, 0)
    return list(iter(lambda: feed.next(now_ns), None))


def test_a_closed_loop_sends_each_prompt_once_in_order_and_nothing_is_due() -> None:
    sent = _all(Pace())

    assert [(one.request_id, one.position, one.scheduled_ns, one.prefix) for one in sent] == [
        ("r0", 0, None, ""),
        ("r1", 1, None, ""),
        ("r2", 2, None, ""),
    ]


def test_a_duration_repeats_the_prompts_with_ids_of_their_own_until_time_is_up() -> None:
    feed = Feed(REQUESTS, Pace(duration_s=1), 0)
    sent = [feed.next(moment) for moment in (0, S // 2, S - 1, S - 1)]

    assert [one and one.prompt_id for one in sent] == ["p0", "p1", "p2", "p0"]
    assert len({one.request_id for one in sent if one}) == 4
    assert feed.next(S) is None


def test_a_constant_rate_spaces_due_moments_equally_from_the_start() -> None:
    assert [one.scheduled_ns for one in _all(Pace(rate_per_s=4))] == [0, S // 4, S // 2]


def test_an_open_loop_with_a_duration_ends_with_the_last_due_moment_before_it() -> None:
    assert [one.scheduled_ns for one in _all(Pace(rate_per_s=2, duration_s=2))] == [0, S // 2, S, 3 * S // 2]


def test_an_open_loop_that_lasts_twice_as_long_as_it_should_is_given_up() -> None:
    feed = Feed(REQUESTS, Pace(rate_per_s=100, duration_s=10), 0)

    assert feed.next(10 * S) is not None, "late, but a round may end late"
    assert feed.next(20 * S - 1) is not None
    assert not feed.given_up
    assert feed.next(20 * S) is None
    assert feed.given_up


def test_an_open_loop_that_sent_all_in_time_is_not_given_up() -> None:
    feed = Feed(REQUESTS, Pace(rate_per_s=1, duration_s=2), 0)

    assert [feed.next(moment) is None for moment in (0, S, 50 * S)] == [False, False, True]
    assert not feed.given_up


def test_poisson_gaps_are_exponential_and_the_same_for_a_seed() -> None:
    pace = Pace(rate_per_s=50, duration_s=100, poisson=True, seed="7")
    due = [one.scheduled_ns or 0 for one in _all(pace)]
    gaps = [(later - earlier) / S for earlier, later in itertools.pairwise(due)]

    assert due == [one.scheduled_ns for one in _all(pace)]
    assert due != [one.scheduled_ns for one in _all(Pace(rate_per_s=50, duration_s=100, poisson=True, seed="8"))]
    assert statistics.fmean(gaps) == pytest.approx(1 / 50, rel=0.05)
    assert statistics.stdev(gaps) == pytest.approx(1 / 50, rel=0.1)  # of an exponential: equal to its mean


def test_each_request_gets_words_of_its_own_and_the_same_seed_the_same_words() -> None:
    feed = Feed(REQUESTS, Pace(duration_s=1, prefix_seed="a"), 0)
    words = [one.prefix for _ in range(5) if (one := feed.next(0))]

    assert len(set(words)) == 5
    assert words[:3] == [one.prefix for one in _all(Pace(prefix_seed="a"))]
    assert words[:3] != [one.prefix for one in _all(Pace(prefix_seed="b"))]
