"""New databases are copies of one: making one takes half a second of statements, the same for every test."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchfleet_controller.store import Store, connection


@pytest.fixture(scope="session", autouse=True)
def new_databases_are_copied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    template = tmp_path_factory.mktemp("empty") / "empty.duckdb"
    Store(template).mark_released(())
    attach = connection._attach

    def copied(path: Path, *, write: bool, deadline: float) -> None:
        if write and path.parent.is_dir() and not path.exists():
            shutil.copy(template, path)
        attach(path, write=write, deadline=deadline)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection, "_attach", copied)
        yield
