from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchfleet.failures import Failure, Reason
from benchfleet_controller import campaign
from benchfleet_controller.commands import running
from benchfleet_controller.plan import HostTarget
from benchfleet_controller.problems import HostProblem
from benchfleet_controller.store import Store

HOST = HostTarget("lab", "127.0.0.1:1")
AWAY = HostProblem(HOST, Failure(Reason.HOST_UNREACHABLE, "nothing answers"))


@pytest.mark.parametrize(
    ("fetched", "problems", "code", "said"),
    [
        (0, [], 0, "the hosts hold nothing that is not stored"),
        (1, [], 0, "1 job fetched"),
        (2, [AWAY], 4, "2 jobs fetched"),
        (0, [AWAY], 4, None),
    ],
)
def test_collect_says_that_nothing_is_left_only_when_every_host_said_so(
    fetched: int,
    problems: list[HostProblem],
    code: int,
    said: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def collect(*_: Any) -> tuple[int, list[HostProblem]]:
        return fetched, problems

    monkeypatch.setattr(campaign, "collect", collect)

    assert running._collect(Store(tmp_path / "db"), (HOST,), None) == code
    told = [line for line in capsys.readouterr().err.splitlines() if line]
    assert told == [f"benchfleet: {problem}" for problem in problems] + ([said] if said else [])
