"""A fleet of simulated agents followed by the program's own code into a real database: lag, losses, cost."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
from benchmarks.dataplane.agents import READINGS

from benchfleet.v1 import event_pb2
from benchfleet_controller import fleet
from benchfleet_controller.credentials import choose
from benchfleet_controller.follow import follow
from benchfleet_controller.plan import HostTarget
from benchfleet_controller.store import Store
from benchfleet_controller.writer import Writer

CONNECT_AT_ONCE = 50


@dataclass(frozen=True, slots=True)
class Followed:
    """What following a fleet took; times in seconds."""

    agents: int
    seconds: int
    expected: int
    """Readings sent."""
    stored: int
    twice: int
    lag_p50_s: float
    lag_p99_s: float
    lag_max_s: float
    cpu_ratio: float
    """CPU time of the controller over wall time, of one core."""
    cpu_per_message_s: float

    @property
    def lost(self) -> int:
        return self.expected - (self.stored - self.twice)


def follow_fleet(agents: int, seconds: int, directory: Path, tls: Path | None = None) -> Followed:
    """Follow so many agents for so long; ``tls``: a directory with a host's files in ``host``, ours in ``us``."""
    command = [sys.executable, "-m", "benchmarks.dataplane.agents", "--count", str(agents), "--seconds", str(seconds)]
    command += ["--tls", str(tls / "host")] if tls else []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        ports = json.loads(process.stdout.readline())
        choose(tls / "us" if tls else None, insecure_plaintext=False)
        try:
            return asyncio.run(_follow_all(ports, seconds, directory / f"{agents}{'-tls' if tls else ''}.duckdb"))
        finally:
            process.stdin.close()
            process.wait(30)


async def _follow_all(ports: list[int], seconds: int, path: Path) -> Followed:
    store = Store(path)
    store.mark_released(())  # makes the file: a run is recorded before anything starts
    writer = Writer(store)
    lags: list[int] = []

    def watch(_: str, event: event_pb2.Event) -> None:
        if event.HasField("samples_recorded"):
            lags.append(time.perf_counter_ns() - event.event_ns)

    gate = asyncio.Semaphore(CONNECT_AT_ONCE)

    async def connected(port: int) -> fleet.Agent:
        async with gate:
            return await fleet.connect(HostTarget("localhost", f"localhost:{port}"), 60)

    links = await asyncio.gather(*map(connected, ports))
    begun, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(follow(link, f"job-{index}", writer, watch) for index, link in enumerate(links)))
    took, used = time.perf_counter() - begun, time.process_time() - cpu
    for link in links:
        await link.close()
    with duckdb.connect(str(path), read_only=True) as connection:
        stored, different = connection.execute(
            "SELECT count(*), count(DISTINCT (job_id, sample_ns)) FROM samples"
        ).fetchall()[0]
    seen = np.array(lags) / 1e9
    return Followed(
        agents=len(ports),
        seconds=seconds,
        expected=len(ports) * seconds * READINGS,
        stored=stored,
        twice=stored - different,
        lag_p50_s=float(np.quantile(seen, 0.5)),
        lag_p99_s=float(np.quantile(seen, 0.99)),
        lag_max_s=float(seen.max()),
        cpu_ratio=used / took,
        cpu_per_message_s=used / len(lags),
    )
