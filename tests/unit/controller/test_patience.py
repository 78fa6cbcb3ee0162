from __future__ import annotations

import argparse
import asyncio
import os
import threading
from pathlib import Path

import pytest

from benchfleet_controller.options import add_database
from benchfleet_controller.store import StoreBusy
from benchfleet_controller.store.patience import holder, patiently

LOCK = (
    'IO Error: Could not set lock on file "/tmp/a.duckdb": Conflicting lock is held in /opt/my programs/duckdb '
    "(PID {pid}). See also https://duckdb.org/docs/current/connect/concurrency"
)
FILE = Path("results.duckdb")


class Busy:
    """A file that is in use for so many tries; each lasts as long as it may."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tries: int) -> None:
        self.now, self.left, self.waits = 100.0, tries, list[float]()
        monkeypatch.setattr("benchfleet_controller.store.patience.time.monotonic", lambda: self.now)

    def __call__(self, wait_s: float) -> str:
        self.waits.append(wait_s)
        self.now += wait_s
        self.left -= 1
        if self.left >= 0:
            raise StoreBusy(f"it is in use ({LOCK.format(pid=4194305)})")
        return "done"


def test_a_file_that_is_free_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    assert patiently(Busy(monkeypatch, 0), FILE, 10, said.append) == "done"
    assert said == []


def test_a_wait_is_told_after_a_second_and_then_every_ten(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    assert patiently(Busy(monkeypatch, 50), FILE, 60, said.append) == "done"
    assert said == [
        f"waiting for results.duckdb, in use by another process, 4194305 (/opt/my programs/duckdb): {seconds} of 60 s; "
        "Ctrl-C gives up"
        for seconds in (1, 11, 21)
    ]


def test_a_wait_ends_with_who_holds_the_file_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = Busy(monkeypatch, 999)

    with pytest.raises(StoreBusy, match=r"another process, 4194305 \(/opt.*\): wait longer with --wait") as caught:
        patiently(busy, FILE, 1.2)
    assert busy.waits == pytest.approx([0.5, 0.5, 0.2])
    assert "results.duckdb" in str(caught.value)


def test_no_wait_is_one_try(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = Busy(monkeypatch, 999)

    with pytest.raises(StoreBusy):
        patiently(busy, FILE, 0)
    assert busy.waits == [0]


def test_a_wait_without_an_end_says_none(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    assert patiently(Busy(monkeypatch, 5_000), FILE, float("inf"), said.append) == "done"
    assert said[-1].endswith(": 2491 s; Ctrl-C gives up")


def test_an_event_loop_that_waits_is_interrupted_by_the_cancelling_of_its_task(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = Busy(monkeypatch, 999)

    async def work() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()  # what Ctrl-C does
        patiently(busy, FILE, float("inf"))

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(work())
    assert len(busy.waits) == 1


def test_a_thread_that_nobody_can_interrupt_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    busy, caught = Busy(monkeypatch, 999), list[BaseException]()

    def work() -> None:
        try:
            patiently(busy, FILE, float("inf"))
        except StoreBusy as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

    assert len(caught) == 1
    assert sum(busy.waits) == pytest.approx(10)


def test_the_holder_is_named_with_its_command_where_the_system_says_it() -> None:
    said = holder(LOCK.format(pid=os.getpid()))

    assert said.startswith(f", {os.getpid()} (")
    assert len(said) < 130
    assert holder("The process cannot access the file because it is being used by another process.") == ""


@pytest.mark.parametrize(
    ("given", "wait"), [([], None), (["--wait"], float("inf")), (["--wait", "60"], 60.0), (["--wait=0"], 0.0)]
)
def test_the_option_is_a_number_of_seconds_or_for_ever(given: list[str], wait: float | None) -> None:
    parser = argparse.ArgumentParser()
    add_database(parser)

    assert parser.parse_args(given).wait == wait


@pytest.mark.parametrize("text", ["last", "-1", "nan"])
def test_what_is_no_number_of_seconds_is_told_how_to_write_it(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_database(parser)

    with pytest.raises(SystemExit):
        parser.parse_args([f"--wait={text}"])
    assert "write --wait=60, or a lone --wait at the end of the line" in capsys.readouterr().err
