"""The binding of NVIDIA's management library: the only module that imports pynvml, and only when used."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from benchfleet_agent.probes import Unavailable


def load() -> ModuleType:
    """Import pynvml. Raises `Unavailable` with what to install."""
    try:
        import pynvml
    except ImportError as error:
        raise Unavailable(f"pynvml cannot be imported ({error}); install it with pip install nvidia-ml-py") from None
    if not hasattr(pynvml, "nvmlInitWithFlags"):
        raise Unavailable(
            "the module pynvml comes from the abandoned package nvidia-ml-py3; "
            "pip uninstall nvidia-ml-py3, then pip install --force-reinstall nvidia-ml-py"
        )
    return pynvml


def init_failure(nvml: Any, error: Exception) -> str:
    """Say why NVML does not start, and what would help."""
    code = getattr(error, "value", None)
    if code == nvml.NVML_ERROR_LIBRARY_NOT_FOUND:
        return (
            "no NVIDIA driver library was found (libnvidia-ml.so.1, on Windows nvml.dll): "
            "install NVIDIA's driver if this host has an NVIDIA GPU"
        )
    if code == nvml.NVML_ERROR_DRIVER_NOT_LOADED:
        return "NVIDIA's driver is installed but not loaded; load it (modprobe nvidia) or restart the host"
    if code == nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
        return "NVIDIA's library and kernel module are of different versions; restart the host after a driver update"
    if code == nvml.NVML_ERROR_NO_PERMISSION:
        return "this user may not open the NVIDIA devices; give it access to /dev/nvidia*"
    return f"NVIDIA's driver library does not start: {error}"


def text(value: str | bytes) -> str:
    """Text as some versions of the binding give it."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
