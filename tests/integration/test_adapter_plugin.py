"""Plug-ins from packages of their own, installed beside a real agent: the documented example, and broken ones."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from integration.conftest import AgentProcess, Benchfleet
from integration.package_index import install_or_skip

pytestmark = pytest.mark.slow

DOCUMENT = Path(__file__).parents[2] / "docs" / "adapters.md"


def code_block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert found
    return found[1]


def install(site: Path, name: str, entry_points: dict[str, str], **modules: str) -> None:
    """What pip would leave behind: the modules and the metadata."""
    for module, source in modules.items():
        (site / f"{module}.py").write_text(source, encoding="utf-8")
    metadata = site / f"{name.replace('-', '_')}-0.1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
    lines = [f"{entry} = {value}" for entry, value in entry_points.items()]
    (metadata / "entry_points.txt").write_text("\n".join(["[benchfleet.runtimes]", *lines, ""]))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "site"
    directory.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(directory))  # the agents' environment is this process's
    return directory


@pytest.fixture
def echo(site: Path) -> None:
    project = tomllib.loads(code_block("toml"))["project"]
    install(site, project["name"], project["entry-points"]["benchfleet.runtimes"], echo_adapter=code_block("python"))


def cases_of(benchfleet: Benchfleet, *arguments: str, code: int = 0) -> list[dict[str, Any]]:
    done = benchfleet("run", "--rounds", "2", "--warmup", "1", "--max-tokens", "8", *arguments)
    assert done.returncode == code, done.stderr
    return benchfleet.show()


def test_the_documented_adapter_is_benchmarked_as_any_runtime(
    echo: None, make_agent: Callable[..., AgentProcess], benchfleet: Benchfleet
) -> None:
    agent = make_agent()
    models = ("--model", "echo-slow", "--model", "echo-fast")
    cases = cases_of(benchfleet, "--host", f"lab={agent.address}", "--runtime", "echo", *models)
    by_variant = {case["variant"]: case for case in cases}
    assert set(by_variant) == {"echo-slow", "echo-fast"}
    for case in cases:
        assert (case["status"], case["device"], case["runtime"]) == ("succeeded", "cpu", "echo")
        assert case["load_s"] is not None
        assert case["unload_s"] is not None
        assert case["ram_peak_bytes"] > 5_000_000
    rows = benchfleet.rows(
        "SELECT c.variant, r.status, r.output_tokens, r.tokens_source, r.accounting, r.finish_reason, r.chunks, "
        "r.itl_s FROM request_metrics r JOIN cases c USING (case_id) WHERE NOT r.warmup"
    )
    assert len(rows) == sum(case["requests"] for case in cases)
    for variant, *found, gaps in rows:
        assert found == ["ok", 8, "usage", "consistent", "length", 8]
        if variant == "echo-slow":  # it sleeps 50 ms before each: together the gaps cannot be shorter
            assert sum(gaps) >= 7 * 0.045
    assert not agent.child_pids("adapter_server")


@pytest.mark.timeout(900)
def test_the_documented_package_is_built_and_installed_by_pip_and_found_by_an_agent(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "echo_adapter.py").write_text(code_block("python"), encoding="utf-8")
    (source / "pyproject.toml").write_text(code_block("toml"), encoding="utf-8")
    python = venv_beside_ours(tmp_path / "venv")
    install_or_skip(python, str(source))
    shown = subprocess.run(
        [python, "-m", "benchfleet_agent", "doctor"], check=False, capture_output=True, text=True, timeout=120
    ).stdout
    assert re.search(r"runtime echo.*version 0\.1\.0", shown), shown


def venv_beside_ours(directory: Path) -> str:
    """The interpreter of a fresh environment that sees this one's packages; what is installed there stays there."""
    venv.create(directory)
    python = directory / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    (site,) = directory.glob("Lib/site-packages" if os.name == "nt" else "lib/python*/site-packages")
    # As a .pth file: unlike PYTHONPATH it also makes editable installs of that environment visible.
    (site / "ours.pth").write_text(
        "".join(f"import site; site.addsitedir({path!r})\n" for path in sys.path if path.endswith("site-packages"))
    )
    return str(python)


def test_the_documented_adapter_is_listed_with_what_it_says(
    echo: None, make_agent: Callable[..., AgentProcess], benchfleet: Benchfleet
) -> None:
    done = benchfleet("models", f"lab={make_agent().address}", "--format", "json")
    assert done.returncode == 0, done.stderr
    (slow,) = [row for row in json.loads(done.stdout) if row["variant"] == "echo-slow"]
    assert (slow["runtime"], slow["device"], slow["context_length"]) == ("echo", "cpu", 4096)


