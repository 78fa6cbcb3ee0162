from __future__ import annotations

import numpy as np
import pytest

from benchfleet_controller import stats


@pytest.mark.parametrize(
    ("values", "q", "expected"),
    [
        ([], 0.5, None),
        ([3.0], 0.95, 3.0),
        ([1, 2, 3, 4], 0.5, 2.5),
        ([1, 2, 3, 4, 5], 0.95, 4.8),
        ([float("nan"), 2], 0, 2),
    ],
)
def test_percentile(values: list[float], q: float, expected: float | None) -> None:
    assert stats.percentile(values, q) == (None if expected is None else pytest.approx(expected))


def test_percentile_lies_in_the_observed_range_and_agrees_with_numpy() -> None:
    values = np.random.default_rng(1).lognormal(size=101)
    for q in (0, 0.01, 0.5, 0.95, 0.999, 1):
        assert stats.percentile(values, q) == pytest.approx(np.quantile(values, q))
    with pytest.raises(ValueError, match="0 to 1"):
        stats.percentile([1], 95)


@pytest.mark.parametrize(
    ("n", "q", "supported"), [(19, 0.95, False), (20, 0.95, True), (2, 0.5, True), (1, 0.5, False)]
)
def test_support(n: int, q: float, supported: bool) -> None:
    assert stats.supports_percentile(n, q) is supported


def test_ratio_needs_both() -> None:
    assert stats.ratio(2.0, 4.0) == 0.5
    assert stats.ratio(None, 1.0) is stats.ratio(1.0, 0.0) is stats.ratio(float("nan"), 1.0) is None


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(5)
    ones = np.ones(20)
    covered = 0
    for trial in range(200):
        top, bottom = generator.normal(1.2, 0.1, 20), generator.normal(1.0, 0.1, 20)
        interval = stats.ratio_interval((top, ones), (bottom, ones), seed=trial)
        assert interval is not None
        covered += interval.low <= 1.2 <= interval.high
    assert 0.88 <= covered / 200 <= 0.99


def test_interval_is_deterministic_and_needs_two_rounds() -> None:
    two = (np.array([1.0, 2.0]), np.array([1.0, 1.0]))
    assert stats.ratio_interval(two, two) == stats.ratio_interval(two, two)
    assert stats.ratio_interval((np.array([1.0, np.nan]), np.ones(2)), two) is None
    many = (np.random.default_rng(0).normal(10, 1, 200_000), np.ones(200_000))
    interval = stats.ratio_interval(many, many)
    assert interval is not None
    assert interval.low == pytest.approx(1, abs=0.01)
