from __future__ import annotations

import os

import pytest
from benchmarks.overhead import QUIET_RATIO, Finding, Work, judged, others_ratio, slice_rates

BEFORE = Work(busy_s=100.0, total_s=1000.0, own_s=10.0)


@pytest.mark.skipif(os.name != "posix", reason="elsewhere the time of children is not counted")
def test_other_work_is_what_was_busy_but_for_the_benchmark_itself() -> None:
    assert others_ratio(BEFORE, Work(180.0, 1200.0, 70.0)) == pytest.approx(0.1)
    assert others_ratio(BEFORE, Work(150.0, 1200.0, 70.0)) == 0.0, "ticks may round the other way"
    assert others_ratio(BEFORE, BEFORE) is None


def test_figures_of_a_busy_machine_are_called_provisional_and_those_of_a_quiet_one_are_not() -> None:
    assert judged(QUIET_RATIO).endswith(
        "used 5.0% of the machine's processors meanwhile, little enough to quote the figures."
    )
    assert "93.0%" in judged(0.93)
    assert "provisional" in judged(0.93)
    assert "not known" in judged(None)


def test_what_has_no_target_is_neither_kept_nor_too_noisy() -> None:
    assert [Finding("w", "1", target, None).verdict for target in ("", "≤ 1")] == ["no target", "too noisy to say"]


def test_the_rate_of_a_slice_is_that_of_the_gaps_within_answers_that_lie_in_it() -> None:
    ms = 1_000_000
    first = [at * ms for at in range(0, 1000, 10)]  # 100 tokens/s up to 0.99 s
    second = [1500 * ms, *(at * ms for at in range(1600, 2400, 20))]  # the gap of 100 ms lies across an edge
    slices = [(0, 1000 * ms), (1000 * ms, 1400 * ms), (1550 * ms, 2400 * ms)]

    assert slice_rates([first, second, [5]], slices) == [pytest.approx(100), None, pytest.approx(50)]
