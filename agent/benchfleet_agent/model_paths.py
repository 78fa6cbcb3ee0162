"""Which paths of models a caller may name: those inside the agent's own folders, links followed.

The core (`refuse_names`, `inside`) decides on texts, for both kinds of systems; `check_model_path` adds what only the
file system knows.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePath, PureWindowsPath

from benchfleet.failures import Reason, WorkFailed

MAXIMUM_PATH = 1_000
_DEVICES = frozenset(
    {"con", "prn", "aux", "nul", "conin$", "conout$", "clock$"}
    | {f"{port}{number}" for port in ("com", "lpt") for number in "0123456789¹²³"}
)
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def is_path(model: str) -> bool:
    """Whether a model's name is meant as a path."""
    return "/" in model or "\\" in model


def refuse_names(given: str, *, windows: bool) -> str | None:
    """Why a path is refused for how it is written, whatever it leads to, for people; None: it is not.

    https://learn.microsoft.com/en-us/windows/win32/fileio/naming-a-file
    """
    if not given or len(given) > MAXIMUM_PATH:
        return f"a path has 1 to {MAXIMUM_PATH} characters"
    if _UNPRINTABLE.search(given):
        return "it has control characters"
    if given.startswith("~") and not given.startswith("~/") and not (windows and given.startswith("~\\")):
        return "another user's home is not looked up"
    return _windows_problem(PureWindowsPath(given)) if windows else None


def inside(path: PurePath, root: PurePath) -> bool:
    """Whether a path lies in a root or is it, both absolute and without links; as its system compares names."""
    return ".." not in path.parts and path.is_absolute() and path.is_relative_to(root)


def check_model_path(given: str, roots: Sequence[Path]) -> Path:
    """The directory that a caller's path names, below a root or absolute, its links followed.

    Raises `WorkFailed` ``path_not_allowed``, in the same words whether the path leads out or to nothing, so that
    nobody learns what else there is on the host.
    """
    problem = refuse_names(given, windows=os.name == "nt")
    if problem is None:
        try:
            wanted = Path(given).expanduser()
            for root in roots:
                top = root.resolve()
                whole = (top / wanted).resolve()
                if inside(whole, top) and whole.is_dir():
                    return whole
        except (OSError, RuntimeError, ValueError):  # a loop of links, a name too long, no home
            pass
        problem = f"it is no directory under the agent's model_roots ({', '.join(map(str, roots)) or 'none'})"
    raise WorkFailed(
        Reason.PATH_NOT_ALLOWED,
        f"{shown(given)} is not allowed: {problem}; agent.toml says where models may lie (model_roots)",
    )


def shown(text: str) -> str:
    """A caller's text for a message: short, on one line, nothing in it that steers a terminal."""
    return ascii(text[:200]) if not text.isprintable() else text[:200]


def _windows_problem(path: PureWindowsPath) -> str | None:
    if path.drive.startswith("\\\\"):
        return "network and device paths are not opened"
    if bool(path.drive) != bool(path.root):
        return "a path with a drive begins at its root (C:\\...), one without is relative"
    for part in path.parts[1:] if path.anchor else path.parts:
        if part == "..":
            continue
        if ":" in part:
            return "a part of it names a stream of a file"
        if part != part.rstrip(" ."):
            return "a part of it ends in a blank or a dot, which Windows drops"
        if part.partition(".")[0].rstrip(" ").lower() in _DEVICES:
            return f"{part} is a device"
    return None
