from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest

from benchfleet_controller.outliers import Conditions, Outlier, Reason, Request, conditions, outliers

TIMES = (1.00, 1.01, 0.99, 1.02, 0.98, 1.00, 1.01, 0.97, 1.03, 1.00)


def _request(number: int, e2e_s: float | None, prompt_id: str = "p", case_id: str = "c") -> Request:
    return Request(
        case_id=case_id,
        round_id="r",
        request_id=f"{case_id}-{prompt_id}-{number}",
        prompt_id=prompt_id,
        start_s=float(number),
        end_s=number + 0.9,
        ttft_s=None,
        tpot_s=None,
        e2e_s=e2e_s,
    )


def _case(times: Sequence[float | None], prompt_id: str = "p", case_id: str = "c") -> list[Request]:
    return [_request(number, time, prompt_id, case_id) for number, time in enumerate(times)]


def _only(found: tuple[Outlier, ...]) -> Outlier:
    assert len(found) == 1
    return found[0]


def test_the_slow_request_is_marked_with_how_slow_it_was() -> None:
    found = _only(outliers(_case([*TIMES, 2.5])))
    assert (found.request_id, found.case_id, found.metric) == ("c-p-10", "c", "e2e_s")
    assert (found.value, found.typical, found.times) == pytest.approx((2.5, 1.0, 2.5))
    assert found.score == pytest.approx(0.6745 * np.log(2.5) / np.log(1.01), rel=0.05)
    assert (found.reason, found.evidence) == (Reason.UNEXPLAINED, "")


def test_fast_requests_and_the_ordinary_right_tail_are_no_outliers() -> None:
    assert not outliers(_case([*TIMES, 0.2]))
    skewed = np.random.default_rng(0).lognormal(0, 0.7, 200)
    deviation = np.median(np.abs(skewed - np.median(skewed)))
    assert (0.6745 * (skewed - np.median(skewed)) / deviation).max() > 3.5  # as plain values would have it
    assert not outliers(_case(skewed.tolist()))


def test_differences_below_one_per_cent_or_the_instruments_error_are_nothing() -> None:
    same = [1.0] * 10
    assert not outliers(_case([*same, 1.04]))
    assert outliers(_case([*same, 1.06]))
    assert not outliers(_case([*same, 1.06]), error_s={"e2e_s": 0.05})


def test_fewer_than_eight_requests_have_no_verdict_and_unmeasured_ones_do_not_count() -> None:
    assert not outliers(_case([1.0] * 6 + [9.0]))
    assert not outliers(_case([1.0] * 6 + [None, 9.0]))
    assert outliers(_case([1.0] * 7 + [9.0]))
    seven = _case([1.0] * 4, "p") + _case([1.0, 1.0, 9.0], "q")
    assert not outliers([*seven, _request(0, 1.0, "once")])
    assert outliers([*seven, _request(4, 1.0, "p")])


def test_a_long_prompt_is_no_outlier_among_short_ones() -> None:
    assert not outliers(_case([*TIMES], "short") + _case([30 * time for time in TIMES], "long"))
    assert not outliers(_case(TIMES[:4], "short") + _case([30 * time for time in TIMES[:4]], "long"))
    assert not outliers([*_case(TIMES), _request(0, 30.0, "once")])


def test_prompts_with_few_requests_are_judged_together() -> None:
    few = [_case([factor * time for time in TIMES[:4]], f"p{factor}") for factor in (1, 5, 30)]
    few[1][2] = replace(few[1][2], e2e_s=8.0)
    assert _only(outliers(chain(*few))).request_id == "c-p5-2"


@pytest.mark.parametrize("sizes", [[8], [20], [3] * 3, [3] * 10, [5] * 2, [2] * 4])
def test_ordinary_requests_are_seldom_marked(sizes: list[int]) -> None:
    generator = np.random.default_rng(1)
    marked = 0
    for _ in range(300):
        case = [_case(generator.lognormal(0, 0.2, size).tolist(), f"p{p}") for p, size in enumerate(sizes)]
        marked += len(outliers(chain(*case)))
    assert marked / (300 * sum(sizes)) < 0.02


def test_cases_are_judged_apart() -> None:
    found = outliers(_case([*TIMES, 3.0]) + _case([3 * time for time in TIMES], case_id="d"))
    assert _only(found).case_id == "c"


