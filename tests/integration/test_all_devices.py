"""One command, every device: an adapter that offers one model for a CPU and, twice, for a GPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from integration.conftest import AgentProcess, Benchfleet
from integration.test_adapter_plugin import install

pytestmark = pytest.mark.slow

MANY = """
import time

class Many:
    KINDS = {"tiny-cpu:1": ("cpu", "CPU"), "tiny-cuda:1": ("gpu", "CUDA"), "tiny-webgpu:1": ("gpu", "WebGPU")}

    def models(self):
        return [{"id": name, "alias": "tiny", "device": device, "execution_provider": ep}
                for name, (device, ep) in self.KINDS.items()]

    def load(self, model_id):
        self.execution_provider = self.KINDS[model_id][1]
        self.pause_s = 0.012 if model_id == "tiny-cpu:1" else 0.004
        self.odd = model_id == "tiny-webgpu:1"

    def generate(self, messages, max_tokens, **sampling):
        for n in range(max_tokens):
            time.sleep(self.pause_s)
            yield "other " if self.odd and n == 3 else f"{len(messages[-1]['content'])} "
        yield {"prompt_tokens": 5, "completion_tokens": max_tokens, "finish_reason": "length"}
"""


def test_all_devices_run_in_blocks_and_end_with_speedup_and_equal_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_agent: Callable[..., AgentProcess], benchfleet: Benchfleet
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(site))
    install(site, "many-devices", {"many": "many_devices:Many"}, many_devices=MANY)
    agent = make_agent()

    done = benchfleet(
        "run", "--host", f"lab={agent.address}", "--runtime", "many", "--model", "tiny", "--device", "all",
        "--rounds", "3", "--warmup", "0", "--max-tokens", "8", "--prompt", "Hello.", "--prompt", "Go on.",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr

    assert benchfleet.rows("SELECT count(*), bool_and(deterministic) FROM cases") == [(6, True)]
    cases = benchfleet.show()
    assert sorted((case["variant"], case["rounds"]) for case in cases) == [
        ("tiny-cpu:1", 3), ("tiny-cuda:1", 3), ("tiny-webgpu:1", 3),
    ]  # fmt: skip
    lines = {name: line for line in done.stdout.splitlines() for name in ("gpu / CUDA", "gpu / WebGPU") if name in line}
    assert "6 of 6, 100%" in next(line for line in done.stdout.splitlines() if "gpu / CUDA" in line and " of " in line)
    odd = next(line for line in done.stdout.splitlines() if "gpu / WebGPU" in line and " of " in line)
    assert "0 of 6, 0%" in odd
    assert "median 3, least 3" in odd
    assert " × (" in odd
    assert len(lines) == 2
    compared = json.loads(benchfleet("compare", "--by", "device,ep", "--format", "json").stdout)
    rows = compared["rows"] if isinstance(compared, dict) else compared
    assert {row["group"]: row["rounds"] for row in rows if row["metric"] == "decode_tokens_per_s"} == {
        "cpu / CPU": 3, "gpu / CUDA": 3, "gpu / WebGPU": 3,
    }  # fmt: skip
