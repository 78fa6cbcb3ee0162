"""Who this host is: identity, fingerprint, and what is wrong with it for measuring.

Parsers and `find_problems` are pure; `HostIdentity.load` and `fingerprint` ask the operating system.
Nothing is asked at import.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from benchfleet import __version__
from benchfleet.v1 import host_pb2
from benchfleet_agent.host_state.readers import SELF_SCALING_DRIVERS
from benchfleet_agent.probes import DeviceInfo, ProbeDescription
from benchfleet_agent.probes.system import in_foreign_pid_namespace, machine_facts

_SALT = b"benchfleet machine id, version 1\0"
_CPUFREQ = Path("/sys/devices/system/cpu/cpu0/cpufreq")
_HOST_ID_FILE = "host_id"
_LOW_DISK_RATIO = 0.10
_BUSY_RATIO = 0.10


@dataclass(frozen=True, slots=True)
class HostIdentity:
    """What tells this agent, this machine and this start of the agent from others."""

    host_id: str
    """UUID of the data directory; kept over restarts."""
    machine_id: str
    """Salted SHA-256, equal for all agents on one machine."""
    instance_id: str
    """UUID of this start of the agent."""

    @classmethod
    def load(cls, data_dir: Path) -> HostIdentity:
        """Read the identity kept in the data directory, or make one there.

        Raises ValueError for a damaged file, OSError when the directory cannot be written.
        """
        return cls(_kept_host_id(data_dir), hash_machine_id(_machine_source()), str(uuid.uuid4()))


def _kept_host_id(data_dir: Path) -> str:
    path = data_dir / _HOST_ID_FILE
    if not path.exists():
        data_dir.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=data_dir, prefix=_HOST_ID_FILE)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(f"{uuid.uuid4()}\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            # Unlike a rename, a link never replaces: of two agents that start at once, both read the first one's id.
            os.link(name, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            Path(name).replace(path)
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()
    text = path.read_text(encoding="ascii", errors="replace").strip()
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise ValueError(f"{path} holds no UUID; delete it to give this agent a new identity") from None


def hash_machine_id(source: str) -> str:
    """Return the hash that stands for a machine; nothing can be learnt from it about the source."""
    return hashlib.sha256(_SALT + source.encode()).hexdigest()


def _machine_source() -> str:
    """Return what all agents of this machine share, and no other machine has.

    In a container that is the kernel's boot id: images carry equal machine ids to different machines, and
    containers on one machine have different ones. It changes when the machine restarts.
    """
    source: str | None
    if sys.platform == "linux" and _in_container():
        source = _read(Path("/proc/sys/kernel/random/boot_id"))
    elif sys.platform == "linux":
        source = _read(Path("/etc/machine-id")) or _read(Path("/var/lib/dbus/machine-id"))
        source = None if source == "uninitialized" else source
    elif sys.platform == "win32":
        source = _registry(r"SOFTWARE\Microsoft\Cryptography", "MachineGuid")
    elif sys.platform == "darwin":
        source = parse_platform_uuid(_output("/usr/sbin/ioreg", "-rd1", "-c", "IOPlatformExpertDevice"))
    else:
        source = None
    return source or f"{socket.gethostname()} {uuid.getnode():012x}"


def _in_container() -> bool:
    return Path("/.dockerenv").exists() or Path("/run/.containerenv").exists() or in_foreign_pid_namespace()


def parse_platform_uuid(text: str) -> str | None:
    """Return ``IOPlatformUUID`` from the output of macOS's ``ioreg``."""
    found = re.search(r'"IOPlatformUUID"\s*=\s*"([^"]+)"', text)
    return found[1] if found else None


_ARM_PARTS = {
    ("0x41", "0xd08"): "Arm Cortex-A72",
    ("0x41", "0xd0b"): "Arm Cortex-A76",
    ("0x41", "0xd0c"): "Arm Neoverse-N1",
    ("0x41", "0xd40"): "Arm Neoverse-V1",
    ("0x41", "0xd41"): "Arm Cortex-A78",
    ("0x41", "0xd49"): "Arm Neoverse-N2",
    ("0x41", "0xd4f"): "Arm Neoverse-V2",
    ("0x41", "0xd85"): "Arm Cortex-X925",
    ("0x41", "0xd87"): "Arm Cortex-A725",
    ("0x51", "0x001"): "Qualcomm Oryon",
    ("0x4e", "0x004"): "NVIDIA Carmel",
    ("0xc0", "0xac3"): "Ampere-1",
}
"""(implementer, part) → name, from Linux's arch/arm64/include/asm/cputype.h."""


