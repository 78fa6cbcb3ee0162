"""Rows of results as `results.results_of` gives them, without a database."""

from __future__ import annotations

from typing import Any

GIB = 1 << 30


def case(model: str = "tiny", **fields: Any) -> dict[str, Any]:
    """A case of 5 rounds with 8 requests each; every interval is ±10 % of the value."""
    row: dict[str, Any] = {
        "case_id": f"c-{model}", "run_id": "r1", "host": "a", "runtime": "foundry", "model": model,
        "model_asked": model, "variant": f"{model}:1", "device": "cpu", "device_asked": None,
        "execution_provider": "CPUExecutionProvider", "status": "succeeded", "reason": None, "message": None,
        "prompt_set": "default", "concurrency": 1, "max_tokens": 16, "stream": True, "temperature": 0.0, "top_p": 1.0,
        "rounds": 5, "requests": 40, "failed": 0,
        "ttft_n": 40, "e2e_n": 40, "ttft_p50_s": 0.1, "ttft_p95_s": 0.2, "e2e_p50_s": 0.8, "e2e_p95_s": 1.0,
        "e2e_avg_s": 0.8, "decode_tokens_per_s": 50.0, "output_tokens_per_s": 20.0, "ram_peak_bytes": GIB,
        "vram_peak_bytes": None, "size_bytes": 100_000_000, "license": "MIT", "unmeasured": {},
    }  # fmt: skip
    row |= fields
    timed = ("ttft_p50_s", "ttft_p95_s", "e2e_p95_s", "e2e_avg_s", "decode_tokens_per_s")
    row.setdefault("intervals", {name: row[name] and [0.9 * row[name], 1.1 * row[name]] for name in timed})
    return row
