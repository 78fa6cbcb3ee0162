"""A choice under limits: what is sure passes, what is not measured never does, and words say what is missing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from benchfleet_controller.compare import Rounds
from benchfleet_controller.plan import ModelFacts
from benchfleet_controller.selection import Candidate, Selection, select, with_facts
from benchfleet_controller.selection_limits import Kind, Limit, Outcome, judge, parse_limit, spdx

GIB = 1 << 30


def case(model: str = "tiny", **fields: Any) -> dict[str, Any]:
    """A case of 5 rounds with 8 requests each; every interval is ±10 % of the value."""
    row: dict[str, Any] = {
        "case_id": f"c-{model}", "run_id": "r1", "host": "a", "runtime": "foundry", "device": "cpu", "device_asked": None,
        "model": model, "model_asked": model, "variant": f"{model}:1", "execution_provider": "CPUExecutionProvider",
        "status": "succeeded", "reason": None, "message": None, "prompt_set": "default", "concurrency": 1,
        "max_tokens": 16, "stream": True, "temperature": 0.0, "top_p": 1.0, "rounds": 5, "requests": 40, "failed": 0,
        "ttft_n": 40, "e2e_n": 40, "ttft_p50_s": 0.1, "ttft_p95_s": 0.2, "e2e_p50_s": 0.8, "e2e_p95_s": 1.0,
        "e2e_avg_s": 0.8, "decode_tokens_per_s": 50.0, "output_tokens_per_s": 20.0, "ram_peak_bytes": GIB,
        "vram_peak_bytes": None, "size_bytes": 100_000_000, "license": "MIT", "unmeasured": {},
    }  # fmt: skip
    row |= fields
    timed = ("ttft_p50_s", "ttft_p95_s", "e2e_p95_s", "e2e_avg_s", "decode_tokens_per_s")
    row.setdefault("intervals", {name: row[name] and [0.9 * row[name], 1.1 * row[name]] for name in timed})
    return row


def limit(option: str, text: str) -> Limit:
    return parse_limit(option, text)


def named(selection: Selection, model: str) -> Candidate:
    (found,) = (one for one in selection.candidates if one.cases[0]["model"] == model)
    return found


def rounds(**values: list[float]) -> dict[tuple[str, str], Rounds]:
    return {
        ("e2e_p95_s", f"c-{model}"): Rounds(np.array(given), np.ones(len(given))) for model, given in values.items()
    }


@pytest.mark.parametrize(
    ("option", "text", "bound"),
    [
        ("max_ttft_p95", "0.5", 0.5),
        ("max_ttft_p95", "500ms", 0.5),
        ("max_latency_p95", "2 s", 2.0),
        ("max_ram", "2GiB", 2 * GIB),
        ("max_vram", "800MB", 800e6),
        ("max_disk", "1000000", 1e6),
        ("min_quality", "80%", 0.8),
        ("min_tokens_per_s", ".5", 0.5),
        ("license", "MIT, Apache 2.0", ("mit", "apache-2.0")),
        ("capability", "chat,Summarization", ("chat", "summarization")),
    ],
)
def test_limits_are_read_in_the_units_people_write(option: str, text: str, bound: object) -> None:
    assert limit(option, text).bound == (pytest.approx(bound) if isinstance(bound, float) else bound)


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("max_ttft_p95", "0"),
        ("max_ttft_p95", "-1"),
        ("max_ttft_p95", "5GB"),
        ("max_ttft_p95", "nan"),
        ("max_ram", "2G"),
        ("max_ram", "much"),
        ("max_ram", "1" + "0" * 400),
        ("license", " , "),
    ],
)
def test_what_is_no_limit_is_refused_with_an_example(option: str, text: str) -> None:
    with pytest.raises(ValueError, match=r"--[a-z0-9-]+ takes (a number above 0 such as|names)"):
        limit(option, text)


@pytest.mark.parametrize(
    ("bound", "outcome"),
    [("1.2", Outcome.PASS), ("1.05", Outcome.UNSURE), ("0.95", Outcome.UNSURE), ("0.8", Outcome.FAIL)],
)
def test_a_limit_is_kept_surely_only_by_the_whole_interval(bound: str, outcome: Outcome) -> None:
    found = judge(limit("max_latency_p95", bound), case())
    assert found.outcome is outcome
    assert (found.value, bool(found.why)) == (1.0, outcome is not Outcome.PASS)


@pytest.mark.parametrize(("bound", "outcome"), [("40", Outcome.PASS), ("52", Outcome.UNSURE), ("60", Outcome.FAIL)])
def test_a_least_rate_is_a_limit_the_other_way_round(bound: str, outcome: Outcome) -> None:
    found = judge(limit("min_tokens_per_s", bound), case())
    assert found.outcome is outcome
    if outcome is Outcome.FAIL:
        assert found.excess_ratio == pytest.approx(1 / 6)
        assert "17% under 60 tokens/s" in found.why


def test_an_interval_across_the_limit_says_how_many_rounds_would_narrow_it_enough() -> None:
    found = judge(limit("max_latency_p95", "1.05"), case())
    # Half the width is 0.1 and the room 0.05: twice as narrow takes four times the rounds.
    assert found.rounds_advised == 20
    assert found.why.endswith(": --rounds 20")


@pytest.mark.parametrize("bound", ["1", "1.000001"])
def test_no_number_of_rounds_is_advised_when_none_would_do(bound: str) -> None:
    found = judge(limit("max_latency_p95", bound), case())
    assert (found.outcome, found.rounds_advised) == (Outcome.UNSURE, None)


def test_too_few_requests_for_a_percentile_say_how_many_are_needed() -> None:
    few = case(rounds=3, requests=12, ttft_n=12, e2e_n=12)
    found = judge(limit("max_ttft_p95", "0.5"), few)
    assert (found.outcome, found.n, found.rounds_advised) == (Outcome.UNSURE, 12, 5)
    assert found.why == "TTFT p95: 20 requests are needed, 12 were measured: --rounds 5"


def test_a_p95_is_surely_over_when_the_median_is() -> None:
    few = case(rounds=3, requests=12, ttft_n=12)
    assert judge(limit("max_ttft_p95", "0.08"), few).outcome is Outcome.FAIL
    assert judge(limit("max_ttft_p95", "0.095"), few).outcome is Outcome.UNSURE


@pytest.mark.parametrize("fields", [{"rounds": 2}, {"rounds": 1, "intervals": {}}])
def test_too_few_rounds_are_never_sure(fields: dict[str, Any]) -> None:
    found = judge(limit("max_latency_avg", "9"), case(**fields))
    assert (found.outcome, found.rounds_advised) == (Outcome.UNSURE, 3)


@pytest.mark.parametrize(
    ("option", "text", "fields", "why"),
    [
        ("max_ram", "2GiB", {"ram_peak_bytes": None, "unmeasured": {"runtime_rss_bytes": "no rights"}}, "no rights"),
        ("max_vram", "2GiB", {"device": "gpu", "unmeasured": {"device_memory_used_bytes": "no NVML"}}, "no NVML"),
        ("max_vram", "2GiB", {"device": "cpu", "execution_provider": None}, "VRAM unmeasured"),
        ("max_disk", "1GB", {"size_bytes": None}, "models.json"),
        ("min_quality", "0.5", {}, "no run scored its answers"),
        ("max_ttft_p95", "1", {"ttft_p95_s": None, "stream": False}, "not streamed"),
        ("max_ram", "2GiB", {"ram_peak_bytes": None, "remote": True}, "another machine"),
        ("license", "mit", {"license": None}, "licence unknown"),
        ("capability", "chat", {"capabilities": None}, "capabilities unknown"),
    ],
)
def test_what_is_not_measured_never_passes(option: str, text: str, fields: dict[str, Any], why: str) -> None:
    found = judge(limit(option, text), case(**fields))
    assert found.outcome is Outcome.FAIL
    assert why in found.why
    assert found.excess_ratio is None


def test_device_memory_is_no_question_for_what_runs_on_the_processor() -> None:
    assert judge(limit("max_vram", "1"), case()).outcome is Outcome.NOT_APPLICABLE
    assert judge(limit("max_vram", "1"), case(vram_peak_bytes=GIB)).outcome is Outcome.FAIL


@pytest.mark.parametrize(
    ("option", "text", "outcome"),
    [
        ("max_ram", "1GiB", Outcome.PASS),
        ("max_ram", "1GB", Outcome.FAIL),
        ("max_disk", "100MB", Outcome.PASS),
        ("min_quality", "0.8", Outcome.FAIL),
        ("min_quality", "70%", Outcome.PASS),
    ],
)
def test_peaks_sizes_and_quality_are_held_against_the_limit_as_they_are(
    option: str, text: str, outcome: Outcome
) -> None:
    assert judge(limit(option, text), case(quality_ratio=0.7)).outcome is outcome


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("MIT", "mit"),
        ("The MIT License", "mit"),
        ("Apache License, Version 2.0", "apache-2.0"),
        ("apache 2.0", "apache-2.0"),
        ("Apache-2", "apache-2.0"),
        ("Apache v2", "apache-2.0"),
        ("BSD 3-Clause License", "bsd-3-clause"),
        ("llama3.2", "llama3.2"),
    ],
)
def test_licences_are_known_by_their_common_names(name: str, plain: str) -> None:
    assert spdx(name) == plain


@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        ("Apache License 2.0", Outcome.PASS),
        ("GPL-3.0-only OR MIT", Outcome.PASS),
        ("MIT AND llama3.2", Outcome.FAIL),
        ("gemma", Outcome.FAIL),
    ],
)
def test_a_licence_must_be_among_the_allowed_ones(name: str, outcome: Outcome) -> None:
    assert judge(limit("license", "mit,apache-2.0"), case(license=name)).outcome is outcome


def test_every_wanted_capability_is_needed() -> None:
    facts = (ModelFacts("TINY", ("Chat", "summarization")), ModelFacts("other", ("code",)))
    told = with_facts(case(), facts, "models.json")
    assert told["capabilities_source"] == "models.json"
    assert judge(limit("capability", "chat,Summarization"), told).outcome is Outcome.PASS
    assert judge(limit("capability", "chat,code"), told).why == "lacks code"
    assert with_facts(case("unheard"), facts, "models.json")["capabilities"] is None


def test_a_size_is_taken_from_the_facts_only_where_the_runtime_does_not_tell_it() -> None:
    facts = (ModelFacts("tiny", (), 7),)
    told, untold = (with_facts(case(size_bytes=size), facts, "m.json") for size in (5, None))
    assert (told["size_bytes"], told["size_source"]) == (5, "runtime")
    assert (untold["size_bytes"], untold["size_source"]) == (7, "m.json")
    assert with_facts(case(size_bytes=None), (), "m.json")["size_source"] is None


def test_the_fastest_sure_pass_is_chosen_and_the_runner_up_told_with_its_certainty() -> None:
    cases = [case("slow", e2e_p95_s=1.5), case("fast"), case("faster", e2e_p95_s=0.5, license="gemma")]
    by_round = rounds(fast=[1.0, 1.01, 0.99, 1.0, 1.0], slow=[1.5, 1.52, 1.48, 1.5, 1.5])
    found = select(cases, [limit("license", "mit"), limit("max_latency_p95", "2")], rounds=by_round)
    assert [one.name for one in found.candidates] == [
        f"{m} on a (cpu, 1 in flight)" for m in ("fast", "slow", "faster")
    ]
    assert found.chosen is not None
    assert (found.chosen.name, found.chosen.outcome) == ("fast on a (cpu, 1 in flight)", Outcome.PASS)
    assert named(found, "faster").outcome is Outcome.FAIL
    assert found.runner_up is not None
    assert found.runner_up.candidate is named(found, "slow")
    assert found.runner_up.ratio == pytest.approx(1.5)
    assert found.runner_up.interval is not None
    assert found.runner_up.interval.low < 1.5 < found.runner_up.interval.high
    assert found.runner_up.sure


@pytest.mark.parametrize(
    ("other", "sure", "why"),
    [
        ([1.05, 0.9, 1.3, 1.0, 1.2], False, "threshold"),
        ([1.0, 1.0, 1.0, 1.0, 1.0], True, "the same within 3%"),
        ([1.0, 1.1], False, "too few rounds"),
    ],
)
def test_a_difference_that_rounds_do_not_show_is_not_called_one(other: list[float], sure: bool, why: str) -> None:
    cases = [case("one"), case("two", e2e_p95_s=sum(other) / len(other), decode_tokens_per_s=40.0)]
    found = select(cases, [], rounds=rounds(one=[1.0, 1.0, 1.0, 1.0, 1.0], two=other))
    assert found.runner_up is not None
    assert found.runner_up.sure is sure
    assert why in found.runner_up.why


def test_a_sure_pass_is_preferred_to_a_faster_doubtful_one_which_is_named() -> None:
    cases = [case("doubtful", e2e_p95_s=0.5, intervals={"ttft_p95_s": [0.1, 0.5]}), case("sure")]
    found = select(cases, [limit("max_ttft_p95", "0.3")])
    assert found.chosen is named(found, "sure")
    assert found.better_unsure is named(found, "doubtful")
    assert named(found, "sure").dominated_by == ("doubtful on a (cpu, 1 in flight)",)


def test_without_a_sure_pass_the_doubtful_one_is_chosen_and_stays_doubtful() -> None:
    found = select(
        [case("broken", status="failed", reason="load_failed"), case(ttft_n=12)], [limit("max_ttft_p95", "0.3")]
    )
    assert found.chosen is named(found, "tiny")
    assert found.chosen.outcome is Outcome.UNSURE
    assert found.better_unsure is None


@pytest.mark.parametrize(
    ("fields", "outcome", "why"),
    [
        (
            {"status": "failed", "reason": "out_of_memory", "message": "killed"},
            Outcome.FAIL,
            "failed: out_of_memory: killed",
        ),
        ({"status": "skipped", "reason": None}, Outcome.FAIL, "skipped"),
        ({"status": "running"}, Outcome.UNSURE, "running: `benchfleet collect`"),
        ({"ep_requested": "CUDAExecutionProvider", "ep_actual": "CPUExecutionProvider"}, Outcome.FAIL, "although"),
        ({"failed": 2, "reason": "some_requests_failed"}, Outcome.UNSURE, "2 of 40 requests failed"),
    ],
)
def test_what_did_not_run_soundly_does_not_pass_whatever_the_limits(
    fields: dict[str, Any], outcome: Outcome, why: str
) -> None:
    (candidate,) = select([case(**fields)], []).candidates
    assert candidate.outcome is outcome
    assert why in candidate.against[0].why


def test_a_failure_hides_doubts_which_no_longer_matter() -> None:
    (candidate,) = select([case(failed=2)], [limit("license", "gemma")]).candidates
    assert [one.why for one in candidate.against] == ["licence MIT"]


def test_the_front_holds_what_nothing_beats_and_the_beaten_name_who_does() -> None:
    cases = [
        case("fast", ram_peak_bytes=3 * GIB),
        case("small", e2e_p95_s=2.0, ram_peak_bytes=GIB),
        case("beaten", e2e_p95_s=2.5, ram_peak_bytes=2 * GIB),
        case("worst", e2e_p95_s=3.0, ram_peak_bytes=4 * GIB),
    ]
    found = select(cases, [])
    assert [one.cases[0]["model"] for one in found.front] == ["fast", "small"]
    assert named(found, "beaten").dominated_by == ("small on a (cpu, 1 in flight)",)
    assert len(named(found, "worst").dominated_by) == 2
    assert "vram_peak_bytes" not in found.dimensions


def test_equals_and_what_is_unmeasured_on_one_side_leave_both_on_the_front() -> None:
    assert len(select([case("one"), case("two")], []).front) == 2
    found = select([case("one"), case("two", e2e_p95_s=2.0, size_bytes=None)], [])
    assert len(found.front) == 2


def test_memory_of_a_gpu_and_of_a_host_do_not_beat_each_other() -> None:
    gpu = case("gpu", device="gpu", e2e_p95_s=0.5, ram_peak_bytes=GIB // 2, vram_peak_bytes=4 * GIB)
    found = select([case("cpu"), gpu], [])
    assert len(found.front) == 2
    assert found.chosen is named(found, "gpu")
    assert select([case("cpu"), gpu], [], "memory").chosen == named(select([case("cpu"), gpu], [], "memory"), "cpu")


@pytest.mark.parametrize(
    ("prefer", "chosen"), [("latency", "a"), ("ttft", "b"), ("throughput", "c"), ("memory", "d"), ("disk", "e")]
)
def test_the_preference_decides_among_those_that_pass(prefer: str, chosen: str) -> None:
    cases = [
        case("a", e2e_p95_s=0.9),
        case("b", ttft_p95_s=0.1),
        case("c", output_tokens_per_s=30.0),
        case("d", ram_peak_bytes=1),
        case("e", size_bytes=1),
    ]
    found = select(cases, [], prefer)
    assert found.chosen is named(found, chosen)
    assert found.chosen in found.front


def test_quality_counts_where_there_is_one() -> None:
    cases = [case("good", quality_ratio=0.9, e2e_p95_s=2.0), case("fast", quality_ratio=0.5)]
    found = select(cases, [], "quality")
    assert found.chosen is named(found, "good")
    assert "quality_ratio" in found.dimensions
    assert found.runner_up is not None
    assert found.runner_up.ratio == pytest.approx(0.5 / 0.9)
    with pytest.raises(ValueError, match="quality was measured for nothing"):
        select([case()], [], "quality")
    with pytest.raises(ValueError, match="unknown preference 'colour': known are latency"):
        select([case()], [], "colour")


def test_a_heavier_load_is_a_candidate_of_its_own_that_throughput_keeps_on_the_front() -> None:
    busy = case(case_id="c2", concurrency=8, e2e_p95_s=4.0, decode_tokens_per_s=10.0, output_tokens_per_s=70.0)
    found = select([case(), busy], [])
    assert [one.name for one in found.front] == ["tiny on a (cpu, 1 in flight)", "tiny on a (cpu, 8 in flight)"]
    assert found.runner_up is None  # other conditions: no better and no worse
    open_loop = case(request_rate_per_s=2.0, arrival="poisson", concurrency=64)
    assert select([open_loop], []).candidates[0].name == "tiny on a (cpu, 2 requests/s poisson)"


def test_of_several_prompt_sets_the_worst_counts() -> None:
    cases = [case(prompt_set="short"), case(case_id="c2", prompt_set="long", e2e_p95_s=3.0, ram_peak_bytes=2 * GIB)]
    (candidate,) = select(cases, [limit("max_latency_p95", "2")]).candidates
    assert (candidate.value("e2e_p95_s"), candidate.value("ram_peak_bytes")) == (3.0, 2 * GIB)
    assert candidate.value("decode_tokens_per_s") == 50.0
    assert candidate.outcome is Outcome.FAIL


def test_what_lacks_a_workload_of_the_others_is_not_sure() -> None:
    cases = [case(prompt_set="short"), case(case_id="c2", prompt_set="long"), case("new", prompt_set="short")]
    found = select(cases, [])
    assert named(found, "tiny").outcome is Outcome.PASS
    assert [one.why for one in named(found, "new").against] == ["not measured with prompt set long"]


def test_of_several_measurements_the_newest_counts() -> None:
    cases = [case(e2e_p95_s=9.0), case(case_id="c2", run_id="r2", round_duration_s=5.0)]
    (candidate,) = select(cases, []).candidates
    assert (candidate.value("e2e_p95_s"), candidate.older) == (1.0, 1)


def test_variants_of_one_model_are_told_apart_by_name() -> None:
    found = select([case(variant="tiny-int4:1"), case(case_id="c2", variant="tiny-fp16:1", e2e_p95_s=2.0)], [])
    assert [one.name.split()[0] for one in found.candidates] == ["tiny-int4:1", "tiny-fp16:1"]
    assert found.runner_up is not None
    assert found.runner_up.ratio == pytest.approx(2.0)


def test_when_everything_fails_the_nearest_is_named() -> None:
    cases = [
        case("broken", status="failed", reason="load_failed"),
        case("far", e2e_p95_s=9.0),
        case("near", e2e_p95_s=1.0),
        case("unknown", e2e_p95_s=None),
    ]
    found = select(cases, [limit("max_latency_p95", "0.5")])
    assert found.chosen is None
    assert found.front == ()
    assert found.nearest is named(found, "near")
    assert found.nearest.judged[0].excess_ratio == pytest.approx(1.0)
    assert found.nearest.judged[0].why == "latency p95 1 s, 100% over 0.5 s (0.9–1.1)"


def test_no_cases_are_no_candidates() -> None:
    found = select([], [limit("license", "mit")])
    assert (found.candidates, found.chosen, found.nearest) == ((), None, None)


def test_excess_is_negative_within_the_limit() -> None:
    assert Limit("--x", "e2e_p95_s", Kind.AT_MOST, 2.0).excess_ratio(1.0) == -0.5
    assert Limit("--x", "decode_tokens_per_s", Kind.AT_LEAST, 2.0).excess_ratio(3.0) == -0.5
    assert math.isclose(Limit("--x", "decode_tokens_per_s", Kind.AT_LEAST, 2.0).excess_ratio(1.0), 0.5)
