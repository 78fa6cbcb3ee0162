"""A probe in a process of its own: a native library that crashes or hangs costs that probe and nothing else.

The parent's half (`IsolatedProbe`) is a probe like any other; the child's half is
``python -m benchfleet_agent.probes.isolated module:Class``. They speak JSON lines as all children of the
agent do (`benchfleet_agent.child`). A child that crashed or was killed for its silence is started again,
later each time it happens. A reading through the pipe costs some 100 µs more.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchfleet_agent.child import Child, ChildGone, ChildTimeout, describe_exit, die_with_parent, take_protocol
from benchfleet_agent.probes import (
    DeviceInfo,
    EdgeProbe,
    Probe,
    Reading,
    Targets,
    Unavailable,
    failure_text,
    gaps_of,
    make_probe,
)

READ_DEADLINE_S = 1.5
DISCOVER_DEADLINE_S = 10.0
FIRST_RESTART_NS = 1_000_000_000
LONGEST_RESTART_NS = 60_000_000_000
_STOP_S = 1.0


class HelperFailed(Exception):
    """The child crashed, or did not answer in time and was killed."""


class IsolatedProbe:
    """Runs the probe ``module:Class`` in a helper process; the class itself must be harmless to import and make."""

    def __init__(
        self,
        inner_spec: str,
        *,
        read_deadline_s: float = READ_DEADLINE_S,
        discover_deadline_s: float = DISCOVER_DEADLINE_S,
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        inner = make_probe(inner_spec)  # never discovered here: it only says what it is
        self._spec = inner_spec
        self._names = inner.metrics()
        self._read_deadline_s = read_deadline_s
        self._discover_deadline_s = discover_deadline_s
        self._clock = clock
        self._child: Child | None = None
        self._devices: tuple[DeviceInfo, ...] = ()
        self._gaps: dict[str, str] = {}
        self._deaths = 0
        self._restart_due_ns = 0
        self._last_failure = ""
        self.probe_id = inner.probe_id
        self.period_ms = inner.period_ms
        self.budget_us = inner.budget_us + 500
        self.verification = str(getattr(inner, "verification", "documentation"))

    def discover(self) -> None:
        """Start the helper and let it find its source. Raises `Unavailable` or `HelperFailed`."""
        self.close()
        if self._clock() < self._restart_due_ns:
            raise HelperFailed(f"{self._last_failure}; it is started again later")
        command = [sys.executable, "-m", "benchfleet_agent.probes.isolated", self._spec]
        self._child = Child(f"the helper of the probe {self.probe_id}", command, log_path=Path(os.devnull))
        answer = self._ask({"do": "discover"}, self._discover_deadline_s)
        self._devices = tuple(DeviceInfo(**device) for device in answer["devices"])

    def metrics(self) -> tuple[str, ...]:
        """Names of the inner probe's values."""
        return self._names

    def devices(self) -> tuple[DeviceInfo, ...]:
        """The devices the inner probe found."""
        return self._devices

    def gaps(self) -> Mapping[str, str]:
        """What the inner probe said last of its gaps."""
        return self._gaps

    def read(self, targets: Targets) -> Sequence[Reading]:
        """Let the helper read. Raises what the inner probe raised (as `Unavailable`), or `HelperFailed`."""
        return self._read("read", targets)

    def read_at_edge(self, targets: Targets) -> Sequence[Reading]:
        """Let the helper read everything."""
        return self._read("read_at_edge", targets)

    def _read(self, what: str, targets: Targets) -> Sequence[Reading]:
        if self._child is None:
            self.discover()
        answer = self._ask({"do": what, "targets": asdict(targets)}, self._read_deadline_s)
        self._deaths = 0
        return [Reading(device_id, tuple(values)) for device_id, values in answer["readings"]]

    def _ask(self, command: Mapping[str, Any], deadline_s: float) -> dict[str, Any]:
        child = self._child
        if child is None:
            raise Unavailable("the probe was not discovered")
        try:
            child.send(command)
            answer = child.receive(deadline_s)
        except ChildGone as error:
            how = describe_exit(error.returncode)
            raise self._bury(f"{child.name} was lost: it {_past(how)}") from None
        except ChildTimeout:
            raise self._bury(f"{child.name} did not answer within {deadline_s:g} s and was killed") from None
        if "unavailable" in answer:
            raise Unavailable(answer["unavailable"])
        if "error" in answer:
            raise RuntimeError(answer["error"])
        self._gaps = answer["gaps"]
        return answer

    def _bury(self, failure: str) -> HelperFailed:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
        self._last_failure = failure
        self._restart_due_ns = self._clock() + min(FIRST_RESTART_NS << min(self._deaths, 10), LONGEST_RESTART_NS)
        self._deaths += 1
        return HelperFailed(failure)

    def close(self) -> None:
        """End the helper, letting the inner probe give back what it holds."""
        child, self._child = self._child, None
        if child is not None:
            child.stop(_STOP_S)


def _past(how: str) -> str:
    return f"was {how}" if how.startswith("killed") else how


def serve(spec: str) -> None:
    """Be the helper: answer commands until the parent closes its end."""
    die_with_parent()
    protocol = take_protocol()
    probe = make_probe(spec)
    try:
        while (command := protocol.receive()) is not None:
            try:
                protocol.send("answer", **_answer(probe, command), gaps=dict(gaps_of(probe)))
            except Unavailable as error:
                protocol.send("answer", unavailable=str(error))
            except Exception as error:  # noqa: BLE001 - told to the parent, whose sampler backs off
                protocol.send("answer", error=failure_text(error))
    finally:
        with suppress(Exception):
            probe.close()


def _answer(probe: Probe, command: Mapping[str, Any]) -> dict[str, Any]:
    if command["do"] == "discover":
        probe.discover()
        return {"devices": [asdict(device) for device in probe.devices()]}
    targets = Targets(tuple(command["targets"]["runtime_pids"]), command["targets"]["load_pid"])
    read = probe.read_at_edge if command["do"] == "read_at_edge" and isinstance(probe, EdgeProbe) else probe.read
    return {"readings": [[reading.device_id, list(reading.values)] for reading in read(targets)]}


if __name__ == "__main__":
    serve(sys.argv[1])
