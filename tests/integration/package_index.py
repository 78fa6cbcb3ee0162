"""Packages from the index for slow tests: skipped where there is none to be had, failed where one does not install."""

from __future__ import annotations

import subprocess
import sys

import pytest

INSTALL_S = 900


def install_or_skip(python: str, requirement: str, *options: str) -> None:
    """Install into an interpreter's environment with our pip. Skips only when the index has no such distribution."""
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-compile"]
    command += ["--disable-pip-version-check", *options, requirement]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=INSTALL_S)
    if done.returncode == 0:
        return
    if lacks(requirement, done.stderr):
        pytest.skip(f"the package index has no {requirement} for this machine, or cannot be reached")
    pytest.fail(f"{requirement} does not install:\n{done.stderr[-2000:]}")


def lacks(requirement: str, said: str) -> bool:
    """Whether pip says that the index has none: of this very requirement, not of something it needs."""
    wanted = f"ERROR: No matching distribution found for {requirement}"
    return any(line.strip() == wanted for line in said.splitlines())
