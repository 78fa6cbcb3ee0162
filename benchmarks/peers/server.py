"""The scripted server in a process of its own: told what to stream next, asked what it did and when."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SERVER = Path(__file__).resolve().parents[2] / "tests" / "fakes" / "openai_server.py"
Script = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Server:
    """A running scripted server."""

    port: int

    @property
    def root(self) -> str:
        """Without ``/v1``."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
        """With ``/v1``."""
        return f"{self.root}/v1"

    def play(self, scripts: Sequence[Script]) -> None:
        """What the next requests get, in turn; the last script stays. Forgets what was before."""
        body = json.dumps(list(scripts)).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{self.root}/scripts", body), timeout=60):
            self.take_truth()

    def take_truth(self) -> list[dict[str, Any]]:
        """What the server did since it was last asked, in the order of arrival."""
        with urllib.request.urlopen(f"{self.root}/truth", timeout=60) as response:
            entries: list[dict[str, Any]] = json.load(response)
        return sorted(entries, key=lambda entry: entry["received_ns"])


@contextlib.contextmanager
def running_server(model: str) -> Iterator[Server]:
    """Start it, and end it afterwards."""
    command = [sys.executable, str(SERVER), "--model", model]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield Server(json.loads(process.stdout.readline())["port"])
        process.stdin.close()