def _stalling(gap_s: float, **times: float) -> Request:
    return replace(
        _request(10, times.get("e2e_s", 1.0)),
        ttft_s=times.get("ttft_s"),
        tpot_s=times.get("tpot_s"),
        largest_gap_s=gap_s,
        median_gap_s=0.01,
        largest_gap_at=57,
    )


def test_a_gap_that_explains_half_of_the_excess_is_a_stall() -> None:
    whole, gap = outliers([*_case(TIMES), _stalling(0.81, e2e_s=2.0)])
    assert (whole.metric, whole.reason) == ("e2e_s", Reason.STALL)
    assert whole.evidence == "one gap of 810 ms before chunk 57 is 80% of the excess, the median gap 10 ms"
    assert (gap.metric, gap.value, gap.typical, gap.score) == ("itl_s", 0.81, 0.01, None)
    assert gap.reason is Reason.UNEXPLAINED
    whole, _ = outliers([*_case(TIMES), _stalling(0.3, e2e_s=2.0)])
    assert whole.reason is Reason.UNEXPLAINED


def test_a_gap_is_set_against_the_excess_of_all_tokens() -> None:
    # 100 tokens at 10 ms would take 1 s; they took 2 s, of which one gap took 0.9 s.
    usual = [replace(request, tpot_s=0.01) for request in _case(TIMES)]
    slow = _stalling(0.91, e2e_s=2.1, ttft_s=0.1, tpot_s=0.02)
    by_metric = {found.metric: found for found in outliers([*usual, slow])}
    assert by_metric["tpot_s"].reason is Reason.STALL
    assert "is 90% of the excess" in by_metric["tpot_s"].evidence


def test_first_tokens_are_not_late_for_a_gap_after_them() -> None:
    usual = [replace(request, ttft_s=0.1) for request in _case(TIMES)]
    found = {one.metric: one for one in outliers([*usual, _stalling(0.9, ttft_s=0.4)])}
    assert found["ttft_s"].reason is Reason.UNEXPLAINED


@pytest.mark.parametrize(
    ("gap_s", "median_s", "p99_s", "stalled"),
    [(0.2, 0.01, 0.1, True), (0.2, 0.03, 0.1, False), (0.04, 0.001, 0.01, False), (0.2, 0.01, 0.3, False)],
)
def test_a_stall_is_far_beyond_the_requests_own_gaps_and_rare_in_the_case(
    gap_s: float, median_s: float, p99_s: float, stalled: bool
) -> None:
    request = replace(_stalling(gap_s), median_gap_s=median_s)
    found = outliers([request], gap_p99_s={"c": p99_s})
    assert [one.metric for one in found] == (["itl_s"] if stalled else [])


BUSY = "host CPU outside runtime and agent 63% of the machine during the request, 4% in the median request"
QUIET = Conditions(0.04, 0.0, 3.0, 8 * 2**30, (), 3.0e9)


@pytest.mark.parametrize(
    ("here", "reason", "evidence"),
    [
        (QUIET, Reason.UNEXPLAINED, ""),
        (Conditions(), Reason.UNEXPLAINED, ""),
        (
            replace(QUIET, other_cpu_ratio=0.63),
            Reason.BUSY_HOST,
            BUSY,
        ),
        (replace(QUIET, other_cpu_ratio=0.10), Reason.UNEXPLAINED, ""),
        (
            replace(QUIET, swap_growth_bytes=300 * 2.0**20, available_bytes=90 * 2.0**20, other_cpu_ratio=0.63),
            Reason.PAGING,
            "swap in use grew by 300 MiB during the request, 90 MiB were available; " + BUSY,
        ),
        (
            replace(QUIET, major_faults=4000.0, available_bytes=None),
            Reason.PAGING,
            "4000 page faults of the runtime read from disk, 3 in the median request",
        ),
        (
            replace(QUIET, throttle_reasons=("sw_thermal_slowdown",), swap_growth_bytes=0.0),
            Reason.THROTTLED,
            "the driver reported throttling: sw_thermal_slowdown",
        ),
        (
            replace(QUIET, clock_hz=1.2e9),
            Reason.THROTTLED,
            "clock 1200 MHz during the request, 3000 MHz in the median one",
        ),
        (replace(QUIET, clock_hz=2.8e9), Reason.UNEXPLAINED, ""),
    ],
)
def test_the_reason_is_what_differed_from_the_median_request(here: Conditions, reason: Reason, evidence: str) -> None:
    case = _case([*TIMES, 2.5])
    told = {request.request_id: QUIET for request in case[:-1]} | {case[-1].request_id: here}
    found = _only(outliers(case, told))
    assert (found.reason, found.evidence) == (reason, evidence)


