"""Limits: read as people write them, kept surely or not, and never by what was not measured."""

from __future__ import annotations

import math
from typing import Any

import pytest

from benchfleet_controller.plan import ModelFacts
from benchfleet_controller.selection import with_facts
from benchfleet_controller.selection_limits import Kind, Limit, Outcome, judge, parse_limit, spdx
from fakes.case_results import GIB, case


def limit(option: str, text: str) -> Limit:
    return parse_limit(option, text)


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
        ("min_quality", "0.5", {}, "no answer was scored; `benchfleet score"),
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


def test_excess_is_negative_within_the_limit() -> None:
    assert Limit("--x", "e2e_p95_s", Kind.AT_MOST, 2.0).excess_ratio(1.0) == -0.5
    assert Limit("--x", "decode_tokens_per_s", Kind.AT_LEAST, 2.0).excess_ratio(3.0) == -0.5
    assert math.isclose(Limit("--x", "decode_tokens_per_s", Kind.AT_LEAST, 2.0).excess_ratio(1.0), 0.5)
