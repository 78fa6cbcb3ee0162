from __future__ import annotations

import importlib.util

import pytest

from benchfleet_agent.__main__ import main


def test_a_controllers_installation_says_what_the_agent_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    assert main(["doctor"]) == 2
    assert "pip install 'benchfleet[agent]'" in capsys.readouterr().err


def test_a_bad_flag_is_told_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--runtime-cpus", "first"]) == 2
    assert "write 0, 0,2, 0-3 or all" in capsys.readouterr().err
