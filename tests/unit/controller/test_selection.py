"""A choice under limits: what is sure passes, what is not measured never does, and words say what is missing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchfleet_controller.compare import Rounds
from benchfleet_controller.plan import ModelFacts
from benchfleet_controller.selection import Candidate, Selection, select, with_facts
from benchfleet_controller.selection_limits import Limit, Outcome, parse_limit
from fakes.case_results import GIB, case


def limit(option: str, text: str) -> Limit:
    return parse_limit(option, text)


def named(selection: Selection, model: str) -> Candidate:
    (found,) = (one for one in selection.candidates if one.cases[0]["model"] == model)
    return found


def rounds(**values: list[float]) -> dict[tuple[str, str], Rounds]:
    return {
        ("e2e_p95_s", f"c-{model}"): Rounds(np.array(given), np.ones(len(given))) for model, given in values.items()
    }


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
        ({"status": "running"}, Outcome.FAIL, "running: `benchfleet collect`"),
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
    found = select([case("cpu"), gpu], [], "memory")
    assert found.chosen is named(found, "cpu")
    assert found.runner_up is not None
    assert (found.runner_up.ratio, found.runner_up.sure) == (None, False)


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
    assert select([open_loop], []).candidates[0].name == "tiny on a (cpu, 2 requests/s poisson, at most 64 in flight)"


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
    found = select([*cases, case("other", prompt_set="long", max_tokens=64)], [])
    assert named(found, "new").against[0].why == (
        "not measured with prompt set long and max tokens 16, or prompt set long and max tokens 64"
    )


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


def test_the_command_line_offers_every_preference() -> None:
    from benchfleet_controller import cli, selection

    options = cli.parser("select").parse_args(["select"])
    assert options.prefer in selection.PREFERENCES
    for preference in selection.PREFERENCES:
        assert cli.parser("select").parse_args(["select", "--prefer", preference]).prefer == preference
