"""guidellm: on request only, its environment takes 6 GB."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.peers.answers import Answer
from benchmarks.peers.client import MODEL, Client, Command, Load


def command(programs: Path, load: Load, folder: Path) -> Command:
    """One stream after the other, or that many side by side."""
    profile = "kind=synchronous" if load.concurrency == 1 else f"kind=concurrent,streams={load.concurrency}"
    options = {
        "backend": f"kind=openai_http,target={load.server},model={MODEL}",
        "profile": profile,
        "constraint": f"kind=max_requests,count={load.requests}",
        "tokenizer": f"kind=hf_auto,model={load.tokenizer}",
        "data": f"kind=synthetic_text,prompt_tokens=64,output_tokens={load.tokens}",
        "seed": "kind=static,value=42",
        "output": f"kind=json,path={folder / 'out.json'}",
    }
    arguments = [text for name, value in options.items() for text in (f"--{name}", value)]
    return Command((str(programs / "guidellm"), "run", *arguments, "--disable-progress"))


def parse(text: str) -> list[Answer]:
    """The JSON report: one object a successful request, times in milliseconds."""
    requests = json.loads(text)["benchmarks"][0]["requests"]["successful"]
    requests.sort(key=lambda one: one["request_start_time"])
    return [_answer(one["time_to_first_token_ms"], one["inter_token_latency_ms"]) for one in requests]


def _answer(ttft_ms: float | None, itl_ms: float | None) -> Answer:
    return Answer(
        None if ttft_ms is None else ttft_ms / 1e3,
        None if itl_ms is None else itl_ms / 1e3,
        tokens_per_s=1e3 / itl_ms if itl_ms else None,
    )


CLIENT = Client("guidellm", ("guidellm==0.8.1",), command, "out.json", parse)
