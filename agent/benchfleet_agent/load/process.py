"""The load process's inside: commands in, events out, one round at a time."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import platform
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from benchfleet.failures import Reason, WorkFailed
from benchfleet_agent.child import Protocol, json_line
from benchfleet_agent.load.counting import Tokenizer
from benchfleet_agent.load.feed import Feed, Pace
from benchfleet_agent.load.record import StampSource
from benchfleet_agent.load.settings import LoadSettings, RequestSpec, positive
from benchfleet_agent.load.spooling import Spool
from benchfleet_agent.load.wire import wait_until

if TYPE_CHECKING:
    from benchfleet_agent.load.client import Client
    from benchfleet_agent.load.requester import Requester

LEAD_NS = 20_000_000
"""How long before its moment an open loop's request is made ready; making one takes about 2 ms."""
LAST_LINE_S = 5.0
"""How long the end waits for the line that is being written; a parent that reads nothing cannot hold us longer."""


class Events:
    """The way out: whole lines only, and none once closed."""

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol
        self._lock = threading.Lock()
        self._closed = False
        self.spool = Spool()

    def send(self, event: str, fields: Mapping[str, Any]) -> None:
        """Write one event, unless the end has come."""
        self._send(_line(event, fields))

    def tell(self, fields: Mapping[str, Any]) -> None:
        """Write a request that ended, first into the spool: the parent may stand still and read nothing for long."""
        line = _line("request", fields)
        self.spool.write(line.encode())
        self._send(line)

    def _send(self, line: str) -> None:
        with self._lock:
            if not self._closed:
                self._protocol.send_line(line)

    def close(self) -> None:
        """Let the line being written be finished and write no other."""
        if self._lock.acquire(timeout=LAST_LINE_S):
            self._closed = True
            self._lock.release()


def _line(event: str, fields: Mapping[str, Any]) -> str:
    return json_line({"event": event, **fields})


class Service:
    """Carries out commands, one after the other."""

    def __init__(self, events: Events, *, kernel: bool = True) -> None:
        self._events = events
        self._kernel_wanted = kernel
        self._clients: list[Client] = []
        self._requesters: list[Requester] = []
        self._tokenizer: Tokenizer | None = None

    def handle(self, command: Mapping[str, Any]) -> None:
        """Carry out one command; what cannot be done is answered with ``failed``."""
        name = command.get("do")
        try:
            if name == "open":
                self._open(LoadSettings.from_dict(command))
            elif name == "round":
                self._round(command)
            else:
                raise WorkFailed(Reason.INVALID_SPEC, f"unknown command {name!r}; there are open, round and close")
        except WorkFailed as error:
            reason, message = error.failure.reason, error.failure.message
            self._events.send("failed", {"command": name, "reason": reason, "message": message})
        except Exception as error:  # noqa: BLE001 (a command that fails ends neither the process nor the next one)
            sys.excepthook(type(error), error, error.__traceback__)
            message = f"{type(error).__name__}: {error}"
            self._events.send("failed", {"command": name, "reason": Reason.INTERNAL, "message": message})

    def close(self) -> None:
        """Close all connections, and the process that counts."""
        for client in self._clients:
            with contextlib.suppress(Exception):
                client.close()
        if self._tokenizer is not None:
            self._tokenizer.close()
        self._clients, self._requesters, self._tokenizer = [], [], None

    def _open(self, settings: LoadSettings) -> None:
        forget_environment()
        try:
            from benchfleet_agent.load.client import Client, tls_context, versions
            from benchfleet_agent.load.requester import Requester
            from benchfleet_agent.load.wire import kernel_stamps_possible
        except ImportError as error:
            message = f"the load process needs the package openai: pip install 'benchfleet[agent]' ({error})"
            raise WorkFailed(Reason.UNSUPPORTED, message) from None
        self.close()
        try:
            self._events.spool.open(settings.spool_path)
        except OSError as error:
            message = f"finished requests cannot be written to {settings.spool_path}: {error.strerror or error}"
            raise WorkFailed(Reason.DISK_FULL if error.errno == errno.ENOSPC else Reason.INTERNAL, message) from None
        self._tokenizer = tokenizer_of(settings)
        context = tls_context(settings)
        kernel = self._kernel_wanted and context is None and kernel_stamps_possible()
        self._clients = [Client(settings, kernel=kernel, ssl_context=context) for _ in range(settings.concurrency)]
        self._requesters = [Requester(settings, client, self._tokenizer) for client in self._clients]
        self._events.send(
            "opened",
            {
                "pid": os.getpid(),
                "versions": {"python": platform.python_version(), **versions()},
                "stamp_source": StampSource.KERNEL if kernel else StampSource.SOCKET,
            },
        )

    def _round(self, command: Mapping[str, Any]) -> None:
        round_id = command.get("round_id")
        requests = command.get("requests")
        if not isinstance(round_id, str) or not isinstance(requests, list):
            raise WorkFailed(Reason.INVALID_SPEC, "a round needs a round_id and a list of requests")
        if not self._requesters:
            raise WorkFailed(Reason.INVALID_SPEC, "open comes before round")
        specs = [RequestSpec.from_dict(request) for request in requests]
        if not specs:
            raise WorkFailed(Reason.INVALID_SPEC, "a round needs at least one request")
        pace = pace_of(command)
        workers = self._requesters if pace.duration_s else self._requesters[: len(specs)]
        connect_all(workers)
        # A full collection among many live objects stops the process for tens of milliseconds.
        gc.collect()
        gc.freeze()
        gc.disable()
        try:
            start_ns, start_cpu_ns = perf_counter_ns(), time.process_time_ns()
            feed = Feed(specs, pace, start_ns)
            run_all([threading.Thread(target=self._work, args=(worker, feed, round_id)) for worker in workers])
            end_ns, end_cpu_ns = perf_counter_ns(), time.process_time_ns()
        finally:
            gc.enable()
            gc.unfreeze()
        self._events.send(
            "round_finished",
            {
                "round_id": round_id,
                "start_ns": start_ns,
                "end_ns": end_ns,
                "cpu_ns": end_cpu_ns - start_cpu_ns,
                "given_up": feed.given_up,
                "rss_bytes": resident_bytes(),
            },
        )

    def _work(self, worker: Requester, feed: Feed, round_id: str) -> None:
        """One worker: the next request as soon as the last one is finished and told, or when it is due.

        In an open loop every idle worker already holds its next request, makes it ready shortly before its moment
        and holds it back on the wire: neither a hand-over nor the making of a request makes it late.
        """
        while (spec := feed.next(perf_counter_ns())) is not None:
            if spec.scheduled_ns is not None:
                wait_until(spec.scheduled_ns - LEAD_NS)
            record = worker.perform(spec)
            self._events.tell({"round_id": round_id, **record.to_dict()})


