"""Low power mode and sleep on macOS.

``NSProcessInfo.lowPowerModeEnabled`` (macOS 12 and newer); clock_gettime(3): ``CLOCK_MONOTONIC_RAW`` goes on while the
machine sleeps (mach_continuous_time), ``CLOCK_UPTIME_RAW`` does not (mach_absolute_time). macOS has no power plans,
and its clocks need rights or undocumented interfaces. Tried on nothing yet.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import time
from collections.abc import Callable

from benchfleet_agent.host_state import Facts
from benchfleet_agent.probes import Unavailable
from benchfleet_agent.probes.macos_iokit import IoKitRegistry, Registry, declare
from benchfleet_agent.probes.macos_power import BATTERY


class MacFacts:
    """Facts of a Mac."""

    def __init__(
        self,
        registry: Registry | None = None,
        low_power_mode: Callable[[], bool | None] | None = None,
        asleep_ns: Callable[[], int | None] | None = None,
    ) -> None:
        self._registry = registry if registry is not None else IoKitRegistry()
        self._low_power_mode = low_power_mode or load_low_power_mode()
        self._asleep_ns = asleep_ns or mac_asleep_ns

    def read(self) -> Facts:
        """Read all."""
        has_battery: bool | None = None
        with contextlib.suppress(OSError):
            installed = [self._registry.value(entry, "BatteryInstalled") for entry in self._registry.services(BATTERY)]
            has_battery = any(value is not False for value in installed)
        return Facts(low_power_mode=self._low_power_mode(), asleep_ns=self._asleep_ns(), has_battery=has_battery)


def mac_asleep_ns() -> int | None:
    """Time the machine slept since it started."""
    if sys.platform != "darwin":
        return None
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW) - time.clock_gettime_ns(time.CLOCK_UPTIME_RAW)


def load_low_power_mode() -> Callable[[], bool | None]:
    """The question to ``NSProcessInfo``. Raises `Unavailable` where there is no Objective-C runtime."""
    if sys.platform != "darwin":
        raise Unavailable("only on macOS")
    pointer = ctypes.c_void_p
    try:
        ctypes.CDLL("/System/Library/Frameworks/Foundation.framework/Foundation")
        library = ctypes.CDLL("/usr/lib/libobjc.A.dylib")
        declare(library, {name: ([ctypes.c_char_p], pointer) for name in ("objc_getClass", "sel_registerName")})
        # The function has no type of its own: it takes that of the method called.
        address = ctypes.cast(library.objc_msgSend, pointer).value or 0
    except (OSError, AttributeError) as error:
        raise Unavailable(f"the Objective-C runtime cannot be loaded: {error}") from None
    ask_object = ctypes.CFUNCTYPE(pointer, pointer, pointer)(address)
    ask_flag = ctypes.CFUNCTYPE(ctypes.c_bool, pointer, pointer)(address)
    ask_whether = ctypes.CFUNCTYPE(ctypes.c_bool, pointer, pointer, pointer)(address)
    information = ask_object(library.objc_getClass(b"NSProcessInfo"), library.sel_registerName(b"processInfo"))
    selector = library.sel_registerName(b"isLowPowerModeEnabled")
    # An older macOS ends a process that sends a message nobody answers.
    if not ask_whether(information, library.sel_registerName(b"respondsToSelector:"), selector):
        return lambda: None
    return lambda: bool(ask_flag(information, selector))