def test_broken_plugins_say_why_and_harm_nobody(
    echo: None, site: Path, make_agent: Callable[..., AgentProcess], benchfleet: Benchfleet
) -> None:
    install(
        site,
        "broken-things",
        {
            "missing": "no_such_module:Adapter",
            "shapeless": "broken_things:Shapeless",
            "deadly": "deadly_import:Adapter",
            "foundry": "echo_adapter:EchoAdapter",
            "unloadable": "broken_things:Unloadable",
        },
        broken_things=(
            "class Shapeless:\n    def load(self): pass\n\n"
            "class Unloadable:\n    def load(self, model_id): raise FileNotFoundError('weights.bin')\n"
            "    def generate(self, messages, max_tokens, **sampling): return ''\n"
        ),
        deadly_import="import os\nos._exit(3)\n",
    )
    agent = make_agent()
    done = benchfleet("doctor", f"lab={agent.address}", "--format", "json")
    findings = {row["check"]: row for row in json.loads(done.stdout)}

    def said(check: str) -> str:
        assert findings[check]["severity"] == "error"
        return str(findings[check]["message"])

    assert findings["runtime echo"]["severity"] == "ok"
    assert "version 0.1.0" in findings["runtime echo"]["message"]

    assert "No module named 'no_such_module'" in said("runtime missing")
    assert "no generate" in said("runtime shapeless")
    assert "exited with code 3" in said("runtime deadly")
    assert "belongs to benchfleet's own" in said("runtime foundry (broken-things)")
    (case,) = cases_of(
        benchfleet, "--host", f"lab={agent.address}", "--runtime", "unloadable", "--model", "any", code=1
    )
    assert (case["status"], case["reason"]) == ("failed", "load_failed")
    assert "weights.bin" in case["message"]
    (good,) = cases_of(benchfleet, "--host", f"lab={agent.address}", "--runtime", "echo", "--model", "echo-fast")
    assert good["status"] == "succeeded"


MOODY = """
import os, time

class Moody:
    def load(self, model_id):
        self.mood = model_id
        if model_id == "sleeper":
            time.sleep(600)

    def generate(self, messages, max_tokens, **sampling):
        print("an adapter may print", flush=True)
        if self.mood == "refuses":
            raise ValueError("no answer today")
        yield "one "
        if self.mood == "stumbles":
            raise ValueError("lost the thread")
        if self.mood == "dies":
            os._exit(9)
        yield "two"
"""


def test_an_adapters_moods_are_told_apart(
    site: Path, make_agent: Callable[..., AgentProcess], benchfleet: Benchfleet
) -> None:
    install(site, "moody", {"moody": "moody:Moody"}, moody=MOODY)
    agent = make_agent()
    moods = ("refuses", "stumbles", "dies", "sleeper", "content")
    done = benchfleet(
        "run", "--host", f"lab={agent.address}", "--runtime", "moody", *(f"--model={mood}" for mood in moods),
        "--rounds", "1", "--warmup", "0", "--load-timeout", "2",
    )  # fmt: skip
    assert done.returncode == 1, done.stderr

    cases = {case["variant"]: (case["status"], case["reason"], case["message"] or "") for case in benchfleet.show()}
    requests: dict[str, set[tuple[Any, ...]]] = {mood: set() for mood in moods}
    rows = "SELECT c.variant, r.reason, r.message, r.tokens_source, r.text FROM requests r JOIN cases c USING (case_id)"
    for variant, *found in benchfleet.rows(rows):
        requests[variant].add(tuple(found))

    for mood, reason, words in (("refuses", "http_error", "no answer today"), ("stumbles", "stream_error", "lost")):
        assert {found[0] for found in requests[mood]} == {reason}
        assert all(words in found[1] for found in requests[mood])
    for mood, reason, words in (
        ("dies", "runtime_crashed", "exited with code 9"),
        ("sleeper", "load_timeout", "was not loaded within 2 s"),
    ):
        assert cases[mood][:2] == ("failed", reason)
        assert words in cases[mood][2]
    assert cases["content"][0] == "succeeded"
    assert {found[2:] for found in requests["content"]} == {("estimate", "one two")}
    assert not agent.child_pids("adapter_server")
