"""Makes the pictures of docs/reports.md anew, in Chromium: `PYTHONPATH=tests python docs/screenshots.py`."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import duckdb

from benchfleet_controller.commands.reporting import html_of
from benchfleet_controller.store import Store
from fakes.lab import lab_store

IMAGES = Path(__file__).parent / "images"
_DARK, _LIGHT = 0, 1
_FRAME = """<!DOCTYPE html><body style="margin:0;overflow:hidden">
<iframe src="report.html" width="{width}" height="9000" style="border:0;position:absolute;top:0" onload="
  const parts = this.contentDocument.querySelectorAll('{part}'), shown = parts[Math.min(2, parts.length - 1)];
  parts.forEach((one) => one.open = one === shown);
  setTimeout(() => this.style.top = -shown.offsetTop + 'px', 9000)"></iframe>"""
SHOTS = (
    ("report-wide", 1600, 2600, "", _LIGHT),
    ("report-timelines", 1600, 1150, "#timelines > details", _LIGHT),
    ("report-phone", 400, 1500, "", _DARK),
)
"""Name, width and height in pixels, of which parts the third is shown (empty: the top), the reader's setting."""


def main() -> None:
    """Draw a made-up run's page at all sizes. Raises OSError without Chromium."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise OSError("no Chromium on this machine (Debian: apt-get install chromium)")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "report.html").write_text(_page(folder), encoding="utf-8")
        for image, width, height, part, scheme in SHOTS:
            frame = _FRAME.format(width=width, part=part)
            if not part:
                frame = frame.split(" onload=")[0] + "></iframe>"
            (folder / "frame.html").write_text(frame, encoding="utf-8")
            subprocess.run(
                [
                    browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
                    "--hide-scrollbars", "--virtual-time-budget=30000", f"--user-data-dir={folder / 'profile'}",
                    f"--blink-settings=preferredColorScheme={scheme}", f"--window-size={width},{height}",
                    f"--screenshot={IMAGES / image}.png", (folder / "frame.html").as_uri(),
                ],
                check=True, capture_output=True, timeout=300,
            )  # fmt: skip


def _page(folder: Path) -> str:
    path = folder / "lab.duckdb"
    lab_store(path, rounds=6, requests=12, samples=300, name="smollm2-135m")
    with duckdb.connect(str(path)) as connection:
        connection.execute("UPDATE runs SET name = 'nightly'")
    return html_of(Store(path), "r1")


if __name__ == "__main__":
    main()
