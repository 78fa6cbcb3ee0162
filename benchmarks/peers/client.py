"""What a client is to this benchmark: a command line, and a parser of what it leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.peers.answers import Answer

MODEL = "fake"


@dataclass(frozen=True, slots=True)
class Load:
    """What a client is asked to do."""

    server: str
    """``http://127.0.0.1:PORT``."""
    requests: int
    concurrency: int
    tokens: int
    """``max_tokens`` of each request."""
    tokenizer: Path
    """A folder with ``tokenizer.json``."""


@dataclass(frozen=True, slots=True)
class Command:
    """What to start, in a folder of its own."""

    arguments: tuple[str, ...]
    stdin: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    """Environment variables that must not be set; ``PYTHONPATH`` never is: environments would mix."""


@dataclass(frozen=True, slots=True)
class Client:
    """One way to measure a server."""

    name: str
    requirements: tuple[str, ...]
    """For pip, exact; none: runs in this interpreter."""
    command: Callable[[Path, Load, Path], Command]
    """(the environment's folder of programs, what to do, a folder to write into) → what to start."""
    output: str
    """Glob of the file it leaves in that folder; ``stdout`` is what it printed."""
    parse: Callable[[str], list[Answer]]
    """The counted requests in that file, in order. Raises ValueError, LookupError or TypeError on anything else."""
    warm_up: int = 0
    """Requests it sends before those it reports."""
    maximum_concurrency: int = 1024

    @property
    def peer(self) -> bool:
        """Somebody else's tool."""
        return bool(self.requirements)
