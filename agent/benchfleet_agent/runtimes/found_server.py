"""The endpoint of an agent that was given none: a server that is found running on its host."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from benchfleet_agent.runtimes import RuntimeDescription
from benchfleet_agent.runtimes.endpoint import DETECTED_S, NAME, EndpointRuntime, EndpointSettings


class FoundServer(EndpointRuntime):
    """Whatever model server runs here. It gets no key: nobody said that it is who it seems."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, **finders: Any) -> None:
        super().__init__(EndpointSettings(), clock=clock, **finders)
        self._now = clock
        self._looked: float | None = None

    def look(self) -> None:
        """Look for one in the background, once a minute: Foundry Local's command line takes seconds to answer."""
        if self._looked is not None and self._now() - self._looked < DETECTED_S:
            return
        self._looked = self._now()
        threading.Thread(target=super().describe, name="found-server", daemon=True).start()

    def describe(self) -> RuntimeDescription:
        """What was found at last; asks nothing."""
        dialect = self._dialect
        if dialect is None:
            return RuntimeDescription(NAME, False, "no server was found running on this host")
        return self._described(dialect)
