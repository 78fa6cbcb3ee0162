"""genai-bench: locust users; each request opens a connection of its own."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.peers.answers import Answer
from benchmarks.peers.client import MODEL, Client, Command, Load


def command(programs: Path, load: Load, folder: Path) -> Command:
    """Without its dashboard. It stops a little after the number of requests asked for."""
    options = {
        "api-backend": "openai",
        "api-base": load.server,
        "api-key": "none",
        "api-model-name": MODEL,
        "model-tokenizer": load.tokenizer,
        "task": "text-to-text",
        "traffic-scenario": f"D(64,{load.tokens})",
        "num-concurrency": load.concurrency,
        "max-time-per-run": 2,
        "max-requests-per-run": load.requests,
        "experiment-base-dir": folder / "out",
    }
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    offline = {"ENABLE_UI": "false", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "agg"}
    return Command((str(programs / "genai-bench"), "benchmark", *arguments), environment=offline)


def parse(text: str) -> list[Answer]:
    """``D*.json``: one object a request, in seconds, in the order of finishing."""
    requests = [one for one in json.loads(text)["individual_request_metrics"] if one["error_code"] is None]
    return [Answer(one["ttft"], one["tpot"], tokens_per_s=one["output_inference_speed"]) for one in requests]


CLIENT = Client("genai-bench", ("genai-bench==0.0.5",), command, "out/*/D*.json", parse)
