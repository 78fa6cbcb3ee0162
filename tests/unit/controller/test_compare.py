"""Verdicts: only like with like, sure or honestly not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchfleet_controller.compare import Rounds, Verdict, compare


def case(case_id: str, **fields: Any) -> dict[str, Any]:
    return {
        "case_id": case_id, "run_id": "r1", "host": "a", "device": "cpu", "device_asked": None, "runtime": "foundry",
        "model": "tiny", "model_asked": "tiny", "variant": "tiny:1", "execution_provider": "CPU", "status": "succeeded",
        "prompt_set": "default", "concurrency": 1, "max_tokens": 16, "stream": True, "temperature": 0.0, "top_p": 1.0,
        "tokens_source": "usage", "accounting": "consistent", "stamp_source": "socket", "requests": 40, "failed": 0,
        "ttft_n": 40, "e2e_n": 40, "ttft_p50_s": 0.1, "decode_tokens_per_s": 100.0, "ram_peak_bytes": 1000,
        "vram_peak_bytes": 1000, "load_s": 1.0,
    } | fields  # fmt: skip


def rounds(*values: float) -> Rounds:
    return Rounds(np.array(values), np.ones(len(values)))


def run(
    b: dict[str, Any], values: tuple[float, ...], metric: str = "ttft_p50_s", by: tuple[str, ...] = ("host",)
) -> Any:
    around = {(metric, "c1"): rounds(0.099, 0.1, 0.101, 0.1), (metric, "c2"): rounds(*values)}
    comparison = compare([case("c1"), case("c2", **({"host": "b"} | b))], by, None, [metric], around)
    return comparison.rows[1]


@pytest.mark.parametrize(
    ("value", "values", "verdict"),
    [
        (0.05, (0.049, 0.05, 0.051, 0.05), Verdict.BETTER),
        (0.2, (0.19, 0.2, 0.21, 0.2), Verdict.WORSE),
        (0.1, (0.1, 0.1, 0.1, 0.1), Verdict.SAME),
        (0.11, (0.05, 0.2, 0.08, 0.11), Verdict.INCONCLUSIVE),
        (0.2, (0.2, 0.2), Verdict.INCONCLUSIVE),
        (None, (), Verdict.NOT_COMPARABLE),
    ],
)
def test_verdicts(value: float | None, values: tuple[float, ...], verdict: Verdict) -> None:
    row = run({"ttft_p50_s": value}, values)
    assert row.verdict is verdict
    assert bool(row.why) == (verdict in (Verdict.INCONCLUSIVE, Verdict.NOT_COMPARABLE))
    if value is not None:
        assert row.ratio == pytest.approx(value / 0.1)


def test_higher_is_better_for_rates() -> None:
    row = run({"decode_tokens_per_s": 200.0}, (0.2, 0.2, 0.2, 0.2), "decode_tokens_per_s")
    assert (row.verdict, row.ratio) == (Verdict.BETTER, 2.0)
    assert row.low is not None
    assert row.low <= 2 <= row.high


@pytest.mark.parametrize("condition", ["prompt_set", "concurrency", "max_tokens"])
def test_other_conditions_are_never_compared(condition: str) -> None:
    cases = [case("c1"), case("c2", host="b", **{condition: 99})]
    base, missing, row = compare(cases, ("host",), None, ["ttft_p50_s"]).rows
    assert base.verdict is Verdict.BASELINE
    for one in (missing, row):
        assert (one.group, one.verdict, one.ratio) == ("b", Verdict.NOT_COMPARABLE, None)
        assert f"{condition} 99 instead of" in one.why
    assert missing.why.startswith("in the baseline, not here: nothing ran like this")


def test_differences_are_said_or_refuse() -> None:
    flagged = run({"execution_provider": "CUDA", "tokens_source": "estimate"}, (0.1, 0.1, 0.1))
    assert flagged.verdict is not Verdict.NOT_COMPARABLE
    assert flagged.flags == ("execution_provider CUDA instead of CPU", "tokens_source estimate instead of usage")
    refused = run({"tokens_source": "estimate"}, (1, 1, 1), "decode_tokens_per_s")
    assert (refused.verdict, "counted differently" in refused.why) == (Verdict.NOT_COMPARABLE, True)
    by_device = run({"host": "a", "device": "gpu", "device_asked": "gpu", "variant": "x"}, (0.1,), by=("device",))
    assert by_device.flags == ()
    by_run = run({"host": "a", "run_id": "r2", "variant": "tiny:2"}, (0.1,), by=("run",))
    assert (by_run.verdict, by_run.why) == (Verdict.NOT_COMPARABLE, "variant tiny:2 instead of tiny:1")


def test_percentiles_need_enough_values_and_single_values_are_inconclusive() -> None:
    unmeasured = run({"e2e_p95_s": 2.0, "e2e_n": 10}, (2, 2, 2), "e2e_p95_s")
    assert (unmeasured.verdict, unmeasured.why) == (Verdict.NOT_COMPARABLE, "unmeasured in the baseline")
    values = {("e2e_p95_s", name): rounds(0.99, 1.0, 1.01) for name in ("c1", "c2")}
    cases = [case(name, host=name, e2e_p95_s=1.0, e2e_n=12) for name in ("c1", "c2")]
    few = compare(cases, ("host",), None, ["e2e_p95_s"], values).rows[1]
    assert (few.verdict, few.sound, few.more_rounds) == (Verdict.INCONCLUSIVE, False, 2)  # 4 values a round, 20 needed
    assert few.why == "too few values for the 95% percentile (12)"
    assert few.advice == "about 2 more rounds on each side would be enough"
    load = run({"load_s": 2.0}, (), "load_s")
    assert (load.verdict, load.ratio) == (Verdict.INCONCLUSIVE, 2.0)
    assert load.why == "one value a case: 3 runs on each side are needed"


def test_each_stratum_has_its_own_baseline() -> None:
    cases = [
        case("a1"), case("a2", model="big", model_asked="big", ttft_p50_s=1.0), case("b1", host="b", ttft_p50_s=0.2),
        case("b2", host="b", model="big", model_asked="big", ttft_p50_s=3.0),
    ]  # fmt: skip
    found = compare(cases, ("host",), "b", ["ttft_p50_s"])
    assert [(r.conditions["model"], r.group, r.ratio) for r in found.rows] == [
        ("tiny", "a", 0.5), ("tiny", "b", 1.0), ("big", "a", pytest.approx(1 / 3)), ("big", "b", 1.0),
    ]  # fmt: skip


def test_a_rate_that_is_a_lower_bound_on_one_side_gives_no_verdict() -> None:
    chunky = {"accounting": "fewer_chunks_than_tokens"}
    fast, slow = (100.0, 101.0, 99.0, 100.0), (50.0, 51.0, 49.0, 50.0)
    around = {("decode_tokens_per_s", "c1"): rounds(*fast), ("decode_tokens_per_s", "c2"): rounds(*slow)}
    here = {"host": "b", "decode_tokens_per_s": 50.0}

    def row(mine: dict[str, Any], theirs: dict[str, Any]) -> Any:
        cases = [case("c1", **theirs), case("c2", **here, **mine)]
        return compare(cases, ("host",), "a", ["decode_tokens_per_s"], around).rows[1]

    assert row({}, {}).verdict is Verdict.WORSE
    assert row(chunky, chunky).verdict is Verdict.WORSE, "bounds of one kind"
    for one in (row(chunky, {}), row({}, chunky)):
        assert (one.verdict, "only a bound is known" in one.why) == (Verdict.NOT_COMPARABLE, True)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"status": "failed", "requests": 0, "reason": "load_failed", "message": "no room"},
         "in the baseline, not here: failed (load_failed: no room)"),
        ({"status": "failed", "requests": 40, "failed": 40, "reason": "requests_failed"},
         "in the baseline, not here: failed (requests_failed: all 40 requests failed)"),
        ({"status": "failed", "requests": 40, "failed": 0, "reason": "rate_not_kept", "message": "1 s late"},
         "in the baseline, not here: failed (rate_not_kept: 1 s late)"),
        ({"status": "skipped", "requests": 0, "reason": "does_not_fit"},
         "in the baseline, not here: skipped (does_not_fit)"),
        ({"status": "running", "requests": 0},
         "in the baseline, not here: running, `benchfleet collect` fetches what there is"),
    ],
)  # fmt: skip
def test_what_the_baseline_has_and_the_group_lost_is_told_with_what_became_of_it(
    fields: dict[str, Any], why: str
) -> None:
    cases = [case("c1"), case("c2", run_id="r2", **fields)]
    _, row = compare(cases, ("run",), "r1", ["ttft_p50_s"]).rows
    assert (row.group, row.verdict, row.why, row.missing) == ("r2", Verdict.NOT_COMPARABLE, why, True)


def test_what_the_group_did_not_run_at_all_is_told_too() -> None:
    big = {"model": "big", "model_asked": "big"}
    cases = [case("c1"), case("c2", **big), case("c3", run_id="r2")]
    rows = compare(cases, ("run",), "r1", ["ttft_p50_s"]).rows
    assert rows[-1].why == "in the baseline, not here: nothing ran like this (model_asked tiny instead of big)"


def test_a_baseline_that_failed_here_is_told_with_what_became_of_it() -> None:
    big = {"model": "big", "model_asked": "big"}
    cases = [case("c1"), case("c2", status="failed", requests=0, reason="load_failed", **big)]
    cases += [case("c3", run_id="r2", **big)]
    rows = compare(cases, ("run",), "r1", ["ttft_p50_s"]).rows
    assert [row.why for row in rows if row.group == "r2"] == [
        "in the baseline, not here: nothing ran like this (model_asked big instead of tiny)",
        "the baseline's: failed (load_failed)",
    ]


def test_failures_are_told_and_survivors_of_many_stand_for_nothing() -> None:
    few = run({"failed": 1, "ttft_p50_s": 0.2}, (0.2, 0.2, 0.2, 0.2))
    assert (few.verdict, few.flags) == (Verdict.WORSE, ("1 of 40 requests failed instead of 0 of 40",))
    many = run({"failed": 38, "status": "failed"}, (0.1, 0.1, 0.1, 0.1))
    assert (many.verdict, many.ratio) == (Verdict.NOT_COMPARABLE, None)
    assert many.why == "38 of 40 requests failed instead of 0 of 40: what is left says nothing of the rest"


def test_a_rank_test_that_could_agree_and_does_not_withdraws_the_verdict() -> None:
    spread = {("ttft_p50_s", "c1"): rounds(*[0.1] * 7, 0.5), ("ttft_p50_s", "c2"): rounds(*[0.1] * 7, 9.0)}
    rows = compare([case("c1"), case("c2", host="b", ttft_p50_s=0.3)], ("host",), None, ["ttft_p50_s"], spread).rows
    assert rows[1].p_value is not None
    assert rows[1].p_value > 0.05
    assert rows[1].verdict is Verdict.INCONCLUSIVE


def test_p_values_are_corrected_for_the_number_of_comparisons() -> None:
    values = {("ttft_p50_s", f"c{n}"): rounds(*(n * value for value in (0.099, 0.1, 0.101, 0.102))) for n in (1, 2, 3)}
    cases = [case(f"c{n}", host=f"h{n}", ttft_p50_s=0.1 * n) for n in (1, 2, 3)]
    two = compare(cases[:2], ("host",), None, ["ttft_p50_s"], values).rows[1]
    three = compare(cases, ("host",), None, ["ttft_p50_s"], values).rows
    assert two.p_value == pytest.approx(2 / 70)  # all of four above all of four
    assert two.testable
    assert [row.p_value for row in three] == [None, pytest.approx(4 / 70), pytest.approx(4 / 70)]
    assert (three[1].verdict, three[1].testable) == (Verdict.WORSE, False)  # so few rounds cannot deny it


def test_an_inconclusive_row_says_how_many_more_rounds_would_decide() -> None:
    row = run({"ttft_p50_s": 0.105}, (0.09, 0.12, 0.1, 0.11))
    assert row.verdict is Verdict.INCONCLUSIVE
    assert row.more_rounds is not None
    assert f"about {row.more_rounds} more rounds on each side would decide" in row.explanation


def test_single_values_are_compared_over_several_runs() -> None:
    loads = [case(f"a{n}", load_s=1.0 + n / 100) for n in range(3)]
    loads += [case(f"b{n}", host="b", load_s=2.0 + n / 100) for n in range(3)]
    row = compare(loads, ("host",), None, ["load_s"]).rows[1]
    assert (row.verdict, row.rounds, row.baseline_rounds) == (Verdict.WORSE, 3, 3)


def test_nothing_on_both_sides_is_the_same_and_lost_quality_is_worse() -> None:
    values = {("quality_ratio", "c1"): rounds(0.5, 0.5, 0.5), ("quality_ratio", "c2"): rounds(0, 0, 0)}
    wrong = [case(name, host=name, quality_ratio=0.0, quality_n=12) for name in ("c1", "c2")]
    assert compare(wrong, ("host",), None, ["quality_ratio"], values).rows[1].verdict is Verdict.SAME
    right = case("c1", host="c1", quality_ratio=0.5, quality_n=12)
    assert compare([right, wrong[1]], ("host",), None, ["quality_ratio"], values).rows[1].verdict is Verdict.WORSE


def test_an_unmeasured_baseline_has_no_ratio() -> None:
    base = compare([case("c1", ttft_p50_s=None), case("c2", host="b")], ("host",), None, ["ttft_p50_s"]).rows[0]
    assert (base.verdict, base.value, base.ratio) == (Verdict.BASELINE, None, None)


def _decided(generator: np.random.Generator, hosts: int, each: int, true_ratio: float, spread: float) -> list[bool]:
    """Whether each comparison of five metrics against the first host found a difference; others are ``true_ratio``."""
    cases, values = [], {}
    for host in range(hosts):
        found = {}
        for metric in ("ttft_p50_s", "e2e_p50_s", "tpot_avg_s", "decode_tokens_per_s", "output_tokens_per_s"):
            drawn = (true_ratio if host else 1.0) * (1 + spread * generator.standard_normal(each))
            found[metric], values[metric, f"c{host}"] = float(drawn.mean()), Rounds(drawn, np.ones(each))
        cases.append(case(f"c{host}", host=f"h{host}", **found))
    rows = compare(cases, ("host",), "h0", list(found), values).rows
    return [row.verdict in (Verdict.BETTER, Verdict.WORSE) for row in rows if row.verdict is not Verdict.BASELINE]


@pytest.mark.parametrize(("hosts", "each"), [(2, 3), (4, 4)])
def test_many_comparisons_without_a_difference_seldom_find_any(hosts: int, each: int) -> None:
    generator = np.random.default_rng(7)
    trials = [any(_decided(generator, hosts, each, true_ratio=1.0, spread=0.1)) for _ in range(40 // hosts)]
    assert np.mean(trials) <= 0.08  # 20 % to 50 % with each verdict at 95 % for itself


def test_differences_of_a_fifth_are_found_in_rounds_that_differ_by_a_fiftieth() -> None:
    generator = np.random.default_rng(7)
    trials = [np.mean(_decided(generator, 2, 5, true_ratio=1.2, spread=0.02)) for _ in range(4)]
    assert np.mean(trials) > 0.8


def test_unknown_names_are_told_with_the_known() -> None:
    for arguments, known in (
        ((("os",), None, []), "known are host"), ((("host",), "x", []), "there are: a"),
        ((("host",), None, ["speed"]), "known are ttft_avg_s"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=known):
            compare([case("c1")], *arguments)
