from __future__ import annotations

import numpy as np
import pytest
import scipy.stats  # type: ignore[import-untyped, unused-ignore]

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


@pytest.mark.parametrize(("rounds", "fewest"), [(3, 0.85), (5, 0.90), (20, 0.91)])
def test_ratio_interval_covers_the_truth_about_as_often_as_it_says(rounds: int, fewest: float) -> None:
    generator = np.random.default_rng(5)
    ones = np.ones(rounds)
    covered = 0
    for trial in range(300):
        top, bottom = generator.normal(1.2, 0.1, rounds), generator.normal(1.0, 0.1, rounds)
        interval = stats.ratio_interval((top, ones), (bottom, ones), seed=trial)
        assert interval is not None
        covered += interval.low <= 1.2 <= interval.high
    assert fewest <= covered / 300 <= 0.99


def test_interval_is_deterministic_and_needs_two_rounds() -> None:
    two = (np.array([1.0, 2.0]), np.array([1.0, 1.0]))
    assert stats.ratio_interval(two, two) == stats.ratio_interval(two, two)
    assert stats.ratio_interval((np.array([1.0, np.nan]), np.ones(2)), two) is None
    many = (np.random.default_rng(0).normal(10, 1, 200_000), np.ones(200_000))
    interval = stats.ratio_interval(many, many)
    assert interval is not None
    assert interval.low == pytest.approx(1, abs=0.01)


def _rounds(generator: np.random.Generator, rounds: int = 10, requests: int = 20) -> list[stats.Floats]:
    """Requests about 0 that share half of their variance with their round."""
    return list(generator.normal(0, 1, (rounds, 1)) + generator.normal(0, 1, (rounds, requests)))


def test_mean_interval_covers_the_truth_about_as_often_as_it_says_because_rounds_are_its_units() -> None:
    generator = np.random.default_rng(3)
    by_round = by_request = 0
    for trial in range(200):
        rounds = _rounds(generator)
        means = np.array([values.mean() for values in rounds])
        blocks = stats.mean_interval(means, np.full(10, 20.0), seed=trial)
        pooled = stats.mean_interval(np.concatenate(rounds), np.ones(200), seed=trial, resamples=200)
        assert blocks is not None
        assert pooled is not None
        by_round += blocks.low <= 0 <= blocks.high
        by_request += pooled.low <= 0 <= pooled.high
    assert 0.90 <= by_round / 200 <= 0.99
    assert by_request / 200 < 0.7


def test_few_rounds_widen_the_mean_interval() -> None:
    generator = np.random.default_rng(4)
    covered = 0
    for trial in range(200):
        interval = stats.mean_interval(generator.normal(7, 1, 5), np.ones(5), seed=trial)
        assert interval is not None
        covered += interval.low <= 7 <= interval.high
    assert covered / 200 >= 0.88  # plain percentile intervals: 0.82


def test_quantile_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(6)
    covered = 0
    for trial in range(200):
        interval = stats.quantile_interval(_rounds(generator), 0.5, seed=trial)
        assert interval is not None
        covered += interval.low <= 0 <= interval.high
    assert 0.90 <= covered / 200 <= 0.99


def test_mean_interval_agrees_with_scipy() -> None:
    generator = np.random.default_rng(2)
    values, weights = generator.lognormal(size=12), generator.uniform(1, 5, 12)
    tail = _tail(12)
    theirs = scipy.stats.bootstrap(
        (values, weights),
        lambda v, w, axis: (v * w).sum(axis) / w.sum(axis),
        paired=True,
        n_resamples=50_000,
        confidence_level=1 - 2 * tail,
        method="percentile",
        rng=1,
    ).confidence_interval
    ours = stats.mean_interval(values, weights, resamples=50_000)
    assert ours is not None
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=0.03)


def test_quantile_interval_agrees_with_scipy() -> None:
    generator = np.random.default_rng(2)
    rounds = [generator.lognormal(generator.normal(0, 0.1), 0.2, size) for size in range(20, 80, 5)]
    theirs = scipy.stats.bootstrap(
        (np.arange(12),),
        lambda chosen: np.quantile(np.concatenate([rounds[i] for i in chosen]), 0.9),
        vectorized=False,
        n_resamples=4000,
        confidence_level=1 - 2 * _tail(12),
        method="percentile",
        rng=1,
    ).confidence_interval
    ours = stats.quantile_interval(rounds, 0.9, resamples=20_000)
    assert ours is not None
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=0.02)


def _tail(n: int) -> float:
    return float(scipy.stats.norm.cdf(-np.sqrt(n / (n - 1)) * scipy.stats.t.ppf(0.975, n - 1)))


