"""A server that takes a key: the key reaches the server and nobody else, not even when the server repeats it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from fakes.dialects import FakeServer
from integration import conftest
from integration.conftest import AgentProcess, Benchfleet, free_port

pytestmark = pytest.mark.slow

KEY = "sk-benchfleet-0123456789abcdef"
WRONG = "sk-wrong-fedcba9876543210"


class Guarded(ThreadingHTTPServer):
    """Answers whoever knows the key, and repeats every other key in its refusal, as some servers do."""

    daemon_threads = True
    fake = FakeServer("guarded")
    lists_without_key = False
    refusal = 401


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Guarded

    def _any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        shown = self.headers.get("Authorization", "").removeprefix("Bearer ")
        reply = self.server.fake.answer(self.command, self.path, json.loads(body) if body else None)
        if shown != KEY and not (self.server.lists_without_key and self.command == "GET"):
            said = json.dumps({"error": {"message": f"Incorrect API key provided: {shown}."}})
            self._say(self.server.refusal, "application/json", said.encode())
        else:
            self._say(reply.status, reply.kind, reply.data)

    do_GET = do_POST = _any  # noqa: N815 (http.server's names)

    def _say(self, status: int, kind: str, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
        pass


@pytest.fixture
def guarded() -> Iterator[Guarded]:
    with Guarded(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def agent_with(key: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> AgentProcess:
    """An agent that has the key in its environment."""
    plain = conftest.clean_environment
    monkeypatch.setattr(conftest, "clean_environment", lambda: plain(BENCHFLEET_ENDPOINT_API_KEY=key))
    directory.mkdir()
    config = directory / "agent.toml"
    config.write_text("[runtime.foundry]\noffline = true\n")
    agent = AgentProcess(directory, config, f"127.0.0.1:{free_port()}")
    agent.start()
    monkeypatch.undo()
    return agent


class CommandLines(threading.Thread):
    """Reads the command lines of an agent's processes for as long as it is asked to."""

    def __init__(self, agent: AgentProcess) -> None:
        super().__init__(daemon=True)
        assert agent.process is not None
        self._process = psutil.Process(agent.process.pid)
        self._done = threading.Event()
        self.seen: set[str] = set()
        self.environments: dict[str, bool] = {}

    def run(self) -> None:
        while not self._done.wait(0.02):
            for child in (self._process, *self._process.children(recursive=True)):
                try:
                    line = " ".join(child.cmdline())
                    self.seen.add(line)
                    self.environments[line] = "BENCHFLEET_ENDPOINT_API_KEY" in child.environ()
                except psutil.Error:
                    continue

    def stop(self) -> None:
        self._done.set()
        self.join()


def run(benchfleet: Benchfleet, agent: AgentProcess, server: Guarded) -> tuple[str, CommandLines]:
    """A run against the server; what the command line printed and what it wrote as reports."""
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    watcher = CommandLines(agent)
    watcher.start()
    done = benchfleet(
        "run", "--host", f"lab={agent.address}", "--endpoint", url, "--model", "guarded", "--rounds", "5",
        "--warmup", "1", "--max-tokens", "8",
    )  # fmt: skip
    watcher.stop()
    said = done.stdout + done.stderr
    if benchfleet.database.exists():
        for command in (("show", "last", "--format", "json"), ("report", "last", "-o", "report.md")):
            more = benchfleet(*command[:-1], str(benchfleet.database.parent / command[-1])) if "-o" in command else (
                benchfleet(*command)
            )  # fmt: skip
            said += more.stdout + more.stderr
    return said, watcher


def assert_nowhere(key: str, directory: Path, benchfleet: Benchfleet, said: str, watcher: CommandLines) -> None:
    assert key not in said
    assert any("benchfleet_agent.load" in line for line in watcher.seen) or "succeeded" not in said
    assert not [line for line in watcher.seen if key in line]
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert any(path.suffix in (".db", ".sqlite", ".sqlite3") for path in files), files  # the journal is among them
    assert not [path for path in files if key.encode() in path.read_bytes()]
    if benchfleet.database.exists():
        for (table,) in benchfleet.rows("SELECT table_name FROM duckdb_tables()"):  # its pages may be compressed
            assert not [row for row in benchfleet.rows(f'SELECT t::VARCHAR FROM "{table}" t') if key in row[0]]


def test_a_key_reaches_the_server_and_nothing_else(
    tmp_path: Path, benchfleet: Benchfleet, guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = agent_with(KEY, tmp_path / "agent", monkeypatch)
    try:
        said, watcher = run(benchfleet, agent, guarded)
        (case,) = benchfleet.show()
        assert case["status"] == "succeeded", said
        assert_nowhere(KEY, tmp_path, benchfleet, said, watcher)
        held = {line for line, holds in watcher.environments.items() if holds}
        assert all("benchfleet-agent" in line for line in held), held  # its children are told what they need
    finally:
        agent.kill()


@pytest.mark.parametrize(("lists_without_key", "refusal"), [(True, 401), (False, 401), (False, 400)])
def test_a_wrong_key_is_told_of_and_not_told(
    tmp_path: Path,
    benchfleet: Benchfleet,
    guarded: Guarded,
    monkeypatch: pytest.MonkeyPatch,
    lists_without_key: bool,
    refusal: int,
) -> None:
    guarded.lists_without_key, guarded.refusal = lists_without_key, refusal
    agent = agent_with(WRONG, tmp_path / "agent", monkeypatch)
    try:
        said, watcher = run(benchfleet, agent, guarded)
        assert f"HTTP {refusal}" in said
        assert_nowhere(WRONG, tmp_path, benchfleet, said, watcher)
    finally:
        agent.kill()
