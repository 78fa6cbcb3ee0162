"""Keeps the Foundry Local child on the processors a case names. Standard library only: it runs in the child."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import shutil
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

from benchfleet_agent.runtimes.foundry_errors import CommandFailed

# linux/audit.h's AUDIT_ARCH and the number of sched_setaffinity, per machine.
_SYSCALLS = {"x86_64": (0xC000003E, 203), "aarch64": (0xC00000B7, 122)}
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _SECCOMP_MODE_FILTER = 22, 38, 2
_LOAD_WORD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _PRETEND_SUCCESS = 0x7FFF0000, 0x00050000  # SECCOMP_RET_ALLOW; SECCOMP_RET_ERRNO with errno 0


def pin(cpus: Iterable[int]) -> list[int]:
    """Restrict this whole process to some logical processors; no effect when none are named.

    Must run before ONNX Runtime is loaded, because its pools inherit the mask. Returns the processors in force.
    Raises `CommandFailed`: ``unsupported`` on systems that cannot, ``invalid_spec`` when the host (or the
    container) lacks one of them.
    """
    wanted = sorted(set(cpus))
    if not wanted:
        return []
    if sys.platform == "linux":
        return _pin_linux(wanted)
    if sys.platform == "win32":
        return _pin_windows(wanted)
    raise CommandFailed("unsupported", f"{sys.platform} cannot pin a process to processors; leave out `cpus`")


def with_threads(model: Path, views: Path, threads: int) -> Path:
    """A view of a model's directory (hard links, else copies) that computes with so many threads.

    ONNX Runtime GenAI makes half as many threads as the *machine* has processors (its model.cpp), however few
    the process may use, and spinning threads that share a processor are slower than one: measured on two
    processors, four threads gave 45 tokens/s where two gave 110. The session option in genai_config.json is the
    only way to say so. A model whose configuration names a number itself is left alone: its own path is returned.
    """
    text = (model / "genai_config.json").read_text(encoding="utf-8")
    try:
        config = json.loads(text)
        options = config["model"]["decoder"].setdefault("session_options", {})
        if "intra_op_num_threads" in options:
            return model
        options["intra_op_num_threads"] = threads
    except (ValueError, KeyError, TypeError, AttributeError):
        return model  # broken or of another shape: the runtime says so better when it loads it
    view = views / f"{model.name}-{threads}-threads"
    names = sorted(path.name for path in model.iterdir() if path.is_file() and path.name != "genai_config.json")
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(view)
    view.mkdir(parents=True)
    for name in names:
        try:
            # Not symbolic links: ONNX Runtime refuses external data that lies outside the model's directory.
            os.link(model / name, view / name)
        except OSError:  # another file system, or one without links
            shutil.copy2(model / name, view / name)
    (view / "genai_config.json").write_text(json.dumps(config), encoding="utf-8")
    return view


def _pin_linux(wanted: list[int]) -> list[int]:
    if sys.platform != "linux":  # for the type checker
        raise AssertionError
    allowed = sorted(os.sched_getaffinity(0))
    # The kernel silently drops processors that are absent (sched_setaffinity(2)), so they are checked first.
    absent = [cpu for cpu in wanted if cpu not in allowed]
    if absent:
        message = f"no processor {_words(absent)} here, only {_words(allowed)}; correct the plan's `cpus`"
        raise CommandFailed("invalid_spec", message)
    for task in os.listdir("/proc/self/task"):  # noqa: PTH208  the mask is per thread; later ones inherit it
        os.sched_setaffinity(int(task), wanted)
    _keep_mask()
    return wanted


def _keep_mask() -> None:
    """Let no thread of this process change its mask again.

    Needed because the web server moves the thread of each connection, which is also the one that computes,
    to processors 0 to N-2 whatever the process was pinned to (oatpp's HttpConnectionHandler.cpp,
    ``setThreadAffinityToCpuRange``; seen with foundry-local-sdk 2.2.1). A seccomp filter (seccomp(2)) needs no
    privilege; the call then reports success and does nothing.
    """
    machine = platform.machine()
    if machine not in _SYSCALLS:
        raise CommandFailed("unsupported", f"pinning is not known for {machine} machines; leave out `cpus`")
    architecture, number = _SYSCALLS[machine]
    program = b"".join(
        struct.pack("=HBBI", *instruction)  # struct sock_filter: code, jump if true, jump if false, operand
        for instruction in (
            (_LOAD_WORD, 0, 0, 4),  # seccomp_data.arch
            (_JUMP_IF_EQUAL, 0, 3, architecture),
            (_LOAD_WORD, 0, 0, 0),  # seccomp_data.nr
            (_JUMP_IF_EQUAL, 0, 1, number),
            (_RETURN, 0, 0, _PRETEND_SUCCESS),
            (_RETURN, 0, 0, _ALLOW),
        )
    )
    code = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(code)))  # sock_fprog
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    zero = ctypes.c_ulong(0)
    if prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), zero, zero, zero) or prctl(
        _PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), ctypes.byref(header), zero, zero
    ):
        cause = os.strerror(ctypes.get_errno())
        message = f"this system refuses the filter that keeps the runtime on its processors ({cause}); leave out `cpus`"
        raise CommandFailed("unsupported", message)


def _pin_windows(wanted: list[int]) -> list[int]:
    if sys.platform != "win32":  # for the type checker
        raise AssertionError
    if wanted[-1] >= 64:  # one processor group; SetProcessAffinityMask knows no other
        raise CommandFailed("unsupported", "on Windows only processors 0 to 63 can be named; leave out the others")
    kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
    kernel32.GetCurrentProcess.restype = ctypes.c_void_p
    kernel32.SetProcessAffinityMask.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    if not kernel32.SetProcessAffinityMask(kernel32.GetCurrentProcess(), sum(1 << cpu for cpu in wanted)):
        cause = ctypes.FormatError(ctypes.get_last_error())
        message = f"Windows refused processors {_words(wanted)} ({cause}); correct the plan's `cpus`"
        raise CommandFailed("invalid_spec", message)
    return wanted


def _words(values: Iterable[object]) -> str:
    return ", ".join(str(value) for value in values)
