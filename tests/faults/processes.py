"""The processes of a trial: an agent, command lines, the recording server. All are ended by whoever made them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

BIN = Path(sys.executable).parent
SERVER = Path(__file__).with_name("server.py")
# Names that Windows lacks, where nothing of this runs.
SIGSTOP, SIGCONT = getattr(signal, "SIGSTOP", signal.SIGTERM), getattr(signal, "SIGCONT", signal.SIGTERM)
SIGKILL = getattr(signal, "SIGKILL", signal.SIGTERM)
OWN_VARIABLES = ("BENCH_", "FOUNDRY_LOCAL_", "BENCHFLEET_")


class TrialFailed(Exception):
    """The program did something that no promise allows, or did not do what it must within its time."""


def environment(**more: str) -> dict[str, str]:
    """This process's environment without what steers benchfleet."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OWN_VARIABLES)}
    return {**kept, "CI": "1", **more}


def wait_until(condition: Callable[[], object], timeout_s: float, what: Callable[[], str] | str) -> None:
    """Wait; raises `TrialFailed`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TrialFailed(f"not within {timeout_s:g} s: {what if isinstance(what, str) else what()}")
        time.sleep(0.005)


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(slots=True)
class AgentProcess:
    """One agent and its data directory, which outlives it."""

    data_dir: Path
    host: str = "127.0.0.1"
    port: int = field(default_factory=free_port)
    flags: Sequence[str] = ()
    prefix: Sequence[str] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    config: str = ""
    process: subprocess.Popen[bytes] | None = None
    _heard: int = 0

    def start(self) -> None:
        """Start and wait until it listens. Raises `TrialFailed` with its last words when it ends instead."""
        self.launch()
        wait_until(self._listens, 40, lambda: f"the agent listens; {self.log()[-2000:]}")

    def launch(self) -> None:
        """Start without waiting."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self._heard = self.log().count("listens on")
        config = self.log_path.with_suffix(".toml")
        config.write_text(self.config)
        command = [*self.prefix, str(BIN / "benchfleet-agent"), "serve", "--listen", f"{self.host}:{self.port}"]
        command += ["--data-dir", str(self.data_dir), "--config", str(config), *self.flags]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(**self.variables),
                start_new_session=True,
            )

    @property
    def log_path(self) -> Path:
        """Beside the data directory, which may be full."""
        return self.data_dir.with_name(f"{self.data_dir.name}.log")

    def log(self) -> str:
        """What it said."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    @property
    def alive(self) -> bool:
        """Whether it runs (or is stopped)."""
        return self.process is not None and self.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def children(self, word: str) -> list[psutil.Process]:
        """Its living children whose command line holds a word."""
        found: list[psutil.Process] = []
        if not self.alive or self.process is None:
            return found
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if word in " ".join(child.cmdline()) and child.status() != psutil.STATUS_ZOMBIE:
                        found.append(child)
        return found

    def kill(self, *, tree: bool = False) -> int:
        """SIGKILL it, with all its children if asked; returns the moment just before (CLOCK_MONOTONIC, ns)."""
        assert self.process is not None
        children = self.children("") if tree else []
        moment = time.perf_counter_ns()
        self.process.kill()
        for child in children:
            with contextlib.suppress(psutil.Error):
                child.kill()
        self.process.wait(20)
        return moment

    def stop(self) -> None:
        """End it for good, gently first."""
        if self.process is None or self.process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(SIGCONT)
            self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill(tree=True)

    def _listens(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise TrialFailed(f"the agent ended with {self.process.returncode}: {self.log()[-1500:]}")
        if self.prefix:  # in another network namespace: only its log can be seen from here
            return self.log().count("listens on") > self._heard
        with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), 1):
            return True
        return False


@dataclass(slots=True)
class Finished:
    """A command line that ended."""

    code: int
    out: str
    err: str


class Command:
    """A running ``benchfleet``."""

    def __init__(self, *arguments: str, log: Path, prefix: Sequence[str] = (), variables: Mapping[str, str]) -> None:
        self._out, self._err = log.with_suffix(".out"), log.with_suffix(".err")
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [*prefix, str(BIN / "benchfleet"), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=environment(**variables),
                start_new_session=True,
            )

    @property
    def text(self) -> str:
        """What it said so far."""
        return self._err.read_text(errors="replace")

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL it."""
        self.process.kill()
        self.process.wait(20)

    def wait(self, timeout_s: float) -> Finished:
        """Wait for its end. Raises `TrialFailed` when it does not come, or comes with a traceback."""
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise TrialFailed(f"no end within {timeout_s:g} s: {self.text[-1500:]}") from None
        done = Finished(code, self._out.read_text(errors="replace"), self.text)
        if "Traceback" in done.err:
            raise TrialFailed(f"a traceback: {done.err[-3000:]}")
        return done


class ServerProcess:
    """The recording server and its record."""

    def __init__(self, record: Path, seed: int, *, prefix: Sequence[str] = ()) -> None:
        self._record = record
        self._process = subprocess.Popen(
            [*prefix, sys.executable, str(SERVER), "--record", str(record), "--seed", str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self.port = int(json.loads(self._process.stdout.readline())["port"])

    @property
    def url(self) -> str:
        """For ``--endpoint``."""
        return f"http://127.0.0.1:{self.port}/v1"

    def record(self) -> str:
        """What it wrote down so far, whole lines."""
        text = self._record.read_text()
        return text[: text.rfind("\n") + 1]

    def answered(self) -> int:
        """Answers that left completely so far."""
        return self.record().count('"answered_ns"')

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait(10)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
