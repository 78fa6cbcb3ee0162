from __future__ import annotations

import numpy as np
import pytest

from benchfleet_controller.capacity import Level, Limits, goodput, knee
from benchfleet_controller.stats import share_interval


def _sweep(*levels: tuple[float, float, float]) -> list[Level]:
    return [Level(*level) for level in levels]


def test_the_knee_is_where_throughput_over_latency_is_largest() -> None:
    found = knee(_sweep((8, 10.2, 0.8), (1, 2, 0.5), (4, 10, 0.6), (2, 6, 0.5), (16, 10.3, 1.6)))
    assert (found.load, found.power, found.saturation_load) == (4, 10 / 0.6, 4)
    assert found.reached
    assert found.why == ""


def test_knee_and_saturation_may_lie_apart() -> None:
    found = knee(_sweep((1, 4, 0.5), (2, 8, 0.5), (4, 9, 1.0), (8, 10, 2.0), (16, 10, 4.0)))
    assert (found.load, found.saturation_load) == (2, 8)


def test_a_queue_with_one_server_has_its_knee_at_half_its_capacity() -> None:
    # M/M/1 with service rate 10: latency 1/(10 - load), power load·(10 - load).
    found = knee([Level(load, load, 1 / (10 - load)) for load in np.arange(0.5, 10, 0.5)])
    assert found.load == 5


def test_a_sweep_that_ends_before_the_knee_says_to_go_on() -> None:
    found = knee(_sweep((1, 2, 0.5), (2, 4, 0.5), (4, 8, 0.5)))
    assert (found.load, found.reached, found.saturation_load) == (4, False, None)
    assert found.why == "the last level, 4, is still the best one: try higher ones"
    found = knee(_sweep((1, 2, 0.5), (2, 4, 0.5), (4, 5, 0.9)))
    assert (found.load, found.reached, found.saturation_load) == (2, True, None)
    assert "still grows" in found.why


def test_a_sweep_that_begins_beyond_the_knee_says_so() -> None:
    found = knee(_sweep((1, 2, 0.5), (2, 2, 1.0), (4, 2, 2.0)))
    assert (found.load, found.reached) == (1, True)
    assert "lower ones" in found.why


def test_unmeasured_levels_do_not_count_towards_the_three_that_are_needed() -> None:
    found = knee(_sweep((1, 2, 0.5), (2, 4, 0.5), (4, 0, float("nan")), (2, 4, 0.6)))
    assert (found.load, found.reached) == (None, False)
    assert found.why == "at least 3 measured levels of load are needed"


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("ttft=0.5,tpot=0.05,e2e=10", Limits(0.5, 0.05, 10.0)),
        (" ttft = 500ms , e2e=10s", Limits(ttft_s=0.5, e2e_s=10.0)),
        ("tpot=.05", Limits(tpot_s=0.05)),
    ],
)
def test_limits_are_seconds_unless_they_say_otherwise(text: str, limits: Limits) -> None:
    assert Limits.parse(text) == limits


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("itl=1", "'itl=1' is no limit: write NAME=SECONDS, with a name of ttft, tpot, e2e"),
        ("ttft", "'ttft' is no limit"),
        ("", "'' is no limit"),
        ("ttft=1,", "'' is no limit"),
        ("ttft=1,ttft=2", "ttft is given twice"),
        ("ttft=", "no positive time, such as 0.5, 0.5s or 500ms"),
        ("ttft=0", "no positive time"),
        ("ttft=-1", "no positive time"),
        ("ttft=nan", "no positive time"),
        ("ttft=5min", "no positive time"),
    ],
)
def test_a_wrong_limit_is_explained(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        Limits.parse(text)


def test_only_ok_requests_within_every_limit_are_good() -> None:
    found = goodput(
        [True, True, True, False, True],
        {"ttft_s": [0.1, 0.9, 0.5, 0.1, None], "e2e_s": [1, 1, 1, 1, 1]},
        Limits(ttft_s=0.5, e2e_s=2),
        wall_s=4,
    )
    assert (found.requests, found.good, found.unmeasured) == (5, 2, 1)
    assert (found.good_ratio, found.goodput_per_s) == (0.4, 0.5)
    assert found.interval == share_interval(2, 5)


def test_a_failed_request_is_not_unmeasured() -> None:
    assert goodput([False], {"ttft_s": [None]}, Limits(ttft_s=1)).unmeasured == 0


def test_goodput_without_wall_time_or_requests_is_unmeasured() -> None:
    assert goodput([True], {}, Limits()).goodput_per_s is None
    nothing = goodput([], {"ttft_s": []}, Limits(ttft_s=1), wall_s=1)
    assert (nothing.good_ratio, nothing.interval, nothing.goodput_per_s) == (None, None, 0)


def test_a_limited_time_must_be_there_for_every_request() -> None:
    with pytest.raises(ValueError, match="ttft_s is limited but not among the times"):
        goodput([True], {}, Limits(ttft_s=1))
    with pytest.raises(ValueError, match="shape"):
        goodput([True, True], {"ttft_s": [1.0]}, Limits(ttft_s=1))