def tokenizer_of(settings: LoadSettings) -> Tokenizer | None:
    """What counts when answers do not say; None without, or when the file or the server turns out not to.

    Raises `WorkFailed`: ``invalid_spec`` when there is no such file, ``unsupported`` without the library.
    """
    path = settings.tokenizer_path
    if path is not None and not Path(path).is_file():
        raise WorkFailed(Reason.INVALID_SPEC, f"{path} is no tokenizer.json: there is no such file")
    if path is not None:
        source = {"path": path}
    elif settings.tokenize_url is not None:
        source = {"url": settings.tokenize_url, "model": settings.model, "api_key": settings.api_key}
    else:
        return None
    try:
        return Tokenizer(source)
    except WorkFailed as error:
        if error.failure.reason is Reason.UNSUPPORTED:
            raise
        print(error.failure.message, file=sys.stderr)  # the records say `estimate`
        return None


def pace_of(command: Mapping[str, Any]) -> Pace:
    """The pace a ``round`` asks for. Raises `WorkFailed` ``invalid_spec``."""
    duration_s, rate_per_s = (positive(command, name) for name in ("duration_s", "rate_per_s"))
    prefix_seed = command.get("prefix_seed")
    return Pace(
        duration_s=duration_s,
        rate_per_s=rate_per_s,
        poisson=command.get("arrival") == "poisson",
        seed=str(command.get("seed", "")),
        prefix_seed=None if prefix_seed is None else str(prefix_seed),
    )


def connect_all(workers: list[Requester]) -> None:
    """Have every connection before the clock starts; a server that refuses is found out by the first request."""

    def connect(worker: Requester) -> None:
        with contextlib.suppress(Exception):
            worker.connect()

    run_all([threading.Thread(target=connect, args=(worker,)) for worker in workers])


def run_all(threads: list[threading.Thread]) -> None:
    """Run threads to their end; as daemons, so that the end of the process waits for no server."""
    for thread in threads:
        thread.daemon = True
        thread.start()
    for thread in threads:
        thread.join()


def forget_environment() -> None:
    """Drop ``OPENAI_*`` variables and pydantic's plug-ins: a measurement depends on what ``open`` says and no more."""
    for name in [name for name in os.environ if name.startswith("OPENAI_")]:
        del os.environ[name]
    # Of whatever package in this environment brings one; looking for them takes a tenth of a second, too.
    os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"


def resident_bytes() -> int | None:
    """Resident memory of this process now; None where only a library could tell (the agent samples it by pid)."""
    if sys.platform != "linux":
        return None
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None
