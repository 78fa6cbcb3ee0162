"""The agent's end of a Foundry Local child: its settings and command line, its answers and endings as failures."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchfleet.failures import Reason, WorkFailed
from benchfleet_agent.child import Child, ChildGone, ChildTimeout, Message
from benchfleet_agent.runtimes import Progress, foundry_child

KEPT_LOGS = 20
_session_numbers = itertools.count(1)
_log = logging.getLogger(__name__)

# Runs the child under another interpreter with only our package visible: putting its parent directory on
# sys.path would show that interpreter the agent's whole site-packages, built for another Python or machine.
_BOOTSTRAP = """
import importlib.util, runpy, sys
name, root = "benchfleet_agent", sys.argv.pop(1)
spec = importlib.util.spec_from_file_location(name, root + "/__init__.py", submodule_search_locations=[root])
sys.modules[name] = package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
runpy.run_module("benchfleet_agent.runtimes.foundry_child", run_name="__main__", alter_sys=True)
"""


@dataclass(frozen=True, slots=True)
class FoundrySettings:
    """Where Foundry Local keeps its things on this host, and which interpreter runs it."""

    data_dir: Path
    """Owned by one agent: the runtime's data and the catalog of registered models."""
    reference_cache_dir: Path
    """Built reference models; may be shared by agents."""
    log_dir: Path
    """What the children and the native library print."""
    model_cache_dir: Path | None = None
    """Downloaded catalog models; point it at an existing cache to avoid downloading again."""
    python: str | None = None
    """Interpreter that has foundry-local-sdk (``runtime.python``); None: the agent's own."""
    catalog_urls: tuple[str, ...] = ()
    """Catalogs to ask instead of the public one; paths end in ``/asset-gallery/v1.0/models``."""
    model_roots: tuple[Path, ...] = ()
    """Directories below which the operator's own models lie."""
    offline: bool = False
    """Ask and fetch nothing; of the catalog's models only those on the host are there."""
    app_name: str = "benchfleet"

    def child_command(self) -> list[str]:
        """The command line of a child."""
        package = str(Path(foundry_child.__file__).parent.parent)
        if self.python is None:
            return [sys.executable, "-P", "-c", _BOOTSTRAP, package]
        return [self.python, "-E", "-P", "-c", _BOOTSTRAP, package]

    @property
    def cache_dir(self) -> Path:
        """Where downloaded catalog models lie."""
        return self.model_cache_dir or self.data_dir / "foundry" / "cache" / "models"

    def start_command(self, cpus: tuple[int, ...], *, local: bool) -> Message:
        """The child's first command."""
        base = self.data_dir / "foundry"
        cache = base / "registered" if local else self.cache_dir
        return {
            "do": "start",
            "app_name": self.app_name,
            "data_dir": str(base),
            "model_cache_dir": str(cache),
            "logs_dir": str(self.log_dir / "foundry"),
            "catalog_urls": list(self.catalog_urls),
            "cpus": list(cpus),
            "offline": self.offline,
        }