def test_what_all_requests_suffered_explains_none_of_them() -> None:
    case = _case([*TIMES, 2.5])
    hot = replace(QUIET, throttle_reasons=("power_cap",), other_cpu_ratio=0.6, swap_growth_bytes=2.0**30)
    assert _only(outliers(case, {request.request_id: hot for request in case})).reason is Reason.UNEXPLAINED


def test_a_tenth_more_on_a_host_that_is_always_busy_explains_nothing() -> None:
    case = _case([*TIMES, 2.5])
    busy = replace(QUIET, other_cpu_ratio=0.5)
    told = {request.request_id: busy for request in case} | {case[-1].request_id: replace(busy, other_cpu_ratio=0.65)}
    assert _only(outliers(case, told)).reason is Reason.UNEXPLAINED


@pytest.mark.parametrize(
    ("after_load", "evidence"), [(True, "first request after the load"), (False, "first request of its round")]
)
def test_a_first_request_is_said_when_nothing_better_is_known(after_load: bool, evidence: str) -> None:
    case = [replace(_request(0, 2.5), first_in_round=True, first_after_load=after_load), *_case(TIMES, "p")[1:]]
    found = _only(outliers(case))
    assert (found.reason, found.evidence) == (Reason.FIRST_REQUEST, evidence)
    told = {request.request_id: QUIET for request in case} | {case[0].request_id: replace(QUIET, clock_hz=1e9)}
    found = _only(outliers(case, told))
    assert found.reason is Reason.THROTTLED
    assert found.evidence.endswith(evidence)


def test_conditions_are_what_counters_grew_by_between_two_moments() -> None:
    nan = float("nan")
    second = 1e9 * np.arange(5)
    samples = {
        "sample_s": np.arange(5.0),
        "host_cpu_total_ns": 4 * second,
        "host_cpu_busy_ns": 3 * second,
        "runtime_cpu_ns": np.where(np.arange(5) % 2, nan, second),  # read every other time
        "load_cpu_ns": 0.5 * second,
        "host_swap_used_bytes": np.array([0.0, 0.0, 0.0, 8.0, 8.0]),
        "host_available_bytes": np.array([9.0, 9.0, 5.0, 7.0, 9.0]),
    }
    expected = Conditions(other_cpu_ratio=(3 - 1 - 0.5) / 4, swap_growth_bytes=4.0, available_bytes=5.0)
    assert conditions(samples, 1.5, 2.5) == expected
    assert conditions(samples, 1.5, 4.5) == Conditions()
    assert conditions({**samples, "runtime_cpu_ns": np.full(5, nan)}, 1.5, 2.5).other_cpu_ratio is None
    restarted = {**samples, "runtime_cpu_ns": second[::-1]}
    assert conditions(restarted, 1.5, 2.5).other_cpu_ratio is None


def test_faults_clocks_and_the_drivers_reasons_are_read_around_the_request() -> None:
    nan = float("nan")
    samples = {
        "sample_s": np.array([0.0, 1.0, 1.5, 2.0, 3.0]),
        "runtime_major_faults": np.array([0.0, 100.0, nan, 300.0, 300.0]),
        "host_cpu_clock_hz": np.array([4e9, 2e9, nan, 2e9, 4e9]),
        # The reading before the request still holds when it begins; the one after says nothing of it.
        "device_throttle_reasons": np.array([1.0, nan, 2.0, nan, 4.0]),
    }
    found = conditions(samples, 1.0, 2.0)
    assert (found.major_faults, found.clock_hz, found.throttle_reasons) == (200.0, 2e9, ("power", "thermal"))
    assert conditions({"sample_s": samples["sample_s"]}, 1.0, 2.0).throttle_reasons is None
