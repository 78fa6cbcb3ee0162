"""benchfleet as its users run it, agent and command line, to see what it says when every request fails."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.peers.client import MODEL

PROGRAMS = Path(sys.executable).parent
START_S = 30
RUN_S = 120


def failing_run(server: str, folder: Path) -> int | None:
    """The exit code of ``benchfleet run`` against a server whose every answer is an error; None: it did not end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    address = f"127.0.0.1:{port}"
    # What is set here must reach neither.
    seeds = ("BENCH_", "FOUNDRY_LOCAL_", "BENCHFLEET_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(seeds)}
    serve = [str(PROGRAMS / "benchfleet-agent"), "serve", "--listen", address, "--data-dir", str(folder / "agent")]
    load = ["--runtime", "endpoint", "--endpoint", f"{server}/v1", "--model", MODEL, "--prompt", "Hello."]
    small = ["--rounds", "1", "--warmup", "0", "--no-certificate", "--db", str(folder / "failing.duckdb")]
    run = [str(PROGRAMS / "benchfleet"), "run", "--host", f"here={address}", *load, *small]
    with (
        (folder / "stdout").open("wb") as log,
        subprocess.Popen(serve, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment) as agent,
    ):
        try:
            _wait_for(port)
            done = subprocess.run(run, stdout=log, stderr=log, env=environment, timeout=RUN_S, check=False)
        except subprocess.TimeoutExpired:
            return None
        finally:
            agent.terminate()
    return done.returncode


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
