from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchfleet.failures import Reason, WorkFailed
from benchfleet_agent import page_cache

linux = pytest.mark.skipif(sys.platform != "linux", reason="no other system tells of single files")


@linux
def test_what_was_read_is_in_the_cache_and_what_was_dropped_is_not(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name, size in (("weights", 1 << 20), ("sub/odd", 5000), ("empty", 0)):
        (tmp_path / name).write_bytes(b"x" * size)
    files = page_cache.files_of(tmp_path)

    assert [path.name for path in files] == ["empty", "odd", "weights"]
    assert page_cache.resident_ratio(files) == 1.0
    page_cache.drop(files)
    assert page_cache.resident_ratio(files) == pytest.approx(0.0, abs=0.02)


def test_no_files_and_missing_files_are_unknown(tmp_path: Path) -> None:
    assert page_cache.resident_ratio([]) is None
    assert page_cache.resident_ratio([tmp_path / "none"]) is None


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_other_systems_say_that_they_cannot(platform: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    with pytest.raises(WorkFailed, match="Linux only") as caught:
        page_cache.drop([tmp_path])
    assert caught.value.failure.reason is Reason.UNSUPPORTED_OS
    assert page_cache.resident_ratio([tmp_path]) is None
