"""Full disks, for real: a small tmpfs. Refused with a clear error; what was written stays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from integration.conftest import AgentProcess, Benchfleet

pytestmark = pytest.mark.slow

if sys.platform != "linux":
    pytest.skip("mounts a tmpfs", allow_module_level=True)

MakeAgent = Callable[..., AgentProcess]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 40 MiB."""
    directory = tmp_path / "small"
    directory.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(directory)], capture_output=True, text=True
    )
    if done.returncode != 0:
        pytest.skip(f"mounting needs more rights: {done.stderr.strip()}")
    yield directory
    subprocess.run(["umount", "-l", str(directory)], check=True)


def _fill(directory: Path) -> Path:
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass
    return filler


def test_the_controllers_disk_is_full(make_agent: MakeAgent, small_disk: Path) -> None:
    agent = make_agent()
    filler = _fill(small_disk)
    full = Benchfleet(small_disk / "results.duckdb")
    run = ("run", "--model", "tiny-random", "--rounds", "1", "--max-tokens", "4", "--host", f"solo={agent.address}")

    refused = full(*run)
    filler.unlink()
    done = full(*run)

    assert refused.returncode == 2
    assert "disk" in refused.stderr
    assert "full" in refused.stderr
    assert done.returncode == 0, done.stderr


def test_the_agents_disk_is_full(make_agent: MakeAgent, benchfleet: Benchfleet, small_disk: Path) -> None:
    agent = make_agent(start=False)
    config = agent.config.read_text()
    agent.data_dir = small_disk / "agent"
    agent.data_dir.mkdir()
    agent.config = agent.data_dir / "agent.toml"
    agent.config.write_text(config)
    agent.start()

    done = benchfleet("run", "--model", "tiny-random", "--host", f"solo={agent.address}")

    assert done.returncode == 4
    assert "free some space" in done.stderr
    states = json.loads(json.dumps(benchfleet.rows("SELECT status, reason FROM cases")))
    assert states == [["skipped", "disk_full"]]
    assert os.path.ismount(small_disk)
