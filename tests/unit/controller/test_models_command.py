"""What the words of pull, rm and unload mean, and how progress is told."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from benchfleet.failures import Failure, Reason
from benchfleet.transport import refusal
from benchfleet_controller import cli
from benchfleet_controller.commands import UsageError
from benchfleet_controller.commands import models as models_command
from benchfleet_controller.commands.models import split_words
from benchfleet_controller.plan import HostTarget
from benchfleet_controller.pulling import PullProgress

KNOWN = {"lab1", "lab2"}


@pytest.mark.parametrize(
    ("words", "hosts", "models"),
    [
        ("lab1 phi-4-mini", "lab1", "phi-4-mini"),
        ("lab1 lab2 phi-4-mini qwen", "lab1 lab2", "phi-4-mini qwen"),
        ("a=10.0.0.1 b=10.0.0.2:50551 phi", "a=10.0.0.1 b=10.0.0.2:50551", "phi"),
        ("10.0.0.1 10.0.0.2 phi", "10.0.0.1 10.0.0.2", "phi"),
        ("gpu.lab:50551 cpu.lab:50551 phi", "gpu.lab:50551 cpu.lab:50551", "phi"),
        ("lab1 phi-generic-cpu:4 qwen:2", "lab1", "phi-generic-cpu:4 qwen:2"),
        ("lab1 qwen2.5-0.5b phi-3.5", "lab1", "qwen2.5-0.5b phi-3.5"),
        ("localhost localhost:50552 phi", "localhost localhost:50552", "phi"),
        ("[::1]:50551 [::1]:50552 phi", "[::1]:50551 [::1]:50552", "phi"),
        ("lab1 lab2", "lab1", "lab2"),  # the last word is always a model
        ("lab1 phi lab2", "lab1", "phi lab2"),
    ],
)
def test_hosts_come_first_and_models_follow(words: str, hosts: str, models: str) -> None:
    assert split_words(words.split(), KNOWN) == (hosts.split(), models.split())


def test_models_named_by_flag_leave_all_words_to_hosts() -> None:
    assert split_words(["lab1", "x"], KNOWN, named=["phi"]) == (["lab1", "x"], ["phi"])


def test_a_pull_without_a_model_is_wrong_usage() -> None:
    with pytest.raises(UsageError):
        split_words(["lab1"], KNOWN)


@pytest.mark.parametrize("command", ["rm --yes", "unload"])
@pytest.mark.parametrize(
    ("words", "hosts", "models"),
    [
        ("a=h:1 b=h:2 phi", ["a", "b"], ["phi"]),
        ("a=h:1 --model phi", ["a"], ["phi"]),
        ("a=h:1 b=h:2 --model phi --model qwen", ["a", "b"], ["phi", "qwen"]),
    ],
)
def test_rm_and_unload_take_the_model_as_last_word_or_by_flag(
    command: str, words: str, hosts: list[str], models: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[str]] = {}

    async def ask(chosen: tuple[HostTarget, ...], work: Any) -> tuple[list[Any], list[Any]]:
        seen["hosts"] = [target.name for target in chosen]

        async def call(request: Any, **_: float) -> Any:
            seen.setdefault("models", []).append(request.model)
            return SimpleNamespace(model=SimpleNamespace(variant=request.model), HasField=lambda _: False)

        stub = SimpleNamespace(RemoveModel=call, UnloadModel=call)
        return await work(SimpleNamespace(target=chosen[0], stub=stub)), []

    monkeypatch.setattr(models_command, "_each", ask)
    assert cli.main([*command.split(), *words.split()]) == 0
    assert seen == {"hosts": hosts, "models": models}


@pytest.mark.parametrize("command", ["rm --yes", "unload"])
def test_a_model_that_is_refused_hides_nothing_of_the_others(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def ask(chosen: tuple[HostTarget, ...], work: Any) -> tuple[list[Any], list[Any]]:
        async def call(request: Any, **_: float) -> Any:
            if request.model == "phi":
                status = refusal(grpc.StatusCode.NOT_FOUND, Failure(Reason.MODEL_NOT_FOUND, "no phi here"))
                none = grpc.aio.Metadata()
                trailing = grpc.aio.Metadata(*status.trailing_metadata)
                raise grpc.aio.AioRpcError(status.code, none, trailing, details=status.details)
            return SimpleNamespace(model=SimpleNamespace(variant=request.model), HasField=lambda _: False)

        stub = SimpleNamespace(RemoveModel=call, UnloadModel=call)
        return await work(SimpleNamespace(target=chosen[0], stub=stub)), []

    monkeypatch.setattr(models_command, "_each", ask)

    assert cli.main([*command.split(), "a=h:1", "--model", "qwen", "--model", "phi", "--model", "llama"]) == 4
    printed = capsys.readouterr()
    assert "qwen" in printed.out
    assert "llama" in printed.out
    assert "no phi here" in printed.err


@pytest.mark.parametrize("command", ["rm", "unload"])
def test_a_model_without_a_host_is_wrong_usage(command: str) -> None:
    assert cli.main([command, "phi"]) == 2


@pytest.mark.parametrize("command", ["pull", "rm", "unload", "models", "doctor"])
def test_the_commands_are_documented(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"])
    assert caught.value.code == 0
    assert "HOST" in capsys.readouterr().out


def test_lines_elsewhere_than_in_a_terminal_are_few_and_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    out = io.StringIO()
    with PullProgress([("a", "phi")], out) as progress:
        for step in range(100):
            now[0] = step * 0.1
            progress.report("a", "phi", "phi\x1b[31m", step / 100)
        progress.end("a", "phi", "phi is there", done=True)
    lines = out.getvalue().splitlines()
    assert lines[0] == "a: phi [31m 0%"
    assert lines[-1] == "a: phi is there"
    assert len(lines) == 6


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_for_each_pull() -> None:
    out = Terminal()
    with PullProgress([("a", "phi"), ("b", "phi")], out) as progress:
        progress.report("a", "phi", "phi: half", 0.5)
        progress.end("b", "phi", "no room", done=False)
        progress.end("a", "phi", "phi is there", done=True)
    shown = out.getvalue()
    assert "a phi" in shown
    assert "phi is there" in shown
    assert "no room" in shown
