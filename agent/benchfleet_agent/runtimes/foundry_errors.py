"""What Foundry Local's native errors mean: its codes and words as benchfleet's reasons.

Used inside the child process, possibly under another interpreter: standard library only, reasons as plain
strings (values of `benchfleet.failures.Reason`).
"""

from __future__ import annotations

import re

# FoundryLocalException.error_code, the flErrorCode enumeration of foundry_local_c.h.
_NOT_IMPLEMENTED, _CANCELLED, _NETWORK = 1, 5, 6

_OUT_OF_MEMORY = re.compile(r"bad_alloc|out of memory|(?:failed|unable) to allocate|insufficient memory", re.IGNORECASE)
_DISK_FULL = re.compile(r"no space left|disk is full|not enough space", re.IGNORECASE)
_EP_MISSING = re.compile(r"is not registered|DownloadAndRegisterEps", re.IGNORECASE)
_CORRUPT = re.compile(
    r"file doesn'?t exist|no such file|does not exist|protobuf|parse error|failed to parse|deserialize|corrupt|"
    r"invalid model|invalid_graph|invalid_protobuf|not a regular file|must contain|error opening|tokenizer",
    re.IGNORECASE,
)
# The native library starts its messages with file:line and the C++ signature: "x.cc:255 virtual T f(const A&) text".
_NATIVE_PREFIX = re.compile(r"^\w+\.cc:\d+ .*?\)(?: const)? (?=\S)")


class CommandFailed(Exception):
    """A command failed for a known reason (a value of `benchfleet.failures.Reason`)."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def reason_for(command: str, code: int, text: str) -> str:
    """The reason for a native failure of a command: by its words where the code (2, INTERNAL) says nothing."""
    if code == _CANCELLED:
        return "cancelled"
    if code == _NOT_IMPLEMENTED:
        return "unsupported"
    if _DISK_FULL.search(text):
        return "disk_full"
    if command in ("download", "models", "register_eps"):
        return {"download": "download_failed", "models": "connection_failed", "register_eps": "ep_missing"}[command]
    if _OUT_OF_MEMORY.search(text):
        return "out_of_memory"
    if command == "load" and _EP_MISSING.search(text):
        return "ep_missing"
    if command in ("load", "register") and _CORRUPT.search(text):
        return "corrupt_model"
    if command in ("load", "register"):
        return "download_failed" if code == _NETWORK else "load_failed"
    return "runtime_unavailable" if command in ("start", "serve") else "internal"


_ADVICE = {
    "corrupt_model": "delete the model's directory and prepare it again",
    "out_of_memory": "choose a smaller model or free memory on the host",
    "ep_missing": "choose another device, or install the execution provider's driver",
    "disk_full": "free disk space where models are cached",
    "download_failed": "check the host's network, or run a model that is already there",
    "load_failed": "the agent's log of this child has the native messages",
}


def explain(command: str, error: Exception) -> tuple[str, str]:
    """Reason and message (with what to do next) of an exception that a command raised."""
    if isinstance(error, CommandFailed):
        return error.reason, str(error)
    text = _NATIVE_PREFIX.sub("", str(error).strip()) or type(error).__name__
    if isinstance(error, MemoryError):
        reason = "out_of_memory"
    elif type(error).__name__ == "FoundryLocalException":
        reason = reason_for(command, int(getattr(error, "error_code", 0)), text)
    elif isinstance(error, OSError):
        reason = reason_for(command, 0, text)
    else:
        reason, text = "internal", f"{type(error).__name__}: {text}"
    advice = _ADVICE.get(reason)
    return reason, f"{text} ({advice})" if advice else text
