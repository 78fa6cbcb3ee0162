"""The small text files of Linux' ``/sys`` and ``/proc``, and the PCI devices described there.

Files are opened for each reading (about 7 µs): a kept file of a device that went away would have to be
found out, and at the few readings a second made here it would save less than 0.01 % of one core.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchfleet_agent.probes import Unavailable

_LONGEST_BYTES = 2**20
_PCI_IDS = ("usr/share/hwdata/pci.ids", "usr/share/misc/pci.ids")


@dataclass(frozen=True, slots=True)
class PciDevice:
    """A device of ``/sys/class/drm`` or ``/sys/class/accel``."""

    path: Path
    """Its directory of attributes."""
    node: Path
    """The class's entry it was found by, e.g. ``/sys/class/drm/card0``."""
    address: str
    """PCI address, e.g. ``0000:03:00.0``."""
    driver: str
    vendor_id: str
    """Four hexadecimal digits in lower case; empty: not told."""
    product_id: str


def read_text(path: Path) -> str:
    """Read a file of at most 1 MiB. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        parts = []
        # A file of /proc longer than a page comes in pieces.
        while part := os.read(descriptor, _LONGEST_BYTES):
            parts.append(part)
    finally:
        os.close(descriptor)
    return b"".join(parts).decode("utf-8", "replace")


def text_of(path: Path) -> str:
    """Read a file's text without the white space around it; empty where there is none to be had."""
    try:
        return read_text(path).strip()
    except OSError:
        return ""


def number_of(path: Path, *, lowest: int = 0) -> int | None:
    """Read a file that holds one integer; None: absent, not readable, no number or less than ``lowest``."""
    text = text_of(path)
    try:
        value = int(text)
    except ValueError:
        return None
    return value if value >= lowest else None


def temperature_of(path: Path) -> float | None:
    """Read thousandths of degrees Celsius; None also for what no working chip can have."""
    milli = number_of(path, lowest=-40_000)
    return milli / 1e3 if milli is not None and milli <= 150_000 else None


def names_in(directory: Path, pattern: str = "") -> list[str]:
    """List a directory's names that fit a regular expression as a whole, sorted; empty where it cannot be listed."""
    try:
        names = [path.name for path in directory.iterdir()]
    except OSError:
        return []
    return sorted(name for name in names if not pattern or re.fullmatch(pattern, name))


def hwmon_of(device: Path) -> Path | None:
    """Find a device's directory of sensors."""
    names = names_in(device / "hwmon", r"hwmon\d+")
    return device / "hwmon" / names[0] if names else None


def kernel_release(root: Path) -> str:
    """Return the kernel's release: the version of a driver that came with it; empty: not Linux."""
    return text_of(root / "proc/sys/kernel/osrelease")


def require_sysfs(root: Path, what: str) -> None:
    """Raise `Unavailable` where there is no ``/sys``."""
    if not (root / "sys").is_dir():
        raise Unavailable(f"{what} is read from Linux' /sys, which this operating system does not have")


def pci_devices(root: Path, device_class: str, drivers: Iterable[str]) -> list[PciDevice]:
    """Find the PCI devices of a class (``drm``, ``accel``) that one of the drivers runs, each once, by address."""
    wanted = frozenset(drivers)
    directory = root / "sys/class" / device_class
    found: dict[str, PciDevice] = {}
    for name in names_in(directory, r"(card|accel)\d+"):
        path = directory / name / "device"
        facts = dict(line.split("=", 1) for line in text_of(path / "uevent").splitlines() if "=" in line)
        address = facts.get("PCI_SLOT_NAME", "").lower()
        if address and address not in found and facts.get("DRIVER") in wanted:
            vendor, _, product = facts.get("PCI_ID", "").lower().partition(":")
            found[address] = PciDevice(path, directory / name, address, facts["DRIVER"], vendor, product)
    return [found[address] for address in sorted(found)]


def pci_name(root: Path, vendor_id: str, product_id: str) -> str:
    """Return a product's name from the PCI ID database where the system has one; empty: not found."""
    for place in _PCI_IDS:
        try:
            text = (root / place).read_text("utf-8", "replace")
        except OSError:
            continue
        if name := parse_pci_ids(text, vendor_id, product_id):
            return name
    return ""


def parse_pci_ids(text: str, vendor_id: str, product_id: str) -> str:
    """Find a product in ``pci.ids``: a vendor's line begins with its id, the lines of its products with a tab."""
    in_vendor = False
    for line in text.splitlines():
        if line[:1] not in {"", "#", "\t"}:
            in_vendor = line.startswith(f"{vendor_id}  ")
        elif in_vendor and line.startswith(f"\t{product_id}  "):
            return line[7:].strip()
    return ""


def gaps_by_device(gaps: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Join the gaps of devices (device id → metric → reason): a metric that all lack is named without a device."""
    joined: dict[str, str] = {}
    for device_id, reasons in gaps.items():
        for name, reason in reasons.items():
            if all(name in others for others in gaps.values()):
                joined[name] = "; ".join(dict.fromkeys(others[name] for others in gaps.values()))
            else:
                joined[f"{name}@{device_id}"] = reason
    return joined


def absent(names: Sequence[str], values: Sequence[object], reasons: Mapping[str, str]) -> dict[str, str]:
    """Return the metrics without a value, each with its reason."""
    return {
        name: reasons.get(name, "the driver offers no such reading for this device")
        for name, value in zip(names, values, strict=True)
        if value is None
    }