@pytest.mark.parametrize("q", [0, 0.37, 0.5, 0.95, 1])
@pytest.mark.parametrize("sizes", [(1, 1), (5, 1, 2), (40, 33, 61, 7, 22, 50)])
def test_every_resampled_quantile_is_the_quantile_of_the_requests_of_its_rounds(
    sizes: tuple[int, ...], q: float
) -> None:
    generator = np.random.default_rng(8)
    rounds = [generator.normal(size=size).round(1) for size in sizes]  # with ties
    n = len(sizes)
    draws = np.random.default_rng(9).multinomial(n, np.full(n, 1 / n), size=50)
    expected = [
        np.quantile(np.concatenate([np.tile(values, count) for values, count in zip(rounds, draw, strict=True)]), q)
        for draw in draws
    ]
    interval = stats.quantile_interval(rounds, q, resamples=50, seed=9)
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(expected, [_tail(n), 1 - _tail(n)])))


def test_quantile_interval_is_deterministic_within_the_observed_range_and_needs_two_rounds() -> None:
    rounds = [np.array([1.0, 2.0, np.nan]), np.array([3.0]), np.array([np.nan]), np.empty(0)]
    interval = stats.quantile_interval(rounds, 0.95)
    assert interval == stats.quantile_interval(rounds, 0.95)
    assert interval is not None
    assert 1 <= interval.low < interval.high <= 3
    assert stats.quantile_interval(rounds[1:], 0.5) is None
    assert stats.quantile_interval([], 0.5) is None
    with pytest.raises(ValueError, match="0 to 1"):
        stats.quantile_interval(rounds, 95)


def test_many_rounds_of_many_requests_still_have_a_quantile_interval() -> None:
    values = np.random.default_rng(0).uniform(0, 1, 120_000)
    interval = stats.quantile_interval(np.array_split(values, 3000), 0.9)
    assert interval is not None
    assert interval.low < 0.9 < interval.high
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * np.sqrt(0.9 * 0.1 / 120_000), rel=0.2)


def test_mean_interval_follows_weights_and_needs_two_rounds() -> None:
    heavy = stats.mean_interval(np.array([1.0, 2.0, 9.0]), np.array([50.0, 50.0, 0.0]))
    assert heavy == stats.Interval(1.0, 2.0)
    assert stats.mean_interval(np.array([1.0, np.nan]), np.ones(2)) is None
    assert stats.mean_interval(np.full(4, 3.0), np.ones(4)) == stats.Interval(3.0, 3.0)


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (3, 10), (10, 10), (1, 1), (999, 1000)])
def test_share_interval_is_wilsons(successes: int, n: int) -> None:
    theirs = scipy.stats.binomtest(successes, n).proportion_ci(method="wilson")
    ours = stats.share_interval(successes, n)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_share_of_nothing_may_be_anything() -> None:
    assert stats.share_interval(0, 0) == stats.Interval(0.0, 1.0)
    with pytest.raises(ValueError, match="3 successes of 2"):
        stats.share_interval(3, 2)


def test_relative_half_width() -> None:
    assert stats.relative_half_width(stats.Interval(9.0, 11.0), 10.0) == pytest.approx(0.1)
    assert stats.relative_half_width(stats.Interval(-11.0, -9.0), -10.0) == pytest.approx(0.1)
    assert stats.relative_half_width(None, 1.0) is stats.relative_half_width(stats.Interval(0, 1), 0.0) is None


@pytest.mark.parametrize("sizes", [(3, 3), (5, 4), (8, 8), (30, 40)])
def test_rank_test_agrees_with_scipy(sizes: tuple[int, int]) -> None:
    generator = np.random.default_rng(sizes[0])
    for shift in (0.0, 0.5, 2.0):
        here, there = generator.normal(shift, 1, sizes[0]), generator.normal(0, 1, sizes[1])
        method = "exact" if sizes[0] < 30 else "asymptotic"
        expected = scipy.stats.mannwhitneyu(here, there, method=method).pvalue
        assert stats.rank_test(here, there) == pytest.approx(expected, rel=1e-6)


def test_rank_test_shares_the_ranks_of_ties() -> None:
    generator = np.random.default_rng(4)
    here, there = generator.integers(0, 3, 40).astype(float), generator.integers(1, 4, 40).astype(float)
    assert stats.rank_test(here, there) == pytest.approx(
        scipy.stats.mannwhitneyu(here, there, method="asymptotic").pvalue, rel=1e-6
    )
    assert stats.rank_test(np.ones(4), np.ones(4)) == 1.0
    assert stats.rank_test(np.empty(0), np.ones(4)) is None


def test_holm_corrects_in_place() -> None:
    assert stats.holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert stats.holm([]) == []
    assert stats.smallest_p(4, 4) == pytest.approx(2 / 70)


def test_students_t_is_that_of_scipy() -> None:
    from scipy.special import stdtrit

    for degrees in (*range(1, 60), 100, 101, 998, 1999):
        for p in (0.6, 0.9, 0.975, 0.9995):
            assert stats.t_quantile(p, degrees) == pytest.approx(float(stdtrit(degrees, p)), rel=1e-9), (p, degrees)
    for p, degrees in ((0.975, 0), (0.5, 3), (1.0, 3)):
        with pytest.raises(ValueError, match="no quantile"):
            stats.t_quantile(p, degrees)
