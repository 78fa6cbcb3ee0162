from __future__ import annotations

from typing import Any

import pytest

from benchfleet_controller.efficiency import efficiency, parameters_of

GB = 1_000_000_000
CASE: dict[str, Any] = {"device": "cpu", "size_bytes": 2 * GB, "decode_tokens_per_s": 7.1, "concurrency": 1}
LIMITS = {"memory_bandwidth_bytes_per_s": 20.0 * GB, "compute_flop_per_s": 1e12}


@pytest.mark.parametrize(
    ("fields", "share", "told"),
    [
        ({}, 0.71, "memory-bound at 71% of this host's limit"),
        ({"decode_tokens_per_s": 4.0}, 0.4, "decodes at 40% of this host's memory limit"),
        ({"decode_tokens_per_s": 1.2}, 0.12, "far below this host's memory limit (12%): check the execution provider"),
        ({"decode_tokens_per_s": 12.0, "size_bytes": GB // 10}, 0.06, "a model this small is bound by other work"),
        ({"decode_tokens_per_s": 260.0, "size_bytes": GB // 10}, 1.3, "its weights stay in the caches"),
        ({"decode_tokens_per_s": 13.0}, 1.3, "measure the limit again"),
    ],
)
def test_decoding_reads_every_weight_for_every_token(fields: dict[str, Any], share: float, told: str) -> None:
    found = efficiency(CASE | fields, LIMITS, None)
    assert found.decode_ratio == pytest.approx(share)
    assert found.sentence
    assert told in found.sentence
    assert found.reason is None


def test_a_gpu_is_held_against_its_own_memory() -> None:
    found = efficiency(CASE | {"device": "gpu", "decode_tokens_per_s": 100.0}, LIMITS, 400.0 * GB)
    assert (found.decode_ratio, found.sentence) == (0.5, "decodes at 50% of this device's memory limit")


@pytest.mark.parametrize(
    ("fields", "limits", "reason"),
    [
        ({}, None, "`benchfleet doctor HOST --measure`"),
        ({}, {"memory_bandwidth_bytes_per_s": 0.0}, "`benchfleet doctor HOST --measure`"),
        ({"device": "gpu"}, LIMITS, "the device's memory bandwidth is unknown"),
        ({"device": None}, LIMITS, "the device is unknown"),
        ({"concurrency": 2}, LIMITS, "several requests at once"),
        ({"request_rate_per_s": 1.0}, LIMITS, "several requests at once"),
        ({"size_bytes": None}, LIMITS, "size is unknown"),
        ({"decode_tokens_per_s": None}, LIMITS, "no decode rate"),
        ({"remote": True}, LIMITS, "another machine"),
    ],
)
def test_an_unknown_share_has_its_reason(fields: dict[str, Any], limits: dict[str, Any] | None, reason: str) -> None:
    found = efficiency(CASE | fields, limits, None)
    assert (found.decode_ratio, found.sentence) == (None, None)
    assert found.reason
    assert reason in found.reason


def test_prefill_is_told_where_the_name_says_how_many_weights_there_are() -> None:
    case = CASE | {"size_bytes": 4 * GB, "prefill_tokens_per_s": 40.0, "variant": "phi-fp16-cpu:1"}
    assert efficiency(case, LIMITS, None).prefill_ratio == pytest.approx(2 * 2e9 * 40 / 1e12)
    assert efficiency(case | {"variant": "phi-generic-cpu:1"}, LIMITS, None).prefill_ratio is None


@pytest.mark.parametrize(
    ("variant", "weights"),
    [
        ("phi-3.5-mini-int4-cpu", 9 / 4.5 * 8), ("m-q4_k_m", 9 / 4.5 * 8), ("m-Q8_0", 9 / 8.5 * 8), ("m:bf16", 4.5),
        ("m-fp32", 2.25), ("faq4you", None), ("", None), (None, None),
    ],
)  # fmt: skip
def test_weights_of_a_model_by_its_name(variant: str | None, weights: float | None) -> None:
    assert parameters_of(9, variant) == (None if weights is None else pytest.approx(weights))
