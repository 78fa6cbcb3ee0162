"""The command line's outside: help that costs nothing, and completion in a real shell."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchfleet import __version__
from benchfleet_controller import completers
from benchfleet_controller.cli import COMMANDS, EXIT_DONE, EXIT_USAGE, main, parser
from benchfleet_controller.help_text import HELP
from fakes.events import JobEvents, commit_events, spec

BIN = Path(sys.executable).parent


def test_the_help_is_what_the_parser_would_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")

    assert parser("").format_help() == HELP, "run make docs"


@pytest.mark.parametrize(("arguments", "code"), [([], EXIT_USAGE), (["-h"], EXIT_DONE), (["--help"], EXIT_DONE)])
def test_the_help_names_every_command(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == code

    assert capsys.readouterr().out == HELP
    assert [name for name in COMMANDS if not re.search(rf"^ +{name}\b", HELP, re.MULTILINE)] == []


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_import_nothing_that_takes_time(option: str) -> None:
    code = (
        f"import sys; from benchfleet_controller.cli import main; main([{option!r}]); "
        "print({'argparse', 're', 'typing', 'rich', 'duckdb', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-S", "-c", _paths() + code], capture_output=True, text=True, check=True)

    assert done.stdout.endswith("set()\n"), done.stdout[-200:]


def _paths() -> str:
    """Imports without `site`, whose own imports are not ours."""
    return f"import sys; sys.path[:0] = {[path for path in sys.path if path]!r}; "


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == EXIT_DONE
    assert capsys.readouterr().out == f"benchfleet {__version__}\n"


def test_dimensions_are_offered_one_after_another() -> None:
    assert "device" in completers.dimensions("")
    assert "host,device" in completers.dimensions("host,de")
    assert "host,host" not in completers.dimensions("host,")
    assert "device=" in completers.filters()
    assert "ttft_p50_s" in completers.metrics()


def test_without_a_database_only_last_is_offered(tmp_path: Path) -> None:
    asked = argparse.Namespace(db=tmp_path / "none.duckdb")

    assert completers.runs(asked) == ["last"]
    assert completers.hosts(asked) == []


def _completed(line: str, **environment: str) -> list[str]:
    """What bash, with the program's own registration, makes of a line when TAB is pressed at its end."""
    script = """
      eval "$(benchfleet completion bash)"
      COMP_LINE=$1 COMP_POINT=${#1} COMP_TYPE=9 COMP_KEY=9
      read -ra COMP_WORDS <<< "$1"; [[ $1 == *' ' ]] && COMP_WORDS+=("")
      COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
      declare -F | grep -q _python_argcomplete || exit 9
      _python_argcomplete benchfleet "${COMP_WORDS[-1]}"
      printf '%s\\n' "${COMPREPLY[@]}"
    """
    path = os.pathsep.join([str(BIN), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "--norc", "-c", script, "bash", line],
        capture_output=True, text=True, check=False, env={**os.environ, "PATH": path, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [one.strip() for one in done.stdout.splitlines() if one.strip()]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_completes_commands_options_dimensions_and_runs(tmp_path: Path) -> None:
    from benchfleet_controller.store import Store

    job = JobEvents()
    job.job_started(spec("c1", run_id="2bca458e-one"))
    commit_events(Store(tmp_path / "lab.duckdb"), "j1", job.events)
    database = str(tmp_path / "lab.duckdb")

    assert _completed("benchfleet comp") == ["compare", "completion"]
    assert "--baseline" in _completed("benchfleet compare --ba")
    assert {"host", "device", "ep"} <= set(_completed("benchfleet compare --by "))
    assert _completed("benchfleet show 2b", BENCHFLEET_DB=database) == ["2bca458e-one"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell"])
def test_every_shell_gets_its_registration(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Executed in bash above; of the others only that something for this program is made."""
    assert main(["completion", shell]) == EXIT_DONE
    assert "benchfleet" in capsys.readouterr().out
