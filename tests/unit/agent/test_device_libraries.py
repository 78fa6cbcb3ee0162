"""Libraries that tell which device the runtime can reach."""

from __future__ import annotations

import os
import sys

import pytest

from benchfleet_agent.device_libraries import MOST_NAMES, device_libraries, mapped_files, telling

MAPS = """\
55d0c0000000-55d0c0021000 r-xp 00000000 fe:00 1234  /opt/my models/lib/libonnxruntime.so.1.22.0
7f0000000000-7f0000021000 rw-p 00000000 00:00 0
7f0000021000-7f0000022000 r--p 00000000 fe:00 99    /usr/lib/x86_64-linux-gnu/libcuda.so.550.54 (deleted)
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0     [stack]
7f0000031000-7f0000032000 r--p 00000000 fe:00 77    /usr/lib/x86_64-linux-gnu/libc.so.6
7f0000041000-7f0000042000 r--p 00000000 fe:00 78    /models/llama-3/model.onnx.data
"""


def test_mapped_files_are_paths_with_their_spaces_and_without_what_the_kernel_adds() -> None:
    assert mapped_files(MAPS) == [
        "/opt/my models/lib/libonnxruntime.so.1.22.0",
        "/usr/lib/x86_64-linux-gnu/libcuda.so.550.54",
        "/usr/lib/x86_64-linux-gnu/libc.so.6",
        "/models/llama-3/model.onnx.data",
    ]


def test_only_libraries_that_tell_something_are_named() -> None:
    assert telling(mapped_files(MAPS)) == ("libcuda.so.550.54", "libonnxruntime.so.1.22.0")
    windows = [r"C:\Windows\System32\DirectML.dll", r"C:\Windows\System32\kernel32.dll", r"D:\x\onnxruntime.dll"]
    assert telling([*windows, *windows]) == ("DirectML.dll", "onnxruntime.dll")
    assert len(telling(f"/lib/libggml-{n}.so" for n in range(1000))) == MOST_NAMES


def test_a_process_that_is_gone_says_nothing() -> None:
    assert device_libraries([2**22 + 12345]) == ()


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS lets nobody look")
def test_a_running_process_can_be_looked_into() -> None:
    assert isinstance(device_libraries([os.getpid()]), tuple)
