"""A known load on an NVIDIA GPU through the driver's own library: so much memory, written over and over."""

from __future__ import annotations

import ctypes
import sys
import threading
import uuid
from ctypes import byref, c_int, c_size_t, c_uint, c_void_p

_NAMES = {"win32": "nvcuda.dll"}


class CudaLoad(threading.Thread):
    """Holds ``size_bytes`` of the first GPU and fills them until `stop`. Raises `OSError` where there is no CUDA."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(name="cuda-load", daemon=True)
        self._cuda = ctypes.CDLL(_NAMES.get(sys.platform, "libcuda.so.1"))
        self._size_bytes = size_bytes
        self._stopping = threading.Event()
        self._working = threading.Event()
        self._failure = ""
        self.device_id = ""
        """As NVML has it."""

    def __enter__(self) -> CudaLoad:
        self.start()
        assert self._working.wait(60), "the load did not begin"
        assert not self._failure, self._failure
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self.join(60)
        assert not self._failure, self._failure

    def run(self) -> None:
        """Everything on one thread: a context belongs to the thread that made it."""
        try:
            self._work()
        except RuntimeError as error:
            self._failure = str(error)
        finally:
            self._working.set()

    def _work(self) -> None:
        device, context, memory = c_int(), c_void_p(), c_void_p()
        name = (ctypes.c_ubyte * 16)()
        self._call("cuInit", c_uint(0))
        self._call("cuDeviceGet", byref(device), c_int(0))
        self._call("cuDeviceGetUuid", byref(name), device)
        self.device_id = f"GPU-{uuid.UUID(bytes=bytes(name))}"
        self._call("cuCtxCreate_v2", byref(context), c_uint(0), device)
        try:
            self._call("cuMemAlloc_v2", byref(memory), c_size_t(self._size_bytes))
            while not self._stopping.is_set():
                for _ in range(20):
                    self._call("cuMemsetD32_v2", memory, c_uint(1), c_size_t(self._size_bytes // 4))
                self._call("cuCtxSynchronize")
                self._working.set()
        finally:
            self._call("cuCtxDestroy_v2", context)  # gives the memory back too

    def _call(self, name: str, *arguments: object) -> None:
        code = getattr(self._cuda, name)(*arguments)
        if code:
            raise RuntimeError(f"{name} failed with CUDA's error {code}")
