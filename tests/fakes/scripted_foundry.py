"""A Foundry Local child that answers from a script, and the fixtures that put it in the real one's place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchfleet_agent import reference_model
from benchfleet_agent.child import ChildGone, Message
from benchfleet_agent.runtimes import foundry, foundry_child, foundry_link, foundry_session
from benchfleet_agent.runtimes.foundry_link import FoundrySettings as Settings

REFERENCE, TINY = "smollm2-135m-instruct-generic-cpu:1", "tiny-random-generic-cpu:1"
CATALOG = [
    ("phi-4-mini-generic-cpu:2", "cpu", "CPUExecutionProvider"),
    ("phi-4-mini-generic-cpu:10", "cpu", "CPUExecutionProvider"),
    ("phi-4-mini-generic-gpu:2", "gpu", "WebGpuExecutionProvider"),
    ("phi-4-mini-cuda-gpu:2", "gpu", "CUDAExecutionProvider"),
]
ENTRY = {"alias": "phi-4-mini", "license": "MIT", "context_length": 9, "capabilities": ["chat"]}
LISTING = [{**ENTRY, "variant": v, "device": d, "execution_provider": ep} for v, d, ep in CATALOG]
Script = Mapping[str, list[Message] | Exception]
GOOD: Script = {
    "start": [{"event": "started", "pid": 7, "versions": {}, "cpus": []}],
    "register": [{"event": "registered", "variant": TINY, "replaced": False}],
    "register_eps": [{"event": "eps_registered", "names": []}],
    "load": [{"event": "loaded", "load_ns": 5_000_000, "device": None, "execution_provider": "CPUExecutionProvider"}],
    "serve": [{"event": "serving", "url": "http://127.0.0.1:4711"}],
    "unload": [{"event": "unloaded", "duration_ns": 7}],
    "describe": [{"event": "description", "versions": {}, "eps": []}],
    "models": [{"event": "models", "models": LISTING}],
    "download": [{"event": "progress", "message": "x", "fraction": 0.5}, {"event": "downloaded", "already": False}],
}


class ScriptedChild:
    """Stands in for `benchfleet_agent.child.Child`: answers each command from a script."""

    script: Script = GOOD
    made: list[ScriptedChild] = []  # noqa: RUF012 (emptied by the fixture)

    def __init__(self, name: str, command: list[str], *, log_path: Path) -> None:
        self.name, self.command, self.log_path = name, command, log_path
        self.pid, self.running, self.returncode = 4000 + len(self.made), True, None
        self.sent: list[Message] = []
        self.pending: list[Message | Exception] = []
        self.kills = self.stops = 0
        self.made.append(self)
        if "build" in command:
            self._queue("build")

    def send(self, message: Mapping[str, Any]) -> None:
        self.sent.append(dict(message))
        self._queue(message["do"])

    def _queue(self, name: str) -> None:
        answer = self.script[name]
        self.pending.extend([answer] if isinstance(answer, Exception) else answer)

    def receive(self, timeout_s: float | None) -> Message:
        assert timeout_s is not None
        assert timeout_s >= 0
        if not self.pending and not self.running:
            raise ChildGone(self.name, self.returncode, "last words\n")
        answer = self.pending.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def stop(self, timeout_s: float) -> bool:
        assert timeout_s >= 0
        self.stops += 1
        self.running = False
        return True

    def kill(self) -> None:
        self.kills += 1
        self.running = False


Made = list[ScriptedChild]


def with_script(**changes: list[Message] | Exception) -> None:
    """Change what the next children answer."""
    ScriptedChild.script = {**GOOD, **changes}


@pytest.fixture(autouse=True)
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[Made]:
    """Every child made in a test, in order."""
    ScriptedChild.made.clear()
    ScriptedChild.script = GOOD
    monkeypatch.setattr(foundry_link, "Child", ScriptedChild)
    monkeypatch.setattr(foundry_child, "versions", lambda: {"sdk": "2.2.1", "onnxruntime": "1.31.0"})
    entries = {
        alias: reference_model.ReferenceModel(alias, variant, "mit", 2048, alias, size_bytes=77)
        for alias, variant in (("smollm2-135m", REFERENCE), ("tiny-random", TINY))
    }
    fake = SimpleNamespace(
        MODELS=entries,
        TINY_ALIAS="tiny-random",
        directory=lambda cache, variant: Path(cache) / variant.replace(":", "-"),
        is_built=lambda cache, variant: (Path(cache) / variant.replace(":", "-")).is_dir(),
    )
    monkeypatch.setattr(foundry, "reference_model", fake)
    monkeypatch.setattr(foundry_session, "reference_model", fake)
    yield ScriptedChild.made
    ScriptedChild.made.clear()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """An agent's Foundry Local in an empty directory."""
    return Settings(data_dir=tmp_path / "data", reference_cache_dir=tmp_path / "models", log_dir=tmp_path / "logs")
