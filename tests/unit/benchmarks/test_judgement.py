from __future__ import annotations

import pytest
from benchmarks.peers.answers import Answer, answer_from_stamps
from benchmarks.peers.errors import (
    Errors,
    Rate,
    Spread,
    errors_by_request,
    errors_of_aggregates,
    median_errors,
    percent,
    rate_of,
)
from benchmarks.peers.measurement import Figures, Results
from benchmarks.peers.process import cpu_between
from benchmarks.peers.report import report, table
from benchmarks.peers.shapes import BY_NAME
from benchmarks.peers.targets import OURS, RAW, judge
from benchmarks.peers.targets import PLAIN as PLAIN_CLIENT

MS = 1_000_000


def spread(value: float) -> Spread:
    return Spread(value, value, value)


def figures(ttft: float, itl: float | None = None, gaps: float | None = None, **changes: object) -> Figures:
    known: dict[str, object] = {
        "cpu_us_per_token": 50.0,
        "cpu_s": 1.0,
        "rss_bytes": 50_000_000,
        "processes": 1,
        "start_s": 1.0,
    }
    found = Errors(spread(ttft), None if itl is None else spread(itl), None if gaps is None else spread(gaps))
    return Figures(found, **{**known, **changes})  # type: ignore[arg-type]


def results(mine: Figures, **more: Figures) -> Results:
    plain = figures(3.0, 0.01, 0.5, cpu_us_per_token=200.0)
    rows = {OURS: mine, RAW: figures(0.2, 0.003, 0.1), PLAIN_CLIENT: plain, "AIPerf": figures(2.0, 0.02, 0.4), **more}
    rate = Rate(100.0, 100.0, "consistent")
    return Results(
        plain=rows, crowd={OURS: mine, PLAIN_CLIENT: plain}, rates={OURS: {"gap": rate}}, exit_codes={OURS: 1}
    )


def missed(found: Results) -> list[str]:
    return [verdict.text for verdict in judge(found) if not verdict.kept]


def test_a_multi_token_chunk_counts_only_what_became_visible_after_the_first() -> None:
    sent = [["token", (80 + 40 * number) * MS] for number in range(16)]

    truth = BY_NAME["multi4"].truth({"received_ns": 0, "steps": [["role", 80 * MS], *sent, ["done", 700 * MS]]})

    assert truth.tokens_per_s == pytest.approx(100)
    assert truth.ttft_s == pytest.approx(0.08)


def test_one_token_has_no_rate() -> None:
    assert answer_from_stamps(0, [50 * MS], 1) == Answer(0.05, None)


def test_errors_are_distances_from_each_requests_own_truth() -> None:
    truths = [Answer(0.050, 0.010, (0.010, 0.010)), Answer(0.060, 0.010, (0.010, 0.010))]
    answers = [Answer(0.051, 0.010, (0.011, 0.010)), Answer(0.059, None, ())]

    errors = errors_by_request(answers, truths)

    assert errors.ttft is not None
    assert errors.ttft.p50 == pytest.approx(1.0)
    assert errors.itl is not None
    assert errors.itl.p99 == pytest.approx(0.0, abs=1e-9)
    assert errors.gaps is not None
    assert errors.gaps.mean == pytest.approx(0.5)


def test_requests_and_truths_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="shorter"):
        errors_by_request([Answer(1, 1)], [])


def test_aggregates_do_not_care_for_order() -> None:
    truths = [Answer(0.050, None), Answer(0.070, None), Answer(0.060, None)]

    errors = errors_of_aggregates([Answer(0.071, None), Answer(0.051, None), Answer(0.061, None)], truths)

    assert errors.ttft is not None
    assert [errors.ttft.mean, errors.ttft.p50, errors.ttft.p99] == pytest.approx([1.0, 1.0, 1.0])
    assert errors.itl is None


def test_one_noisy_repetition_does_not_decide() -> None:
    runs = [Errors(spread(value), None, None) for value in (0.2, 9.0, 0.3)]

    assert median_errors(runs) == Errors(spread(0.3), None, None)


def test_a_rate_is_held_against_its_shapes_truth_with_its_remarks() -> None:
    truths = [Answer(0.05, 0.01, (), 100.0)] * 2

    rate = rate_of([Answer(0.05, None, (), 203.0, "hidden_tokens"), Answer(0.05, None, (), 203.0)], truths)

    assert rate.error == pytest.approx(1.03)
    assert rate.remark == "hidden_tokens"


def test_cpu_is_counted_only_between_the_two_moments() -> None:
    samples = [(0, 0.0), (100, 1.0), (200, 1.5), (300, 4.0)]

    assert cpu_between(samples, 100, 200) == pytest.approx(0.5)
    assert cpu_between(samples, 50, 250) == pytest.approx(2.25)
    assert cpu_between(samples, 100, 900) == pytest.approx(3.0)
    assert cpu_between([], 0, 1) is None


