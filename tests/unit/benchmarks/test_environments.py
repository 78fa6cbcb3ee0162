from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from benchmarks.peers import environments
from benchmarks.peers.environments import Unavailable, programs_of

PEER = ("peer==1.0",)


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What would have been run; the environment's folder appears, nothing else happens."""
    said: list[tuple[str, ...]] = []

    def run(arguments: tuple[str, ...], **_: object) -> subprocess.CompletedProcess[str]:
        said.append(arguments)
        (tmp_path / "peer").mkdir(exist_ok=True)
        return subprocess.CompletedProcess(arguments, 0, "", "")

    monkeypatch.setattr(environments, "FOLDER", tmp_path)
    monkeypatch.setattr(subprocess, "run", run)
    return said


def test_an_environment_is_made_once(commands: list[tuple[str, ...]]) -> None:
    programs = programs_of(PEER)
    made = len(commands)

    assert programs_of(PEER) == programs
    assert len(commands) == made == 2
    assert commands[1][-1] == "peer==1.0"


def test_another_version_is_another_environment(commands: list[tuple[str, ...]]) -> None:
    programs_of(PEER)
    programs_of(("peer==1.1",))

    assert [command[-1] for command in commands[1::2]] == ["peer==1.0", "peer==1.1"]


def test_no_requirements_need_no_environment(commands: list[tuple[str, ...]]) -> None:
    programs_of(())

    assert commands == []


def test_what_pip_says_is_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(arguments: tuple[str, ...], **_: object) -> subprocess.CompletedProcess[str]:
        said = "WARNING: retrying\nERROR: No matching distribution found for peer==1.0\n\n[notice] a new pip"
        return subprocess.CompletedProcess(arguments, int("pip" in arguments), "", said)

    monkeypatch.setattr(environments, "FOLDER", tmp_path)
    monkeypatch.setattr(subprocess, "run", run)

    with pytest.raises(Unavailable, match="No matching distribution found"):
        programs_of(PEER)
