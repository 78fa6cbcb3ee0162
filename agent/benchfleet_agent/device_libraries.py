"""Which inference engines, execution providers and device drivers the runtime's processes hold in memory, by file name.

A process that holds no driver of an accelerator cannot have used one. Names that match nothing here are left out; where
a process cannot be looked into (macOS; another user's process), nothing is said at all.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path, PureWindowsPath

import psutil

MOST_NAMES = 100
_WORDS = (
    # Engines: that one is named shows that the process could be looked into.
    "onnxruntime", "genai", "ggml", "llama", "mlx",
    # Execution providers.
    "tensorrt", "nvinfer", "cudnn", "cublas", "openvino", "directml", "qnn", "vitisai", "migraphx", "webgpu",
    "dawn", "coreml",
    # Drivers.
    "libcuda", "nvcuda", "cudart", "nvoglv", "amdhip64", "rocblas", "hsa-runtime", "libvulkan", "vulkan-1",
    "ze_loader", "ze_intel", "libamdxdna", "xrt_core", "opencl", "d3d12", "dxcore",
)  # fmt: skip
_LIBRARY = re.compile(r"\.(so(\.[0-9.]+)?|dll|dylib|node)$", re.IGNORECASE)


def telling(paths: Iterable[str]) -> tuple[str, ...]:
    """The file names that say something about devices, sorted, each once; at most `MOST_NAMES`."""
    names = {PureWindowsPath(path).name for path in paths}
    found = {name for name in names if _LIBRARY.search(name) and any(word in name.lower() for word in _WORDS)}
    return tuple(sorted(found)[:MOST_NAMES])


def mapped_files(maps: str) -> list[str]:
    """Paths of files in the text of Linux's ``/proc/PID/maps`` (proc_pid_maps(5)); deleted ones too."""
    paths = (line.split(maxsplit=5)[5:] for line in maps.splitlines())
    return [path[0].removesuffix(" (deleted)") for path in paths if path and path[0].startswith("/")]


def device_libraries(process_ids: Sequence[int]) -> tuple[str, ...]:
    """The telling libraries of these processes and their children; empty: they cannot be looked into, or are gone."""
    paths: list[str] = []
    for process_id in process_ids:
        try:
            process = psutil.Process(process_id)
            for one in (process, *process.children(recursive=True)):
                paths += _files_of(one)
        except (psutil.Error, OSError):
            continue
    return telling(paths)


def _files_of(process: psutil.Process) -> list[str]:
    if sys.platform == "linux":  # smaps, which psutil reads, takes the kernel a hundred times as long
        return mapped_files(Path(f"/proc/{process.pid}/maps").read_text(encoding="utf-8", errors="replace"))
    if sys.platform == "win32":
        return [one.path for one in process.memory_maps()]
    return []
