"""Two processes and one database: readers get their turn beside a run; who has the file is said, and waited for."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import pytest

from fakes.scored_run import recorded_answers
from integration.conftest import AgentProcess, Benchfleet, wait_until

pytestmark = pytest.mark.slow
SPAWNED = True
"""Commands are processes of their own here."""

HOLDER = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('held', flush=True); sys.stdin.read()"


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return recorded_answers(tmp_path / "results.duckdb", (), ["blue"]).path


@pytest.fixture
def held(database: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has the file open until its input ends."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(database)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_who_has_the_database_is_named_with_what_to_do(database: Path, held: subprocess.Popen[str]) -> None:
    done = Benchfleet(database)("runs", "--wait", "0")

    assert done.returncode == 2
    assert f"in use by another process, {held.pid}" in done.stderr
    assert "wait longer with --wait" in done.stderr
    if sys.platform == "linux":
        assert "import duckdb" in done.stderr  # its command line


def test_a_command_waits_until_the_database_is_free_and_says_so_meanwhile(
    database: Path, held: subprocess.Popen[str]
) -> None:
    waiting = Benchfleet(database).start("runs", "--format", "json", "--wait")
    assert waiting.stderr is not None
    said = waiting.stderr.readline()
    assert held.stdin is not None
    held.stdin.close()
    held.wait(10)
    out, err = waiting.communicate(timeout=60)

    assert said.startswith(f"waiting for {database}, in use by another process, {held.pid}")
    assert waiting.returncode == 0, err
    assert '"run_id"' in out


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
@pytest.mark.parametrize("command", [("runs",), ("run", "--model", "m", "--host", "127.0.0.1:1")])
def test_ctrl_c_ends_the_wait(database: Path, held: subprocess.Popen[str], command: tuple[str, ...]) -> None:
    waiting = Benchfleet(database).start(*command, "--wait")
    assert waiting.stderr is not None
    assert "waiting for" in waiting.stderr.readline()
    waiting.send_signal(signal.SIGINT)
    _, err = waiting.communicate(timeout=20)

    assert waiting.returncode == 130
    assert "Traceback" not in err


def test_others_read_the_database_while_a_run_writes_to_it(
    make_agent: Callable[..., AgentProcess], benchfleet: Benchfleet, tmp_path: Path
) -> None:
    agent = make_agent()
    model = ("--model", "tiny-random", "--max-tokens", "4", "--host", f"solo={agent.address}")
    running = benchfleet.start("run", *model, "--rounds", "10000", "--concurrency", "1,2")
    following = threading.Thread(target=running.communicate)  # so that its progress never fills the pipe
    following.start()

    def stored() -> int:
        try:
            return int(benchfleet.rows("SELECT count(*) FROM requests")[0][0])
        except duckdb.Error:
            return 0  # it is not made yet, or the run has it just now

    try:
        wait_until(lambda: stored() > 4, 90, f"requests are stored; {agent.log()}")
        page = tmp_path / "report.md"
        for command in (("show",), ("compare", "last", "--by", "concurrency"), ("report", "last", "-o", str(page))):
            done = benchfleet(*command)
            assert done.returncode == 0, done.stderr
        before = stored()
        wait_until(lambda: stored() > before, 30, "the run goes on storing")
        assert (running.poll(), page.read_text()[:1]) == (None, "#")
    finally:
        running.kill()
        following.join()
