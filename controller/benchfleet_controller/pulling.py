"""Progress of pulls on stderr: a bar for each host and model in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from benchfleet_controller.live import PLAIN_PERIOD_S, printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class PullProgress:
    """Shows pulls while it is entered; ``pulls`` are (host, model)."""

    def __init__(self, pulls: Sequence[tuple[str, str]], stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._pulls = pulls
        self._bars: Progress | None = None
        self._tasks: dict[tuple[str, str], TaskID] = {}
        self._spoken: dict[tuple[str, str], float] = {}

    def __enter__(self) -> Self:
        if self._stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.fields[who]}", markup=False), BarColumn(), TaskProgressColumn(),
                       TimeRemainingColumn(), TextColumn("{task.description}", markup=False))  # fmt: skip
            self._bars = Progress(*columns, console=Console(file=self._stream))
            for host, model in self._pulls:
                who = printable(f"{host} {model}")
                self._tasks[host, model] = self._bars.add_task("waiting", total=1.0, who=who)
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def report(self, host: str, model: str, message: str, fraction: float | None) -> None:
        """What goes on there; fraction 0 to 1, None: unknown."""
        if self._bars is not None:
            task = self._tasks[host, model]
            self._bars.update(task, description=printable(message))
            if fraction is not None:
                self._bars.update(task, completed=fraction)
            return
        now = time.monotonic()
        last = self._spoken.get((host, model))
        if last is None or now - last >= PLAIN_PERIOD_S:
            self._spoken[host, model] = now
            self._say(host, message, fraction)

    def end(self, host: str, model: str, message: str, *, done: bool) -> None:
        """How it ended."""
        if self._bars is not None:
            self._bars.update(self._tasks[host, model], description=printable(message), completed=1.0 if done else None)
        else:
            self._say(host, message, None)

    def _say(self, host: str, message: str, fraction: float | None) -> None:
        share = "" if fraction is None else f" {fraction:.0%}"
        print(printable(f"{host}: {message}{share}"), file=self._stream, flush=True)
