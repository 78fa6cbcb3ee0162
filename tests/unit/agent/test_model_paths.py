from __future__ import annotations

import contextlib
import os
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchfleet.failures import Reason, WorkFailed
from benchfleet_agent.model_paths import check_model_path, inside, refuse_names


@pytest.mark.parametrize(
    "given_path",
    [
        r"\\server\share\model",
        "//server/share/model",
        r"\\?\C:\models\phi",
        r"\\.\PhysicalDrive0",
        r"\\?\UNC\server\share\x",
        r"C:models\phi",
        r"\models\phi",
        r"models\CON",
        r"models\nul.txt\x",
        r"models\com1",
        r"models\LPT³.onnx",
        r"models\conin$",
        r"C:\models\phi:stream",
        r"C:\models\phi.",
        r"C:\models\phi \x",
        "C:\\models\\a\x00b",
        "C:\\models\\\u202etxt",
        r"~administrator\models",
        "",
    ],
)
def test_names_that_mean_something_else_on_windows_are_refused(given_path: str) -> None:
    assert refuse_names(given_path, windows=True) is not None


@pytest.mark.parametrize(
    "given_path", [r"C:\models\phi-4", r"models\phi 4.5\cpu", "models/phi", r"~\models\x", "a/../b"]
)
def test_ordinary_names_are_fine_on_windows(given_path: str) -> None:
    assert refuse_names(given_path, windows=True) is None


@pytest.mark.parametrize(
    "given_path", ["a\0b/c", "a/\x1b[2J", "~root/x", "~nobody-is-called-so/x", "x" * 2_000, "a/\u2066b"]
)
def test_names_that_are_refused_elsewhere(given_path: str) -> None:
    assert refuse_names(given_path, windows=False) is not None


@pytest.mark.parametrize("given_path", ["/models/phi", "CON/x", "a:b/c", "~/models/x", "../x/y"])
def test_ordinary_names_elsewhere(given_path: str) -> None:
    assert refuse_names(given_path, windows=False) is None


def test_inside_is_judged_as_each_system_compares_names() -> None:
    windows = PureWindowsPath(r"C:\Models")
    assert inside(PureWindowsPath(r"c:\models\phi"), windows)
    assert not inside(PureWindowsPath(r"C:\Models2\phi"), windows)
    assert not inside(PureWindowsPath(r"D:\Models\phi"), windows)
    assert not inside(PureWindowsPath(r"C:\Models\..\Windows"), windows)
    posix = PurePosixPath("/models")
    assert inside(PurePosixPath("/models/phi"), posix)
    assert not inside(PurePosixPath("/Models/phi"), posix)
    assert not inside(PurePosixPath("/models/../etc"), posix)
    assert not inside(PurePosixPath("models/phi"), posix)


def refused(path: str, *roots: Path) -> str:
    with pytest.raises(WorkFailed) as caught:
        check_model_path(path, roots)
    assert caught.value.failure.reason is Reason.PATH_NOT_ALLOWED
    return caught.value.failure.message


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "models" / "a" / "b").mkdir(parents=True)
    (tmp_path / "models" / "file").touch()
    (tmp_path / "outside").mkdir()
    return tmp_path / "models"


def test_a_directory_below_a_root_is_found_by_its_whole_path_and_from_the_root(root: Path) -> None:
    whole = (root / "a" / "b").resolve()
    assert check_model_path(str(root / "a" / "b"), [root]) == whole
    assert check_model_path("a/b", [root.parent / "nowhere", root]) == whole
    assert check_model_path("a/../a/b", [root]) == whole


def test_whatever_leads_out_of_the_roots_or_to_no_directory_is_refused_alike(root: Path) -> None:
    said = {
        refused(path, root).partition(":")[2]
        for path in ("../outside", str(root.parent / "outside"), "/etc", "a/nothing", "file", "/root/secret", "a/../..")
    }
    assert len(said) == 1


def test_without_roots_nothing_is_allowed(root: Path) -> None:
    assert "model_roots" in refused(str(root / "a"))


@pytest.mark.skipif(os.name == "nt", reason="links take a privilege there")
def test_links_do_not_lead_out_and_may_lead_around_inside(root: Path) -> None:
    (root / "out").symlink_to(root.parent / "outside")
    (root / "around").symlink_to(root / "a")
    (root / "loop").symlink_to(root / "loop")
    (root.parent / "alias").symlink_to(root)
    for path in ("out/", "out/..", "loop/x", "loop/"):
        refused(path, root) if path != "out/.." else None
    refused("out/../outside", root)
    assert check_model_path("around/b", [root]) == (root / "a" / "b").resolve()
    assert check_model_path("a/b", [root.parent / "alias"]) == (root / "a" / "b").resolve()


def test_what_is_refused_cannot_steer_a_terminal(root: Path) -> None:
    assert refused("a/\x1b]0;hello\x07", root).isprintable()


@given(st.text(max_size=80), st.booleans())
def test_any_text_is_judged_and_never_breaks_the_judge(text: str, windows: bool) -> None:
    refuse_names(text, windows=windows)
    with contextlib.suppress(WorkFailed):
        check_model_path(text, [Path("/nowhere/at/all")])
