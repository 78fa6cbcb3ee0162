"""AIPerf: ``aiperf profile`` with a local tokenizer, client-side token counts (its default)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.peers.answers import Answer
from benchmarks.peers.client import MODEL, Client, Command, Load

WARM_UP = 2


def command(programs: Path, load: Load, folder: Path) -> Command:
    """`--ui none` and no scraping: nothing but the requests. With HF_HUB_OFFLINE set it finds no local tokenizer."""
    options = {
        "model": MODEL,
        "url": load.server,
        "endpoint-type": "chat",
        "tokenizer": load.tokenizer,
        "isl": 64,
        "osl": load.tokens,
        "request-count": load.requests,
        "warmup-request-count": WARM_UP,
        "concurrency": load.concurrency,
        "random-seed": 42,
        "ui": "none",
        "artifact-dir": folder / "out",
    }
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    switches = ("--streaming", "--no-gpu-telemetry", "--no-server-metrics")
    return Command(
        (str(programs / "aiperf"), "profile", *arguments, *switches),
        without=("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"),
    )


def parse(text: str) -> list[Answer]:
    """``profile_export.jsonl``: one request a line, in milliseconds."""
    lines = sorted(map(json.loads, text.splitlines()), key=lambda line: line["metadata"]["request_start_ns"])
    counted = [line for line in lines if line["metadata"]["benchmark_phase"] == "profiling" and not line.get("error")]
    return [_answer(line["metrics"]) for line in counted]


def _answer(metrics: dict[str, Any]) -> Answer:
    def seconds(name: str) -> float | None:
        return metrics[name]["value"] / 1e3 if name in metrics else None

    gaps_s = tuple(gap_ms / 1e3 for gap_ms in metrics.get("inter_chunk_latency", {}).get("value", ()))
    rate = metrics.get("output_token_throughput_per_user", {}).get("value")
    return Answer(seconds("time_to_first_token"), seconds("inter_token_latency"), gaps_s, rate)


CLIENT = Client("AIPerf", ("aiperf==0.13.0",), command, "out/profile_export.jsonl", parse, warm_up=WARM_UP)
