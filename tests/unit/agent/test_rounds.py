from __future__ import annotations

import math

import pytest

from benchfleet.failures import Reason
from benchfleet_agent.rounds import RoundResult, StopRule, half_width, rate_failure, student_t

# scipy.stats.t.ppf(0.975, degrees)
T = {1: 12.706205, 2: 4.302653, 3: 3.182446, 4: 2.776445, 5: 2.570582, 9: 2.262157, 29: 2.045230, 1000: 1.962339}


@pytest.mark.parametrize(("degrees", "value"), T.items())
def test_student_quantiles_are_near_the_published_ones(degrees: int, value: float) -> None:
    assert student_t(degrees) == pytest.approx(value, rel=0.004)


def test_half_widths_are_relative_to_the_mean() -> None:
    # mean 10, standard deviation 1, n = 3: 4.303 * 1 / sqrt(3) / 10
    assert half_width([9, 10, 11]) == pytest.approx(0.2484, rel=1e-3)
    assert half_width([5]) == math.inf
    assert half_width([5, 5]) == 0


def _rounds(*ttft_s: float, tokens_per_s: float | None = 50, duration_s: float = 1) -> list[RoundResult]:
    return [RoundResult(duration_s, ttft, tokens_per_s, ttft) for ttft in ttft_s]


def test_a_fixed_number_of_rounds_stops_there() -> None:
    rule = StopRule(2, 2)
    assert [rule.enough(_rounds(*[1] * n)) for n in range(4)] == [False, False, True, True]


def test_a_minimum_duration_goes_on_until_it_is_reached_but_not_past_the_most() -> None:
    rule = StopRule(1, 5, minimum_duration_s=3)
    assert [rule.enough(_rounds(*[1] * n)) for n in (1, 2, 3)] == [False, False, True]
    assert rule.enough(_rounds(*[1] * 5, duration_s=0.1))


def test_an_interval_goes_on_until_both_ttft_and_rate_are_known_well_enough() -> None:
    rule = StopRule(3, 100, interval_ratio=0.02)
    assert rule.enough(_rounds(1.0, 1.001, 0.999))
    assert not rule.enough(_rounds(1.0, 1.3, 0.7))
    noisy_rate = [RoundResult(1, 1.0, rate, 1.0) for rate in (40, 50, 60)]
    assert not rule.enough(noisy_rate)


def test_without_streaming_the_latency_decides() -> None:
    rule = StopRule(3, 100, interval_ratio=0.02)
    assert rule.enough([RoundResult(1, None, None, 2.0)] * 3)
    assert not rule.enough([RoundResult(1, None, None, latency) for latency in (1.0, 2.0, 3.0)])
    assert not rule.enough([RoundResult(1, None, None, None)] * 3)  # nothing was answered: nothing is known


def test_requests_that_go_out_late_refuse_the_numbers_and_say_by_how_much() -> None:
    assert rate_failure([0.001, 0.002], [1.0, 1.0], 5, 64) is None
    failure = rate_failure([0.5, 0.3], [1.0, 1.0], 5, 64)
    assert failure is not None
    assert failure.reason is Reason.RATE_NOT_KEPT
    assert "0.4 s late on average" in failure.message
    assert "5 requests/s were not kept with at most 64 in flight" in failure.message
    assert rate_failure([], [], 5, 64) is None
    given_up = rate_failure([0.001], [1.0], 5, 64, given_up=True)
    assert given_up is not None
    assert "some not at all" in given_up.message
    # Later than a tenth of a quick answer, but by next to nothing of the gap to the next request: the rate was kept.
    assert rate_failure([0.002], [0.008], 10, 64) is None
    assert rate_failure([0.002], [0.008], 500, 64) is not None
