"""Every key that JSON answers hold is on the page about them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchfleet_controller.cli import main
from fakes.lab import lab_store

PAGE = (Path(__file__).parents[3] / "docs/json.md").read_text(encoding="utf-8")
OPEN = {"run.plan", "hosts.devices", "hosts.runtimes", "hosts.probes", "hosts.limits", "hosts.problems",
        "cases.components", "cases.unmeasured", "cases.intervals", "components", "unmeasured", "intervals"}  # fmt: skip
"""Objects whose keys are data, or those of another page."""


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("json") / "lab.duckdb"
    lab_store(path, rounds=4, requests=3, samples=20)
    return path


def _documented(section: str) -> set[str]:
    text = PAGE.split(f"\n## {section}\n", 1)[1].split("\n## ", 1)[0]
    return set(re.findall(r"^\| `([\w.]+)` \|", text, re.MULTILINE))


def _keys(value: Any, path: str = "") -> Iterator[str]:
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, dict) and path not in OPEN:
            for key, inner in one.items():
                name = f"{path}.{key}" if path else key
                yield name
                yield from _keys(inner, name)


@pytest.mark.parametrize(
    ("section", "command"),
    [
        ("show", ["show", "r1", "--goodput", "ttft=0.5"]),
        ("compare", ["compare", "r1", "--by", "host"]),
        ("compare --answers", ["compare", "r1", "--by", "host", "--answers"]),
        ("select", ["select", "r1", "--max-ttft-p95", "1s"]),
        ("report", ["report", "r1", "-o"]),
        ("show --outliers", ["show", "r1", "--outliers"]),
    ],
)
def test_every_key_is_documented(
    section: str, command: list[str], database: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if section == "report":
        main([*command, str(tmp_path / "r.json"), "--db", str(database)])
        found = json.loads((tmp_path / "r.json").read_text())
    else:
        main([*command, "--format", "json", "--db", str(database)])
        found = json.loads(capsys.readouterr().out)
    keys = set(_keys(found))
    known = _documented(section)
    if section == "report":
        for place, of in (("cases", "show"), ("comparison.rows", "compare")):
            known |= {f"{place}.{key}" for key in _documented(of)}

    assert keys, found
    assert sorted(keys - known) == []


def test_a_comparison_warns_of_what_its_groups_rest_on(database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["compare", "r1", "--by", "host", "--format", "json", "--db", str(database)])
    rows = json.loads(capsys.readouterr().out)
    codes = {row["group"]: {warned["code"] for warned in row["warnings"]} for row in rows}
    main(["compare", "r1", "--by", "host", "--db", str(database)])
    text = capsys.readouterr().out

    assert "requests_failed" in codes["alpha"]
    assert "requests_failed" not in codes["beta"]
    assert "warning: alpha / foundry / tiny" in text
    assert "failed and are in no latency; read the reasons" in text