def test_nothing_is_missed_when_nearer_than_every_peer() -> None:
    assert missed(results(figures(0.25, 0.001, 0.05))) == []


@pytest.mark.parametrize(
    ("mine", "why"),
    [
        (figures(0.31, 0.001, 0.05), "raw socket"),
        (figures(0.25, 0.03, 0.05), "means of requests, below AIPerf"),
        (figures(0.25, 0.001, 0.5), "single gaps, below AIPerf"),
        (figures(0.25, None, 0.05), "reports none"),
        (figures(0.25, 0.001, 0.05, cpu_us_per_token=101.0), "CPU per token"),
        (figures(0.25, 0.001, 0.05, rss_bytes=81_000_000), "80 MB"),
    ],
)
def test_each_target_can_be_missed(mine: Figures, why: str) -> None:
    texts = missed(results(mine))

    assert texts
    assert all(why in text for text in texts)


def test_a_nearer_peer_is_named() -> None:
    (text,) = missed(results(figures(0.25, 0.001, 0.05), sharp=figures(0.24)))

    assert "below sharp's: 0.250 against 0.240 ms" in text


@pytest.mark.parametrize(
    ("shape", "rate", "kept"),
    [
        ("multi4", Rate(100.9, 100.0, "consistent"), True),
        ("multi4", Rate(101.1, 100.0, "consistent"), False),
        ("multi4", Rate(100.9, 100.0, "several_tokens_per_chunk"), True),
        ("multi4", Rate(105.0, 100.0, "several_tokens_per_chunk"), False),
        ("no usage", Rate(105.0, 100.0, "no_usage"), False),
        ("hidden", Rate(105.0, 100.0, "hidden_tokens"), True),
        ("hidden", Rate(105.0, 100.0, "consistent"), False),
        ("hidden", Rate(100.9, 100.0, ""), True),
        ("multi4", Rate(None, 100.0, "consistent"), False),
        ("hidden", Rate(None, 100.0, ""), False),
    ],
)
def test_a_rate_must_be_true_or_where_nobody_can_see_it_say_so(shape: str, rate: Rate, kept: bool) -> None:
    found = results(figures(0.25, 0.001, 0.05))
    found.rates[OURS] = {shape: rate}

    assert (missed(found) == []) is kept


@pytest.mark.parametrize(("mine", "kept"), [(0.55, True), (0.65, False)])
def test_in_a_crowd_the_best_peer_is_the_measure(mine: float, kept: bool) -> None:
    found = results(figures(0.25, 0.001, 0.05))
    found.crowd = {
        OURS: figures(mine),
        PLAIN_CLIENT: figures(9, cpu_us_per_token=200.0),
        "a": figures(0.5),
        "b": figures(2),
    }

    assert (missed(found) == []) is kept


@pytest.mark.parametrize(("code", "kept"), [(1, True), (0, False), (None, False)])
def test_failing_silently_is_a_miss(code: int | None, kept: bool) -> None:
    found = results(figures(0.25, 0.001, 0.05))
    found.exit_codes[OURS] = code

    assert (missed(found) == []) is kept


def test_what_was_not_measured_is_not_kept() -> None:
    found = results(figures(0.25, 0.001, 0.05))
    del found.crowd[OURS], found.plain[RAW]

    assert missed(found) == ["one stream: raw socket left no result", "32 streams: benchfleet left no result"]


def test_the_page_says_what_is_missing_and_why() -> None:
    from benchmarks.peers import aiperf, ours
    from benchmarks.peers.measurement import QUICK

    found = results(figures(0.25, 0.001))
    found.unavailable["guidellm"] = "no matching distribution"
    found.missing["genai-bench"] = ["32 streams: killed, 0 requests seen"]
    found.rates[OURS] = {"hidden": Rate(100.2, 100.0, "hidden_tokens")}
    found.exit_codes[OURS] = 1

    page = report(found, judge(found), [ours.CLIENT, aiperf.CLIENT], QUICK, 7)

    assert "guidellm is unavailable: no matching distribution" in page
    assert "guidellm was not run: its environment takes 6 GB" in page
    assert "genai-bench, 32 streams: killed" in page
    assert "| benchfleet | 0.250 | 0.250 | 0.250 | 0.001 | 0.001 | 0.001 | – |" in page
    assert "+0.2% ✓ (hidden_tokens)" in page
    assert "seed 7" in page


def test_a_table_has_a_column_for_every_head() -> None:
    assert table(["client", "ms"], [["a", "1"]]) == "| client | ms |\n| --- | ---: |\n| a | 1 |"


@pytest.mark.parametrize(("ratio", "text"), [(-0.0001, "0.0%"), (0.0149, "+1.5%"), (-0.75, "-75.0%")])
def test_nothing_has_no_sign(ratio: float, text: str) -> None:
    assert percent(ratio) == text
