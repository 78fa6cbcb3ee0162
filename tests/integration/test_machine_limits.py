"""What the machine can do at most, measured for real and told from afar."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from integration.conftest import AgentProcess, Benchfleet

pytestmark = pytest.mark.slow


def test_limits_are_measured_when_asked_kept_and_stored(
    make_agent: Callable[..., AgentProcess], benchfleet: Benchfleet
) -> None:
    agent = make_agent("a")
    asked = benchfleet("doctor", f"a={agent.address}", "--measure", "--format", "json")
    (found,) = [one for one in json.loads(asked.stdout) if one["check"] == "limits"]
    assert found["severity"] == "ok", found
    kept = json.loads((agent.data_dir / "limits.json").read_text())
    assert 5e8 < kept["memory_bandwidth_bytes_per_s"] < 5e12
    assert 1e8 < kept["compute_flop_per_s"] < 1e15

    again = benchfleet("doctor", f"a={agent.address}", "--measure", "--format", "json")
    assert [one for one in json.loads(again.stdout) if one["check"] == "limits"] == [found]
    assert json.loads((agent.data_dir / "limits.json").read_text()) == kept

    assert benchfleet("run", "--host", f"a={agent.address}", "--model", "tiny-random", "--rounds", "1").returncode == 0
    ((limits, libraries),) = benchfleet.rows(
        "SELECT h.limits, c.device_libraries FROM hosts h, cases c WHERE h.limits IS NOT NULL"
    )
    assert json.loads(limits)["compute_flop_per_s"] == kept["compute_flop_per_s"]
    assert any("onnxruntime" in name for name in json.loads(libraries))
