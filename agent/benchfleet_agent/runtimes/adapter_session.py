"""One model in one case, held by an adapter in a child process (`adapter_server`)."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from benchfleet.failures import Reason, WorkFailed
from benchfleet_agent.child import ChildTimeout, Message
from benchfleet_agent.runtimes import Endpoint, Loaded, Model, Placement, Progress
from benchfleet_agent.runtimes.foundry_link import ChildLink

CLOSE_S = 5.0


def command() -> list[str]:
    """The child's command line."""
    return [sys.executable, "-P", "-m", "benchfleet_agent.runtimes.adapter_server"]


class AdapterSession:
    """One model in one case: an adapter in a child process."""

    def __init__(self, link: ChildLink, entry: str, model: Model, placement: Placement) -> None:
        self._link = link
        self._entry = entry
        self._model = model
        self._placement = placement

    def prepare(self, progress: Progress) -> None:
        """Nothing to do: what ``load`` needs is the adapter's own matter."""

    def load(self, timeout_s: float) -> Loaded:
        """Start the child, load, serve, all before the deadline.

        Raises `WorkFailed`: ``load_timeout`` (the child is killed), ``load_failed``, ``runtime_unavailable``,
        ``runtime_crashed``, ``out_of_memory``, ``cancelled``.
        """
        link, deadline = self._link, time.monotonic() + timeout_s

        def ask(message: Message, answer: str) -> Message:
            return link.ask(message, answer, max(0.0, deadline - time.monotonic()))

        try:
            link.spawn(command())
            ask({"do": "start", "name": self._entry, "cpus": list(self._placement.cpus)}, "started")
            loaded = ask({"do": "load", "model": self._model.variant}, "loaded")
            url = ask({"do": "serve"}, "serving")["url"]
        except ChildTimeout:
            link.kill()
            message = f"{self._model.variant} was not loaded within {timeout_s:g} s, so its process was killed"
            raise WorkFailed(Reason.LOAD_TIMEOUT, f"{message}; raise the plan's load timeout") from None
        except BaseException:
            link.kill()
            raise
        endpoint = Endpoint(f"{url}/v1", self._model.variant)
        return Loaded(loaded["load_ns"], loaded.get("execution_provider"), endpoint)

    def directory(self) -> Path | None:
        """Not known."""
        return None

    def process_ids(self) -> tuple[int, ...]:
        """The child's id while it runs."""
        return self._link.process_ids()

    def check(self) -> None:
        """Raise `WorkFailed`: ``runtime_crashed`` when the child ended, ``not_loaded`` before `load`."""
        self._link.check()

    def unload(self, timeout_s: float) -> int | None:
        """Have the adapter unload; ns, None when it has no ``unload``."""
        try:
            found = self._link.ask({"do": "unload"}, "unloaded", timeout_s)["duration_ns"]
        except ChildTimeout:
            self._link.kill()
            message = f"{self._model.variant} was not unloaded within {timeout_s:g} s, so its process was killed"
            raise WorkFailed(Reason.RUNTIME_CRASHED, message) from None
        return None if found is None else int(found)

    def close(self, timeout_s: float) -> None:
        """End the child; kill it past the deadline."""
        self._link.stop(min(timeout_s, CLOSE_S))

    def kill(self) -> None:
        """End the child now; a waiting `load` raises ``cancelled``."""
        self._link.cancel()