def parse_cpuinfo(text: str) -> str:
    """Return the processor's name from ``/proc/cpuinfo``; empty when it has none.

    Arm kernels give numbers in place of names: each kind of core is named once, with its count.
    """
    fields = [(key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in text.splitlines())]
    for key, value in fields:
        if key in {"model name", "cpu model", "Processor"} and value:
            return re.sub(r"\s+", " ", value)
    implementers = [value.lower() for key, value in fields if key == "CPU implementer"]
    parts = [value.lower() for key, value in fields if key == "CPU part"]
    cores = list(zip(implementers, parts, strict=False))
    names = [
        f"{cores.count(core)}x {_ARM_PARTS.get(core, f'Arm {core[0]}/{core[1]}')}" for core in dict.fromkeys(cores)
    ]
    board = next((value for key, value in fields if key in {"Model", "Hardware"} and value), "")
    return f"{board} ({' + '.join(names)})" if board and names else board or " + ".join(names)


def parse_os_release(text: str) -> str:
    """Return the distribution's name for people from ``/etc/os-release``; empty when it has none."""
    fields: dict[str, str] = dict(re.findall(r"^([A-Z_]+)=[\"']?(.*?)[\"']?\s*$", text, re.MULTILINE))
    return fields.get("PRETTY_NAME") or fields.get("NAME", "")


class Severity(StrEnum):
    """What a problem does."""

    ERROR = "error"  # jobs will fail
    WARNING = "warning"  # numbers will suffer


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with this host, and what to do about it."""

    severity: Severity
    message: str
    advice: str


@dataclass(frozen=True, slots=True)
class Conditions:
    """The state of a host that decides whether its numbers can be trusted. None: unknown or not measured."""

    on_battery: bool | None = None
    disk_free_ratio: float | None = None
    """Of the file system that holds the data directory."""
    busy_ratio: float | None = None
    """Share of all logical processors busy with no job running."""
    governor: str | None = None
    """Linux: cpufreq's governor of the first processor."""
    frequency_driver: str | None = None
    """Linux: cpufreq's driver of the first processor."""


