"""Which process listens on a TCP port of this host: whose memory a case on a foreign server is charged to.

Linux: /proc/net/tcp and /proc/PID/fd (proc(5)); macOS: ``lsof``; Windows: ``netstat``. Other users' processes are
hidden from an ordinary user on Linux and macOS. The two commands' parsers were tried on documented output only.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_LISTEN = "0A"  # include/net/tcp_states.h: TCP_LISTEN is 10
_COMMAND_S = 5.0
FORWARDERS = frozenset(
    {"ssh", "sshd", "docker-proxy", "rootlessport", "rootlesskit", "kubectl", "socat", "slirp4netns"}
)
"""Programs that listen for a server elsewhere: in a container, on another machine."""


@dataclass(frozen=True, slots=True)
class PortOwner:
    """What is known of a port's listener."""

    pids: tuple[int, ...] = ()
    """Its processes, lowest first; empty: not known."""
    reason: str = ""
    """Why not; empty when it is known."""
    forwarder: str = ""
    """The program's name when it only passes bytes on to a server elsewhere."""


def find(port: int, proc: Path = Path("/proc")) -> PortOwner:
    """The processes that listen on a port. Milliseconds on Linux, up to a second elsewhere."""
    try:
        if sys.platform == "linux":
            return _find_linux(port, proc)
        if sys.platform == "win32":
            pids = parse_netstat(
                _output("netstat", "-ano", "-p", "TCP") + _output("netstat", "-ano", "-p", "TCPv6"), port
            )
        else:
            pids = parse_lsof(_output("lsof", "-nP", f"-iTCP:{port}", "-sTCP:LISTEN", "-Fp"))
    except (OSError, subprocess.SubprocessError) as error:
        return PortOwner(reason=f"the owner of port {port} cannot be looked up ({error})")
    return PortOwner(pids) if pids else PortOwner(reason=_hidden(port))


def parse_listeners(text: str, port: int) -> set[int]:
    """Inodes of the sockets that listen on a port, from ``/proc/net/tcp`` or ``tcp6``."""
    found = set()
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 9 and fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
            found.add(int(fields[9]))
    return found


def parse_lsof(text: str) -> tuple[int, ...]:
    """Process ids from ``lsof -Fp``: lines such as ``p1234``."""
    return tuple(sorted({int(found) for found in re.findall(r"^p(\d+)\r?$", text, re.MULTILINE)}))


def parse_netstat(text: str, port: int) -> tuple[int, ...]:
    """Process ids from Windows' ``netstat -ano``; its words are translated, so a listener is known by its far end."""
    rows = (line.split() for line in text.splitlines())
    return tuple(sorted({
        int(row[-1]) for row in rows
        if len(row) >= 4 and row[0] == "TCP" and row[1].endswith(f":{port}")
        and row[2] in ("0.0.0.0:0", "[::]:0", "*:*") and row[-1].isdecimal() and row[-1] != "0"
    }))  # fmt: skip


def _find_linux(port: int, proc: Path) -> PortOwner:
    inodes: set[int] = set()
    for name in ("tcp", "tcp6"):
        path = proc / "net" / name
        if path.exists():
            inodes |= parse_listeners(path.read_text(encoding="ascii"), port)
    if not inodes:
        return PortOwner(reason=f"nothing listens on port {port} in this network namespace (a container?)")
    wanted = {f"socket:[{inode}]" for inode in inodes}
    pids = sorted(pid for pid in _pids(proc) if _holds(proc / str(pid) / "fd", wanted))
    if not pids:
        return PortOwner(reason=_hidden(port))
    for pid in pids:
        if (name := _name(proc / str(pid))) in FORWARDERS:
            return PortOwner(
                reason=f"port {port} belongs to {name}, which passes it on: the server runs elsewhere", forwarder=name
            )
    # Workers that inherited the socket are children of the first; whoever samples a tree wants its root.
    return PortOwner(_roots(proc, pids))


def _roots(proc: Path, pids: list[int]) -> tuple[int, ...]:
    return tuple(pid for pid in pids if _parent(proc / str(pid)) not in pids)


def _pids(proc: Path) -> Iterable[int]:
    return (int(name) for name in os.listdir(proc) if name.isdecimal())  # noqa: PTH208 (thousands: names are enough)


def _holds(directory: Path, wanted: set[str]) -> bool:
    try:
        with os.scandir(directory) as descriptors:
            return any(_target(entry.path) in wanted for entry in descriptors)
    except OSError:  # it ended, or is another user's
        return False


def _target(path: str) -> str:
    try:
        return os.readlink(path)  # noqa: PTH115
    except OSError:
        return ""


def _name(directory: Path) -> str:
    try:
        return (directory / "comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _parent(directory: Path) -> int:
    try:
        # After the name in parentheses, which may hold anything: state, parent (proc_pid_stat(5)).
        return int((directory / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0


def _hidden(port: int) -> str:
    return (
        f"the process that listens on port {port} is another user's; run the agent as that user to measure its memory"
    )


def _output(*command: str) -> str:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=_COMMAND_S, check=False, errors="replace"
    ).stdout
