"""Real agents and the real command line, each a process of its own, with the tiny model and a fresh database."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

BIN = Path(sys.executable).parent
SEED_VARIABLES = ("BENCH_", "FOUNDRY_LOCAL_", "BENCHFLEET_")


def clean_environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(SEED_VARIABLES)}
    return {**kept, "CI": "1", **more}


def wait_until(condition: Callable[[], object], timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"timed out waiting until {what}"
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class AgentProcess:
    data_dir: Path
    config: Path
    address: str
    flags: list[str] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [str(BIN / "benchfleet-agent"), "serve", "--listen", self.address, "--data-dir", str(self.data_dir)]
        command += ["--config", str(self.config), *self.flags]
        with (self.data_dir / "agent.log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=clean_environment(),
                start_new_session=True,
            )
        wait_until(self._listens, 30, f"the agent listens; {self.log()}")

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(60)

    def log(self) -> str:
        return (self.data_dir / "agent.log").read_text(errors="replace")

    def load_pids(self) -> list[int]:
        """The load process, without the process that counts tokens for it."""
        return [pid for pid in self.child_pids("benchfleet_agent.load") if pid not in self.child_pids("token_counter")]

    def child_pids(self, word: str) -> list[int]:
        """Pids of this agent's living children whose command line holds a word."""
        assert self.process is not None
        import psutil

        found = []
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if word in " ".join(child.cmdline()) and child.status() != psutil.STATUS_ZOMBIE:
                        found.append(child.pid)
        return found

    def _listens(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log()
        host, _, port = self.address.rpartition(":")
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1):
            return True
        return False


@pytest.fixture(scope="session")
def reference_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache directory with the tiny model in it."""
    from benchfleet_agent import reference_model

    cache = tmp_path_factory.mktemp("cache")
    command = [sys.executable, "-m", "benchfleet_agent.reference_model", "build", "--cache-dir", str(cache)]
    subprocess.run([*command, "--variant", reference_model.TINY_VARIANT], check=True, capture_output=True, timeout=60)
    return cache


@pytest.fixture
def make_agent(tmp_path: Path, reference_cache: Path) -> Iterator[Callable[..., AgentProcess]]:
    """Start agents; all are killed afterwards."""
    with agents_in(tmp_path, reference_cache) as make:
        yield make


@pytest.fixture(scope="session")
def shared_agent(tmp_path_factory: pytest.TempPathFactory, reference_cache: Path) -> Iterator[AgentProcess]:
    """An agent for tests that ask it for no more than work: starting one takes a second of processor time."""
    with agents_in(tmp_path_factory.mktemp("shared"), reference_cache) as make:
        yield make()


@contextlib.contextmanager
def agents_in(folder: Path, reference_cache: Path) -> Iterator[Callable[..., AgentProcess]]:
    """What starts agents with their data in a folder; those that still run at the end are killed."""
    made: list[AgentProcess] = []

    def make(name: str = "agent", *flags: str, start: bool = True) -> AgentProcess:
        data_dir = folder / name
        data_dir.mkdir()
        config = data_dir / "agent.toml"
        config.write_text(
            f"reference_cache_dir = {json.dumps(str(reference_cache))}\n[runtime.foundry]\noffline = true\n"
        )
        agent = AgentProcess(data_dir, config, f"127.0.0.1:{free_port()}", list(flags))
        made.append(agent)
        if start:
            agent.start()
        return agent

    yield make
    for agent in made:
        if agent.process is not None and agent.process.poll() is None:
            agent.kill()


@dataclass
class Benchfleet:
    """The command line with one database."""

    database: Path
    empty: Path | None = None
    """A new database, copied where a run would make one: that takes half a second each time."""
    spawned: bool = True
    """Whether each call is a process of its own; else the command's own function is called, in a third of the time."""

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(BIN / "benchfleet"), *self._completed(arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=clean_environment(**environment),
        )

    def __call__(self, *arguments: str, timeout_s: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
        if self.spawned:
            process = self.start(*arguments, **environment)
            out, err = process.communicate(timeout=timeout_s)
            done = subprocess.CompletedProcess(process.args, process.returncode, out, err)
        else:
            done = called(self._completed(arguments), clean_environment(**environment))
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def _completed(self, arguments: tuple[str, ...]) -> list[str]:
        command = list(arguments)
        if arguments[:1] == ("run",) and "--certificate" not in arguments:
            command.append("--no-certificate")  # seconds that only its own tests need
        if arguments[:1] == ("run",) and self.empty and not self.database.exists():
            shutil.copy(self.empty, self.database)
        if arguments[:1] == ("run",) and "--idle-baseline" not in arguments:
            command += ["--idle-baseline", "0"]  # nor these, on machines that tell their power
        if arguments and not arguments[0].startswith("-"):
            command += ["--db", str(self.database)]
        return command

    def show(self, run: str = "last") -> list[dict[str, Any]]:
        """What ``benchfleet show --format json`` prints."""
        done = called(["show", run, "--format", "json", "--db", str(self.database)], clean_environment())
        assert done.returncode == 0, done.stderr
        cases: list[dict[str, Any]] = json.loads(done.stdout)
        return cases

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Ask the database itself, as a user with the duckdb command line would: again while a run has it open."""
        import duckdb

        deadline = time.monotonic() + 20
        while True:
            try:
                with duckdb.connect(str(self.database), read_only=True) as connection:
                    return list(connection.execute(sql).fetchall())
            except duckdb.IOException:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)


def called(arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """What `cli.main` does with these arguments, in this process."""
    from benchfleet_controller import cli

    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    with (
        mock.patch.dict(os.environ, environment, clear=True),
        Path(os.devnull).open() as nothing,
        mock.patch.object(sys, "stdin", nothing),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            code = cli.main(arguments)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
    texts = [stream.buffer.getvalue().decode() for stream in (out, err)]
    return subprocess.CompletedProcess(["benchfleet", *arguments], code, *texts)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from benchfleet_controller.store import Store

    path = tmp_path_factory.mktemp("empty") / "empty.duckdb"
    Store(path).mark_released(())
    return path


@pytest.fixture
def benchfleet(tmp_path: Path, empty_database: Path | None, request: pytest.FixtureRequest) -> Benchfleet:
    """A new database; commands are processes of their own where the test's file says so (``SPAWNED = True``)."""
    spawned = bool(getattr(request.module, "SPAWNED", False))
    return Benchfleet(tmp_path / "results.duckdb", empty_database, spawned)