class ChildLink:
    """A session's children, one after the other, and what their endings and answers mean as failures."""

    def __init__(self, settings: FoundrySettings, name: str) -> None:
        self._settings = settings
        self._name = name
        self._log_path = settings.log_dir / f"foundry-{os.getpid()}-{next(_session_numbers)}.log"
        self._lock = threading.Lock()
        self._child: Child | None = None
        self._cancelled = threading.Event()
        self._oom_kills: int | None = None

    def spawn(self, command: list[str]) -> None:
        """Start a process. Raises `WorkFailed` ``cancelled`` or ``runtime_unavailable``."""
        try:
            _make_room(self._settings.log_dir)
            with self._lock:  # so that a kill from another thread finds the child, or prevents it
                if self._cancelled.is_set():
                    raise WorkFailed(Reason.CANCELLED, f"{self._name} was ended before it started")
                self._oom_kills = _oom_kills()
                self._child = Child(self._name, command, log_path=self._log_path)
        except OSError as error:
            message = f"{self._name} cannot be started: {error}; check runtime.python and the agent's data directory"
            raise WorkFailed(Reason.RUNTIME_UNAVAILABLE, message) from error

    def start(self, cpus: tuple[int, ...], *, local: bool, timeout_s: float) -> None:
        """Start a Foundry Local child and its native runtime."""
        deadline = time.monotonic() + timeout_s
        self.spawn(self._settings.child_command())
        self.ask(self._settings.start_command(cpus, local=local), "started", deadline - time.monotonic())

    def ask(
        self,
        command: Mapping[str, Any],
        answer: str,
        timeout_s: float,
        progress: Progress | None = None,
        *,
        gone: Reason = Reason.RUNTIME_CRASHED,
    ) -> Message:
        """Send a command and `wait` for its answer."""
        self.send(command, gone=gone)
        return self.wait(answer, timeout_s, progress, gone=gone)

    def send(self, command: Mapping[str, Any], *, gone: Reason = Reason.RUNTIME_CRASHED) -> None:
        """Send a command. Raises `WorkFailed` with `gone` when the child ended."""
        assert self._child is not None, "a command before start"
        try:
            self._child.send(command)
        except ChildGone as error:
            raise self._ended(error, gone) from error

    def wait(
        self, answer: str, timeout_s: float, progress: Progress | None = None, *, gone: Reason = Reason.RUNTIME_CRASHED
    ) -> Message:
        """Wait for an answer; with `progress`, the timeout counts from the last sign of life.

        Raises `WorkFailed` with the child's reason, or with `gone` when it ended; `ChildTimeout`.
        """
        assert self._child is not None, "wait before start"
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                message = self._child.receive(max(0.0, deadline - time.monotonic()))
            except ChildGone as error:
                raise self._ended(error, gone) from error
            event = message.get("event")
            if event == answer:
                return message
            if event == "failed":
                raise WorkFailed(_reason(message.get("reason")), str(message.get("message")))
            if event == "progress" and progress is not None:
                fraction = message.get("fraction")
                progress(str(message.get("message", "")), None if fraction is None else float(fraction))
                deadline = time.monotonic() + timeout_s

    def process_ids(self) -> tuple[int, ...]:
        """The running child's id."""
        return (self._child.pid,) if self._child is not None and self._child.running else ()

    def check(self) -> None:
        """Raise `WorkFailed` unless the child runs."""
        if self._child is None:
            raise WorkFailed(Reason.NOT_LOADED, f"{self._name} was not started; load the model first")
        while not self._child.running:
            with contextlib.suppress(ChildTimeout):
                try:
                    self._child.receive(1.0)  # whatever it still said, then how it ended
                except ChildGone as error:
                    raise self._ended(error, Reason.RUNTIME_CRASHED, always=True) from error

    def stop(self, timeout_s: float) -> None:
        """Ask the child to end, kill it past the deadline. Never raises."""
        if self._child is not None and not self._child.stop(max(0.0, timeout_s)):
            _log.warning("%s did not stop within %g s and was killed", self._name, timeout_s)

    def kill(self) -> None:
        """End the child now. Never raises."""
        if self._child is not None:
            self._child.kill()

    def pause(self, seconds: float) -> None:
        """Wait, unless `cancel` comes. Raises `WorkFailed` ``cancelled``."""
        if self._cancelled.wait(seconds):
            raise WorkFailed(Reason.CANCELLED, f"{self._name} was ended on request")

    def cancel(self) -> None:
        """End the child now and start no other; whoever waits gets ``cancelled``."""
        with self._lock:
            self._cancelled.set()
        self.kill()

    def _ended(self, error: ChildGone, reason: Reason, *, always: bool = False) -> WorkFailed:
        if self._cancelled.is_set():
            return WorkFailed(Reason.CANCELLED, f"{self._name} was ended on request")
        message = str(error)
        if error.returncode == -9:
            before, now = self._oom_kills, _oom_kills()
            if before is not None and now is not None and now > before:
                message += "; the kernel's out-of-memory killer struck meanwhile, so memory ran out"
                reason = reason if always else Reason.OUT_OF_MEMORY
            else:
                message += "; benchfleet did not send it: suspect the out-of-memory killer of the system or container"
            message += " (choose a smaller model or free memory)"
        return WorkFailed(reason, f"{message}; log: {self._log_path}")


def _oom_kills() -> int | None:
    """How often the kernel's out-of-memory killer has struck since boot (Linux, proc_vmstat(5))."""
    try:
        for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return None


def _make_room(log_dir: Path) -> None:
    log_dir.mkdir(parents=True, exist_ok=True)
    logs = sorted(log_dir.glob("foundry-*.log"), key=lambda path: path.stat().st_mtime)
    for path in logs[: -KEPT_LOGS or None]:
        with contextlib.suppress(OSError):  # Windows: another child still writes it
            path.unlink()


def _reason(value: object) -> Reason:
    try:
        return Reason(str(value))
    except ValueError:
        return Reason.INTERNAL
