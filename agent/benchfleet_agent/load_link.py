"""The agent's side of the load process: starts it, opens it for a case, has it carry out rounds.

What ends a round early is told apart here: a cancelled job, a dead runtime, a dead load process.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchfleet.failures import Reason, WorkFailed
from benchfleet_agent.child import Child, ChildGone, ChildTimeout
from benchfleet_agent.jobs import CaseOrder
from benchfleet_agent.load.record import RequestRecord, Status
from benchfleet_agent.runtimes import Endpoint, Session

OPEN_S = 60.0
CRASH_GRACE_S = 2.0
"""How long requests in flight may take to notice that their server is gone."""
_TELLTALE = {Reason.CONNECTION_FAILED, Reason.STREAM_TRUNCATED, Reason.BAD_RESPONSE}

Message = dict[str, Any]


class LoadLink:
    """One case's load process. ``interrupted`` raises when the case must end; it is asked twice a second.

    ``spool`` is where it notes finished requests as well (`benchfleet_agent.request_spool`).
    """

    def __init__(self, log_dir: Path, interrupted: Callable[[], None], spool: Path | None = None) -> None:
        self._child = Child(
            "load process", [sys.executable, "-m", "benchfleet_agent.load"], log_path=log_dir / "load.log"
        )
        self._interrupted = interrupted
        self._spool = spool

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    def open(self, endpoint: Endpoint, order: CaseOrder, model_directory: Path | None) -> Message:
        """Prepare it for a case; ``opened`` with its versions and stamp source. Raises `WorkFailed`."""
        self._send(
            {
                "do": "open",
                "base_url": endpoint.base_url,
                "api_key": endpoint.api_key,
                "model": endpoint.model,
                "stream": order.stream,
                "max_tokens": order.max_tokens,
                "temperature": order.temperature,
                "top_p": order.top_p,
                "seed": order.seed,
                "concurrency": order.concurrency,
                "request_timeout_s": order.request_s,
                "first_token_timeout_s": order.first_token_s,
                "token_timeout_s": order.token_s,
                "tokenizer_path": _tokenizer_path(endpoint.tokenizer, model_directory),
                "tokenize_url": endpoint.tokenize_url or None,
                "spool_path": str(self._spool) if self._spool else None,
            }
        )
        try:
            event = self._child.receive(OPEN_S)
        except (ChildGone, ChildTimeout) as error:
            self._interrupted()
            raise WorkFailed(Reason.LOAD_PROCESS_CRASHED, str(error)) from None
        if event["event"] != "opened":
            raise _failure(event)
        return event

    def round(self, command: Mapping[str, Any], session: Session, take: Callable[[RequestRecord], None]) -> Message:
        """Carry out a round (fields of ``round``); `take` gets every request that ended. Returns ``round_finished``.

        Raises `WorkFailed`, after `take` has got the requests that died with the runtime.
        """
        self._send({"do": "round", **command})
        while True:
            event = self._receive(session, take)
            if event["event"] == "request":
                record = RequestRecord.from_dict(event)
                take(record)
                if record.status is Status.FAILED and record.reason in _TELLTALE:
                    _expose_crash(session)
            elif event["event"] == "round_finished":
                return event
            else:
                raise _failure(event)

    def stop(self, timeout_s: float) -> None:
        """Let it end by itself, kill it past the deadline."""
        self._child.stop(timeout_s)

    def kill(self) -> None:
        """End it now. Never raises."""
        self._child.kill()

    def _send(self, message: Message) -> None:
        try:
            self._child.send(message)
        except ChildGone as error:
            self._interrupted()
            raise WorkFailed(Reason.LOAD_PROCESS_CRASHED, str(error)) from None

    def _receive(self, session: Session, take: Callable[[RequestRecord], None]) -> Message:
        """The next event, while the runtime is alive and nothing interrupts."""
        while True:
            self._interrupted()
            try:
                return self._child.receive(0.5)
            except ChildTimeout:
                self._check(session, take)
            except ChildGone as error:
                self._interrupted()
                raise WorkFailed(Reason.LOAD_PROCESS_CRASHED, str(error)) from None

    def _check(self, session: Session, take: Callable[[RequestRecord], None]) -> None:
        """Raise when the runtime is gone, after taking the requests that died with it."""
        try:
            session.check()
        except WorkFailed:
            deadline = time.monotonic() + CRASH_GRACE_S
            with contextlib.suppress(ChildTimeout, ChildGone):
                while (left := deadline - time.monotonic()) > 0:
                    event = self._child.receive(left)
                    if event["event"] != "request":
                        break
                    take(RequestRecord.from_dict(event))
            raise


def _expose_crash(session: Session) -> None:
    """A broken connection may be a dead runtime; its process ends a moment after its sockets."""
    deadline = time.monotonic() + CRASH_GRACE_S / 4
    while time.monotonic() < deadline:
        session.check()
        time.sleep(0.05)


@contextlib.contextmanager
def watch(session: Session, found: Callable[[tuple[int, ...]], None]) -> Iterator[None]:
    """Tell of the runtime's processes as they appear while `Session.load` blocks the caller's thread."""
    done = threading.Event()

    def look() -> None:
        known: tuple[int, ...] = ()
        while not done.wait(0.05):
            if (ids := session.process_ids()) != known:
                known = ids
                found(ids)

    thread = threading.Thread(target=look, name="load-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _tokenizer_path(named: Path | None, directory: Path | None) -> str | None:
    """The model's own tokenizer, for servers that do not count; None without one or without the library."""
    path = named or (directory / "tokenizer.json" if directory else None)
    found = path is not None and path.is_file() and importlib.util.find_spec("tokenizers") is not None
    return str(path) if found else None


def _failure(event: Mapping[str, Any]) -> WorkFailed:
    try:
        reason = Reason(event.get("reason", ""))
    except ValueError:
        reason = Reason.INTERNAL
    return WorkFailed(reason, f"the load process could not go on: {event.get('message', event)}")
