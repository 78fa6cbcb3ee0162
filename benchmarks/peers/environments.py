"""A virtual environment for each peer, with exact versions, made once and kept."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".peers"
_PROGRAMS = "Scripts" if sys.platform == "win32" else "bin"
_READY = ".benchfleet-ready"


class Unavailable(Exception):
    """A peer cannot be installed here; the message says why, in one line."""


def programs_of(requirements: tuple[str, ...]) -> Path:
    """The folder of the environment's programs, made when missing. Raises `Unavailable`."""
    if not requirements:
        return Path(sys.executable).parent
    folder = FOLDER / requirements[0].partition("==")[0]
    python = folder / _PROGRAMS / "python"
    ready = folder / _READY
    if not ready.exists() or ready.read_text(encoding="utf-8") != "\n".join(requirements):
        print(f"installing {' '.join(requirements)} …", file=sys.stderr, flush=True)
        _run(sys.executable, "-m", "venv", "--clear", str(folder))
        _run(str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements)
        ready.write_text("\n".join(requirements), encoding="utf-8")
    return folder / _PROGRAMS


def _run(*arguments: str) -> None:
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=1200, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(str(error)) from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "ERROR" in line] or done.stderr.splitlines()
        raise Unavailable(lines[-1] if lines else f"{arguments[2]} failed with {done.returncode}")
