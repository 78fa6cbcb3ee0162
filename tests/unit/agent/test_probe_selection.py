from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchfleet_agent.__main__ import main
from benchfleet_agent.config import AgentConfig, ProbesConfig
from benchfleet_agent.executor import Runtimes
from benchfleet_agent.probe_selection import DISABLED, probes_to_list, probes_to_read
from benchfleet_agent.probes import default_probes, describe


def test_jobs_read_what_agent_toml_leaves_at_the_wanted_periods() -> None:
    config = ProbesConfig(("nvidia",), {"system": 250})

    probes = {probe.probe_id: probe for probe in Runtimes(AgentConfig(probes=config)).probes()}

    assert probes.keys() == {probe.probe_id for probe in default_probes()} - {"nvidia"}
    assert probes["system"].period_ms == 250
    assert {probe.probe_id: probe.period_ms for probe in probes_to_read(ProbesConfig())}["system"] == 100


def test_listings_say_which_probes_are_disabled_and_what_is_missing_for_it() -> None:
    probes = probes_to_list(ProbesConfig(("system",)))
    (row,) = describe([probe for probe in probes if probe.probe_id == "system"])

    assert [probe.probe_id for probe in probes] == [probe.probe_id for probe in default_probes()]
    assert (row.available, row.reason) == (False, DISABLED)
    assert "runtime_rss_bytes" in row.metrics
    assert row.gaps["runtime_rss_bytes"] == DISABLED


def test_the_command_says_what_agent_toml_disables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "agent.toml"
    config.write_text('[probes]\ndisabled = ["system"]\n', encoding="utf-8")

    assert main(["probes", "system", "--config", str(config), "--format", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["available"], row["reason"]) == (False, DISABLED)
    assert main(["probes", "sistem", "--config", str(config)]) == 2
    assert "did you mean system" in capsys.readouterr().err
