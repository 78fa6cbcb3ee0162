"""How far chance moves a ratio: against Welch's test, and against repetition."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchfleet_controller.ratio_error import RatioError, ratio_error

ONES = np.ones(5)
HERE, THERE = np.array([1.0, 1.1, 0.9, 1.05, 0.95]), np.array([2.0, 2.2, 1.9, 2.0, 1.9])


def made() -> RatioError:
    found = ratio_error((HERE, ONES), (THERE, ONES))
    assert found is not None
    return found


def test_the_error_is_that_of_relative_deviations_and_the_degrees_are_welchs() -> None:
    found = made()
    parts = [side.var(ddof=1) / 5 / side.mean() ** 2 for side in (HERE, THERE)]
    assert found.error == pytest.approx(math.sqrt(sum(parts)))
    assert found.degrees == pytest.approx(sum(parts) ** 2 / sum(part**2 / 4 for part in parts))


def test_intervals_are_wider_the_more_they_must_hold_and_surround_the_ratio() -> None:
    one, joint = made().interval(0.5, 0.05), made().interval(0.5, 0.05 / 20)
    assert joint.low < one.low < 0.5 < one.high < joint.high
    assert one.low * one.high == pytest.approx(0.25)  # symmetric as a logarithm


def test_a_detectable_difference_is_found_in_four_of_five_repetitions() -> None:
    generator = np.random.default_rng(3)
    true = ratio_error((np.array([0.98, 1.02] * 5), np.ones(10)), (np.array([0.98, 1.02] * 5), np.ones(10)))
    assert true is not None
    size, spread = true.detectable(0.05), math.sqrt(true.here * 10)
    rounds = 1 + spread * generator.standard_normal((400, 2, 10))
    rounds[:, 0] *= 1 + size
    found = 0
    for here, there in rounds:
        error = ratio_error((here, np.ones(10)), (there, np.ones(10)))
        assert error is not None
        found += error.interval(here.mean() / there.mean(), 0.05).low > 1
    assert found / len(rounds) == pytest.approx(0.8, abs=0.05)


def test_more_rounds_bring_the_interval_below_a_distance() -> None:
    found = made()
    more = found.rounds_until(0.02, 0.05, 1000)
    assert more is not None
    assert more > found.rounds_until(0.04, 0.05, 1000) > 0  # type: ignore[operator]
    assert found.rounds_until(1e-9, 0.05, 1000) is None


def test_equal_rounds_have_no_error_and_too_few_none_at_all() -> None:
    equal = ratio_error((np.full(3, 0.1), np.ones(3)), (np.full(3, 0.3), np.array([0.1, 0.2, 0.7])))
    assert equal is not None
    assert (equal.error, equal.detectable(0.05), equal.interval(2.0, 0.01).high) == (0.0, 0.0, 2.0)
    assert ratio_error((np.array([1.0]), np.ones(1)), (THERE, ONES)) is None
    assert ratio_error((HERE, ONES), (np.array([1.0, math.nan]), np.ones(2))) is None
    assert ratio_error((HERE - 5, ONES), (THERE, ONES)) is None
