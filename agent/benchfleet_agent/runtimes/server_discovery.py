"""Model servers that run on this host: by the programs that listen on loopback, then by the ports they like.

Linux: /proc (proc(5)); macOS: ``lsof``; Windows: ``netstat`` and ``tasklist``. The parsers of the latter three were
tried on documented output only. What is found is a guess: who asks there must see whether a model server answers.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from benchfleet_agent.runtimes import port_owner

PROGRAMS = ("inference.service.agent", "foundry", "ollama", "lm studio", "lms", "llama-server", "llama-swap")
"""Programs that serve models, as the beginnings of process names in lower case; Foundry Local's first."""
PORTS = (5272, 5273, 11434, 1234, 8080)
"""Where Foundry Local's early services, Ollama, LM Studio and llama.cpp listen unless told otherwise."""
_CONNECT_S = 0.2


def candidates() -> list[str]:
    """Root URLs to ask, best first. Milliseconds on Linux, up to seconds elsewhere."""
    owned = ports_by_program()
    ranked = sorted((rank, port) for port, name in owned.items() if (rank := rank_of(name)) is not None)
    ports = [port for _, port in ranked]
    ports += [port for port in PORTS if port not in ports and _listens(port)]
    return [f"http://127.0.0.1:{port}" for port in ports]


def rank_of(program: str) -> int | None:
    """The place of a program among those that serve models; None: it is none."""
    lower = program.lower()
    return next((rank for rank, name in enumerate(PROGRAMS) if lower.startswith(name)), None)


def ports_by_program(proc: Path = Path("/proc")) -> dict[int, str]:
    """Ports that programs of this user listen on, with the program's name; empty where it cannot be looked up."""
    try:
        if sys.platform == "linux":
            return _of_linux(proc)
        if sys.platform == "win32":
            names = parse_tasklist(port_owner.output("tasklist", "/FO", "CSV", "/NH"))
            return parse_netstat(port_owner.netstat(), names)
        return parse_lsof(port_owner.output("lsof", "-nP", "-iTCP", "-sTCP:LISTEN", "-Fcn"))
    except (OSError, subprocess.SubprocessError):
        return {}


def parse_lsof(text: str) -> dict[int, str]:
    """Read ``lsof -Fcn``: after each process's ``cNAME`` its sockets, ``n127.0.0.1:11434``."""
    found, program = {}, ""
    for line in text.splitlines():
        if line.startswith("c"):
            program = line[1:].replace("\\x20", " ")
        elif line.startswith("n") and (port := line.rpartition(":")[2]).isdecimal():
            found[int(port)] = program
    return found


def parse_tasklist(text: str) -> dict[int, str]:
    """Read Windows' ``tasklist /FO CSV /NH``: process id → program."""
    return {int(pid): name for name, pid in re.findall(r'^"([^"]+)","(\d+)"', text, re.MULTILINE)}


def parse_netstat(text: str, names: Mapping[int, str]) -> dict[int, str]:
    """Read Windows' ``netstat -ano``."""
    return {port: names.get(pid, "") for port, pid in port_owner.netstat_listeners(text)}


def _of_linux(proc: Path) -> dict[int, str]:
    tables = port_owner.socket_tables(proc)
    ports = {f"socket:[{inode}]": port for text in tables for port, inode in port_owner.listeners(text)}
    found: dict[int, str] = {}
    for pid in port_owner.pids_of(proc):
        name = _name(proc / str(pid))
        if rank_of(name) is not None:
            found |= {ports[one]: name for one in port_owner.descriptors(proc / str(pid)) if one in ports}
    return found


def _name(directory: Path) -> str:
    """The program's name; the kernel keeps 15 characters of it, so the command line comes first."""
    try:
        first = (directory / "cmdline").read_bytes().partition(b"\0")[0].decode(errors="replace")
        return Path(first).name or (directory / "comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(_CONNECT_S)
        return probe.connect_ex(("127.0.0.1", port)) == 0
