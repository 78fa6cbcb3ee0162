"""The host is kept awake by a command that runs exactly as long as it is needed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from benchfleet_agent.keep_awake import inhibitor, kept_awake

POSIX = pytest.mark.skipif(os.name != "posix", reason="Windows asks by a call, not by a command")


@POSIX
def test_the_systems_command_runs_while_it_is_needed_and_ends_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, ended = tmp_path / "started", tmp_path / "ended"
    if sys.platform == "win32":  # for the type checker
        raise AssertionError
    os.mkfifo(started)
    name = inhibitor(sys.platform, "x")[0]
    command = tmp_path / name
    command.write_text(f'#!/bin/sh\ntrap "echo > {ended}; exit 0" TERM\necho "$@" > {started}\ncat > /dev/null\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with kept_awake("fetching phi"):
        said = started.read_text()  # waits for the command
        assert not ended.exists()
    assert "fetching phi" in said or "-w" in said


@POSIX
def test_a_system_without_such_a_command_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with kept_awake("fetching phi"):
        pass


def test_each_system_has_its_own_command() -> None:
    assert inhibitor("darwin", "w")[:2] == ["caffeinate", "-i"]
    assert inhibitor("linux", "w")[0] == "systemd-inhibit"
    assert inhibitor("freebsd14", "w") == []
