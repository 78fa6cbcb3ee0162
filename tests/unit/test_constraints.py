from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_dependency_has_a_chosen_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    groups = [project["project"]["dependencies"], *project["project"]["optional-dependencies"].values()]
    groups += [[one for one in group if isinstance(one, str)] for group in project["dependency-groups"].values()]
    wanted = {_name(one) for group in groups for one in group}
    chosen = {_name(line) for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()}

    assert wanted <= chosen, "run `make lock`"


def test_the_chosen_versions_name_no_registry() -> None:
    assert "://" not in (ROOT / "constraints.txt").read_text(encoding="utf-8")


def _name(requirement: str) -> str:
    return re.split(r"[\s\[<>=!;~]", requirement, maxsplit=1)[0].lower().replace("_", "-")
