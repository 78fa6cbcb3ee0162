"""What a newcomer runs first, whole: the real model, built from the package registry, in the real runtime."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest

from integration.conftest import Benchfleet

SPAWNED = True
"""The command is a process of its own here."""


@pytest.mark.slow
def test_the_demo_compares_two_hosts_and_leaves_nothing_running(tmp_path: Path, benchfleet: Benchfleet) -> None:
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}  # nothing of an earlier build may help

    done = benchfleet("demo", "--dir", str(tmp_path / "demo"), "--rounds", "2", timeout_s=180, **cache)

    assert done.returncode == 0, done.stderr
    assert "one-core is pinned to one" in done.stderr
    assert "By host, against all-cores" in done.stdout
    assert "One answer" in done.stdout
    assert "Try next" in done.stdout
    assert "smollm2-135m" in (tmp_path / "demo" / "report.md").read_text()
    cases = {case["host"]: case for case in benchfleet.show()}
    assert {name: case["status"] for name, case in cases.items()} == {"all-cores": "succeeded", "one-core": "succeeded"}
    assert all(case["variant"] == "smollm2-135m-instruct-generic-cpu:1" for case in cases.values())
    assert all(case["tokens_source"] == "usage" for case in cases.values())
    answers = benchfleet.rows("SELECT text FROM requests WHERE prompt_id = 'p4' AND NOT warmup")
    assert answers
    assert all("Paris" in text for (text,) in answers)
    left = [
        p.info["cmdline"] for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in json.dumps(p.info["cmdline"])
    ]
    assert left == []
