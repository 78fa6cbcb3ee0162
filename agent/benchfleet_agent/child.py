"""Child processes that speak JSON lines: the parent's half and the child's half.

The protocol runs over the child's stdin and its *original* stdout. The child moves that stdout away
before it imports anything (`take_protocol`), so whatever a library prints later lands on stderr, which
the parent keeps as a log file. Portable to Windows, needs no inherited descriptors, and works for a child
run by another interpreter. Standard library only: the child's half must start quickly.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

SECRET_VARIABLE = "BENCHFLEET_ENDPOINT_API_KEY"

Message = dict[str, Any]
_PIECE = 500


class ChildGone(Exception):
    """The child ended (or closed its protocol) while the parent waited; says how, with its last words."""

    def __init__(self, name: str, returncode: int | None, log_tail: str) -> None:
        self.returncode = returncode
        self.log_tail = log_tail
        last = log_tail.strip().splitlines()[-1:] or ["it printed nothing"]
        super().__init__(f"{name} {describe_exit(returncode)}: {last[0][:500]}")


class ChildTimeout(Exception):
    """The child did not answer before the deadline."""


def describe_exit(returncode: int | None) -> str:
    """Say how a process ended, in words: ``killed by signal 9`` or ``exited with code 1``."""
    if returncode is None:
        return "closed its protocol"
    if returncode < 0:
        return f"killed by signal {-returncode}"
    return f"exited with code {returncode}"


def _environment() -> dict[str, str]:
    """The agent's own without its secret: the one child that needs the endpoint's key is told it."""
    return {name: value for name, value in os.environ.items() if name != SECRET_VARIABLE}


class Child:
    """A running child process, owned by one thread of the parent (`kill` may come from any thread)."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log_path: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self._log_path = log_path
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**_environment(), **(environment or {})},
                # Its own group: Ctrl-C at the agent's terminal is for the agent, which then stops its children.
                start_new_session=os.name == "posix",
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        self._messages: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, name=f"{name}-reader", daemon=True).start()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    def send(self, message: Mapping[str, Any]) -> None:
        """Write one message. Raises `ChildGone` when nobody reads any more."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except (OSError, ValueError) as error:
            raise self._gone() from error

    def receive(self, timeout_s: float | None) -> Message:
        """Wait for the next message. Raises `ChildTimeout`, or `ChildGone` once the child has ended."""
        try:
            message = self._messages.get(timeout=timeout_s)
        except queue.Empty:
            raise ChildTimeout(f"{self.name} did not answer within {timeout_s:g} s") from None
        if message is None:
            self._messages.put(None)  # whoever asks again learns the same
            raise self._gone()
        return message

    def stop(self, timeout_s: float) -> bool:
        """Close stdin, wait for a clean end, then kill. True when it ended by itself."""
        with contextlib.suppress(OSError, ValueError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return False
        return True

    def kill(self) -> None:
        """End the child now (and, where the OS has groups, all it started) and reap it."""
        if self._process.poll() is None:
            with contextlib.suppress(OSError):
                if sys.platform == "win32":
                    self._process.kill()
                else:
                    import signal

                    os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        with contextlib.suppress(OSError, ValueError):
            assert self._process.stdin is not None
            self._process.stdin.close()

    def log_tail(self, limit_bytes: int = 4000) -> str:
        """The last words the child and its libraries printed."""
        try:
            with self._log_path.open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - limit_bytes))
                return log.read().decode(errors="replace")
        except OSError:
            return ""

    def _gone(self) -> ChildGone:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2)  # the pipe closes a moment before the exit status is there
        return ChildGone(self.name, self._process.poll(), self.log_tail())

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                try:
                    message = json.loads(line)
                except ValueError:
                    continue  # cannot happen once the child has taken its protocol; never fatal
                if isinstance(message, dict):
                    self._messages.put(message)
        self._messages.put(None)


class Protocol:
    """The child's half: read commands, write events. Writing is safe from several threads."""

    def __init__(self, commands: TextIO, events: TextIO) -> None:
        self._commands = commands
        self._events = events
        self._lock = threading.Lock()

    def receive(self) -> Message | None:
        """The next command, or None once the parent has closed its end (time to go)."""
        line = self._commands.readline()
        return json.loads(line) if line else None

    def send(self, event: str, **fields: Any) -> None:
        """Write one event."""
        self.send_line(json_line({"event": event, **fields}))

    def send_line(self, line: str) -> None:
        """Write an event that is a line already."""
        with self._lock:
            self._events.write(line)
            self._events.flush()


def json_line(fields: Mapping[str, Any]) -> str:
    """The fields as one line of JSON, made in pieces: ``dumps`` of a long answer's record takes 2 ms, during which no
    other thread could stamp what arrives.
    """
    return "{" + ", ".join(f"{json.dumps(name)}: {_json(value)}" for name, value in fields.items()) + "}\n"


def _json(value: object) -> str:
    if isinstance(value, (list, tuple)) and len(value) > _PIECE:
        pieces = (json.dumps(value[at : at + _PIECE])[1:-1] for at in range(0, len(value), _PIECE))
        return f"[{', '.join(pieces)}]"
    return json.dumps(value)


def take_protocol() -> Protocol:
    """Claim stdin and stdout for the protocol and send everything printed from now on to stderr.

    Call it first thing in a child, before importing a library that may print (foundry-local-sdk installs
    a logging handler on stdout).
    """
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    commands = os.fdopen(os.dup(0), "r", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    return Protocol(commands, events)


def die_with_parent() -> None:
    """End this child within a second of its parent's death: a killed agent leaves no model in memory.

    A thread watches the parent's id. (Linux's PR_SET_PDEATHSIG is no good here: it fires when the *thread*
    that started the child ends, prctl(2).) On Windows the closed stdin pipe is the sign: every child reads
    its commands there.
    """
    if sys.platform == "win32":
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(70)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
