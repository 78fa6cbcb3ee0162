from __future__ import annotations

import pytest

from benchfleet_controller.metrics import BY_NAME, CASE_METRICS, DEFAULT_COMPARED, human_bytes


def test_names_are_unique_and_end_in_their_unit() -> None:
    endings = {"s": "_s", "tokens/s": "_per_s", "bytes": "_bytes", "ratio": "_ratio", "J": "_j", "1/s": "_per_s"}
    endings |= dict.fromkeys(("kWh/1M tokens", "price/1M tokens"), "_per_million_tokens")
    assert len(BY_NAME) == len(CASE_METRICS)
    assert all(metric.name.endswith(endings[metric.unit]) for metric in CASE_METRICS)
    assert all(metric.quantile is None or metric.n_column for metric in CASE_METRICS)
    assert set(DEFAULT_COMPARED) <= set(BY_NAME)


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1020 * 1024, "1020 KiB"), (3 << 40, "3 TiB")]
)
def test_bytes_for_people(value: int, text: str) -> None:
    assert human_bytes(value) == text


def test_unmeasured_is_a_dash() -> None:
    assert [BY_NAME[n].human(v) for n, v in (("energy_j", None), ("ttft_p50_s", 0.12345), ("gpu_busy_ratio", 0.5))] == [
        "–", "0.123", "50%",
    ]  # fmt: skip
