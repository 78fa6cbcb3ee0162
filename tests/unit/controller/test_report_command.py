from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchfleet_controller import cli
from fakes.lab import HOSTILE, lab_store


def _report(database: Path, *arguments: str) -> int:
    return cli.main(["report", "last", "--db", str(database), *arguments])


@pytest.mark.parametrize(("style", "begins"), [("svg", b"<svg"), ("png", b"\x89PNG")])
@pytest.mark.slow
def test_charts_lie_beside_markdown_and_replace_others_only_when_that_is_wanted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], style: str, begins: bytes
) -> None:
    lab_store(tmp_path / "b.duckdb", rounds=2, samples=5, name=HOSTILE)
    target = tmp_path / "out" / "r.md"
    (target.parent / "r-charts").mkdir(parents=True)
    (target.parent / "r-charts" / "mine.txt").write_text("precious")

    assert _report(tmp_path / "b.duckdb", "-o", str(target), "--charts", style) == 2
    assert "--force" in capsys.readouterr().err
    assert not target.exists()
    assert (target.parent / "r-charts" / "mine.txt").exists()

    assert _report(tmp_path / "b.duckdb", "-o", str(target), "--charts", style, "--force") == 0
    page = target.read_text(encoding="utf-8")
    shown = re.findall(r"!\[.+\]\((.+)\)", page)
    assert len(shown) > 3
    assert all((target.parent / one).read_bytes().startswith(begins) for one in shown)
    assert sorted(path.name for path in target.parent.iterdir()) == ["r-charts", "r.md"]
    assert not (target.parent / "r-charts" / "mine.txt").exists()
    assert "<script>" not in page


def test_charts_are_for_markdown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lab_store(tmp_path / "b.duckdb", rounds=2, samples=5)

    assert _report(tmp_path / "b.duckdb", "-o", str(tmp_path / "r.csv"), "--charts", "png") == 2
    assert "--charts is for Markdown" in capsys.readouterr().err