def find_problems(conditions: Conditions, data_dir: Path) -> tuple[Problem, ...]:
    """Say what is wrong, worst first. Pure."""
    problems = []
    free, busy = conditions.disk_free_ratio, conditions.busy_ratio
    if free is not None and free < _LOW_DISK_RATIO:
        problems.append(
            Problem(
                Severity.ERROR if free < _LOW_DISK_RATIO / 10 else Severity.WARNING,
                f"only {free:.1%} of the disk that holds {data_dir} is free",
                "free some space, or give the agent another data directory",
            )
        )
    if conditions.on_battery:
        problems.append(
            Problem(Severity.WARNING, "the machine runs on battery, which slows it down", "connect it to mains power")
        )
    if busy is not None and busy > _BUSY_RATIO:
        problems.append(
            Problem(
                Severity.WARNING,
                f"other programs keep {busy:.0%} of the processors busy",
                "end them, or wait until they are done",
            )
        )
    if conditions.governor == "powersave" and conditions.frequency_driver not in SELF_SCALING_DRIVERS:
        problems.append(
            Problem(
                Severity.WARNING,
                "the processor's frequency governor is powersave",
                "set it to performance (cpupower frequency-set -g performance)",
            )
        )
    return tuple(problems)


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What this host is. Empty or None: it does not say."""

    identity: HostIdentity
    hostname: str
    os_name: str
    os_version: str
    os_edition: str
    architecture: str
    cpu_model: str
    physical_core_count: int | None
    logical_core_count: int | None
    memory_bytes: int
    on_battery: bool | None
    devices: tuple[DeviceInfo, ...] = ()
    probes: tuple[ProbeDescription, ...] = ()
    problems: tuple[Problem, ...] = ()

    def to_proto(self, runtimes: Iterable[host_pb2.RuntimeInfo] = ()) -> host_pb2.Host:
        """Write the host for the wire, with the runtimes the agent knows."""
        return host_pb2.Host(
            host_id=self.identity.host_id,
            machine_id=self.identity.machine_id,
            hostname=self.hostname,
            agent_version=__version__,
            instance_id=self.identity.instance_id,
            os_name=self.os_name,
            os_version=self.os_version,
            os_edition=self.os_edition,
            architecture=self.architecture,
            cpu_model=self.cpu_model,
            physical_core_count=self.physical_core_count,
            logical_core_count=self.logical_core_count,
            memory_bytes=self.memory_bytes,
            python_version=platform.python_version(),
            devices=[device.to_proto() for device in self.devices],
            runtimes=runtimes,
            probes=[probe.to_proto() for probe in self.probes],
            on_battery=self.on_battery,
            problems=[
                host_pb2.HostProblem(severity=problem.severity, message=problem.message, advice=problem.advice)
                for problem in self.problems
            ],
        )


def fingerprint(
    identity: HostIdentity,
    data_dir: Path,
    probes: Sequence[ProbeDescription],
    *,
    busy_ratio: float | None = None,
) -> Fingerprint:
    """Ask the operating system who this host is. Milliseconds (macOS: two short child processes).

    ``probes`` comes from `benchfleet_agent.probes.describe`; ``busy_ratio`` from
    `benchfleet_agent.probes.system.busy_ratio`, measured while no job runs, or None.
    Raises `benchfleet_agent.probes.Unavailable` without psutil.
    """
    facts = machine_facts()
    conditions = Conditions(
        on_battery=facts.on_battery,
        disk_free_ratio=_disk_free_ratio(data_dir),
        busy_ratio=busy_ratio,
        governor=_read(_CPUFREQ / "scaling_governor"),
        frequency_driver=_read(_CPUFREQ / "scaling_driver"),
    )
    version, edition = _os_version()
    return Fingerprint(
        identity=identity,
        hostname=socket.gethostname(),
        os_name=platform.system(),
        os_version=version,
        os_edition=edition,
        architecture=platform.machine(),
        cpu_model=_cpu_model(),
        physical_core_count=facts.physical_core_count,
        logical_core_count=facts.logical_core_count,
        memory_bytes=facts.memory_bytes,
        on_battery=facts.on_battery,
        devices=tuple(device for probe in probes for device in probe.devices),
        probes=tuple(probes),
        problems=find_problems(conditions, data_dir),
    )


def _os_version() -> tuple[str, str]:
    if sys.platform == "win32":
        edition = platform.win32_edition() or ""
        return platform.version(), f"Windows {platform.release()} {edition}".strip()
    if sys.platform == "darwin":
        return platform.release(), f"macOS {platform.mac_ver()[0]}"
    return platform.release(), parse_os_release(_read(Path("/etc/os-release")) or "")


def _cpu_model() -> str:
    if sys.platform == "win32":
        return _registry(r"HARDWARE\DESCRIPTION\System\CentralProcessor\0", "ProcessorNameString") or ""
    if sys.platform == "darwin":
        return _output("/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string").strip()
    return parse_cpuinfo(_read(Path("/proc/cpuinfo")) or "")


def _disk_free_ratio(data_dir: Path, usage: Callable[[Path], tuple[int, int, int]] = shutil.disk_usage) -> float | None:
    existing = next((path for path in (data_dir, *data_dir.absolute().parents) if path.exists()), None)
    if existing is None:
        return None
    total, _, free = usage(existing)
    return free / total if total else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _registry(key: str, name: str) -> str | None:
    if sys.platform != "win32":
        return None
    import winreg

    try:
        # Without the 64-bit view, a 32-bit Python is shown another registry.
        access = winreg.KEY_READ | winreg.KEY_WOW64_64KEY
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, key, 0, access) as opened:
            return str(winreg.QueryValueEx(opened, name)[0]).strip()
    except OSError:
        return None
