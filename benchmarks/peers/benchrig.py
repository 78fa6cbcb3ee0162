"""benchrig: its Foundry runtime takes any OpenAI-compatible base URL; one request at a time."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.peers.answers import Answer
from benchmarks.peers.client import MODEL, Client, Command, Load
from benchmarks.peers.raw_socket import PROMPT


def command(programs: Path, load: Load, folder: Path) -> Command:
    """A configuration and a scenario for each request, because repetitions of one cost a pause each."""
    config = {
        "foundry": {
            "base_url": f"{load.server}/v1",
            "auto_detect_port": False,
            "timeout_sec": 60,
            "warmup": True,
            "unload_after_test": False,
        },
        "benchmark": {"default_runs": 1, "default_runtime": "foundry"},
        "hardware": {"sample_interval_sec": 0.15},
    }
    scenarios = [
        {
            "id": f"s{number}",
            "name": f"request {number}",
            "prompt": PROMPT,
            "options": {"temperature": 0, "num_predict": load.tokens},
        }
        for number in range(load.requests)
    ]
    (folder / "config.yaml").write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    (folder / "scenarios").mkdir()
    (folder / "scenarios" / "speed.json").write_text(json.dumps(scenarios), encoding="utf-8")
    files = ("--config", str(folder / "config.yaml"), "--scenarios-dir", str(folder / "scenarios"))
    what = ("--runtime", "foundry", "--models", f"foundry:{MODEL}", "--suite", "speed", "--runs", "1")
    return Command((str(programs / "benchrig"), *files, *what, "--output-dir", str(folder / "out")))


def parse(text: str) -> list[Answer]:
    """``runs/*.json``: TTFT in whole milliseconds and a decode rate; no time between tokens."""
    results = [result for result in json.loads(text)["results"] if result["success"]]
    return [Answer(one["ttft_sec"], None, tokens_per_s=one["eval_tok_per_sec"]) for one in results]


CLIENT = Client("benchrig", ("benchrig==0.2.0",), command, "out/runs/*.json", parse, warm_up=1, maximum_concurrency=1)
