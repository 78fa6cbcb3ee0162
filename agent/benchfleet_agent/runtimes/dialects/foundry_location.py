"""Where Foundry Local's service is now: its port changes at every start, and only its command line knows it.

``foundry service status`` (legacy, text) and ``foundry server status -o json`` (CLI preview 0.10). Never run here.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence

COMMANDS = (("foundry", "server", "status", "-o", "json"), ("foundry", "service", "status"))
COMMAND_S = 15.0
_URL = re.compile(r"https?://(?:\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+):\d+")

Run = Callable[[Sequence[str]], str]


def parse_status(text: str) -> str | None:
    """The service's root URL in what either command prints; None: it does not run.

    Both name the URL in words of their own (``… is running on http://localhost:5273/openai/status``,
    ``… Started on http://127.0.0.1:58338/, PID 22320!``), so the URL is all that is looked for.
    """
    found = _URL.search(text)
    return found[0] if found else None


def locate(run: Run | None = None) -> str | None:
    """Ask the command line; None without one, or when no service runs. Takes seconds."""
    if run is None and shutil.which("foundry") is None:
        return None
    for command in COMMANDS:
        if url := parse_status((run or _run)(command)):
            return url
    return None


def _run(command: Sequence[str]) -> str:
    program = shutil.which(command[0])
    if program is None:
        return ""
    # The service's own client clears this: with it set, the command line looks for another service.
    environment = {name: value for name, value in os.environ.items() if name != "DOTNET_ENVIRONMENT"}
    try:
        done = subprocess.run(
            [program, *command[1:]], capture_output=True, timeout=COMMAND_S, check=False, env=environment,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode(errors="replace")
