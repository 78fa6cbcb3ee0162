"""The agent's settings: agent.toml, overridden by the command line. Frozen once the agent runs."""

from __future__ import annotations

import difflib
import math
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import platformdirs

from benchfleet.addresses import DEFAULT_PORT, is_loopback, split_address
from benchfleet.tls import CredentialFiles, TlsError
from benchfleet_agent.access import AccessPolicy
from benchfleet_agent.probes import choose, default_probes

DEFAULT_LISTEN = f"127.0.0.1:{DEFAULT_PORT}"
SMALLEST_JOURNAL_BYTES = 1 << 20
"""A bound below this would refuse every job."""
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) *([KMGT]i?)?B", re.IGNORECASE)


class ConfigError(Exception):
    """agent.toml or a flag makes no sense; says where and what to do."""


@dataclass(frozen=True, slots=True)
class FoundryConfig:
    """``[runtime.foundry]``."""

    model_cache_dir: Path | None = None
    python: str | None = None
    catalog_urls: tuple[str, ...] = ()
    offline: bool = False
    cpus: tuple[int, ...] = ()
    """Logical processors the runtime is pinned to; empty: not pinned."""


@dataclass(frozen=True, slots=True)
class JournalConfig:
    """``[journal]``."""

    max_bytes: int | None = 8 << 30
    """What the events of all jobs held may take, before new jobs are refused; None: the disk alone decides."""
    max_age_days: float | None = 30.0
    """How long after it was accepted an ended job may be held before controllers are warned; None: never.
    Age releases nothing."""


@dataclass(frozen=True, slots=True)
class ProbesConfig:
    """``[probes]``: what is not read, and what is read less often."""

    disabled: tuple[str, ...] = ()
    periods_ms: Mapping[str, int] = field(default_factory=dict)
    """By probe id, in milliseconds."""


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """Everything the agent may be told."""

    listen: str = DEFAULT_LISTEN
    data_dir: Path = field(default_factory=lambda: Path(platformdirs.user_data_dir("benchfleet", False)) / "agent")
    reference_cache_dir: Path = field(default_factory=lambda: Path(platformdirs.user_cache_dir("benchfleet", False)))
    insecure_plaintext: bool = False
    """Whether to listen beyond loopback without TLS, when this host has no certificate."""
    model_roots: tuple[Path, ...] = ()
    foundry: FoundryConfig = FoundryConfig()
    endpoint_url: str = ""
    endpoint_allow: tuple[str, ...] = ()
    """Patterns of servers that callers may name; empty: this host's loopback."""
    endpoint_tokenizers: Mapping[str, Path] = field(default_factory=dict)
    """A ``tokenizer.json`` by model id or alias (``*``: any other), for servers that do not count tokens."""
    journal: JournalConfig = JournalConfig()
    probes: ProbesConfig = ProbesConfig()
    access: AccessPolicy = field(default_factory=AccessPolicy)

    def credentials(self) -> CredentialFiles | None:
        """The host's certificate, in ``tls`` of the data directory; None when it has none.

        Raises `ConfigError` when only a part is there.
        """
        files = CredentialFiles.host(self.data_dir / "tls")
        try:
            return files if files.present() else None
        except TlsError as error:
            raise ConfigError(str(error)) from None

    def check_listen(self) -> None:
        """Raise `ConfigError` for an address that makes no sense or exposes the agent without saying so."""
        try:
            host, _ = split_address(self.listen)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if self.credentials() is None and not is_loopback(host) and not self.insecure_plaintext:
            raise ConfigError(
                f"--listen {self.listen} would let anyone on the network run jobs here, in clear text. "
                "Enrol this host: `benchfleet certs enrol NAME` on the machine with the lab's authority. "
                "Or listen on 127.0.0.1 and use an SSH tunnel, or accept it with --insecure-plaintext."
            )


_TOP: dict[str, type] = {
    "listen": str,
    "data_dir": str,
    "reference_cache_dir": str,
    "insecure_plaintext": bool,
    "model_roots": list,
    "runtime": dict,
    "journal": dict,
    "probes": dict,
    "access": dict,
}
_FOUNDRY: dict[str, type] = {"model_cache_dir": str, "python": str, "catalog_urls": list, "offline": bool, "cpus": list}
_ENDPOINT: dict[str, type] = {"url": str, "allow": list, "tokenizers": dict}
_JOURNAL: dict[str, type] = {"max_bytes": object, "max_age_days": object}
_PROBES: dict[str, type] = {"disabled": list, "period_ms": dict}
_ACCESS: dict[str, type] = {"read": list, "run": list}


def load_config(path: Path | None) -> AgentConfig:
    """Read agent.toml; None gives the defaults. Raises `ConfigError`."""
    if path is None:
        return AgentConfig()
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    top = _checked(path, "", document, _TOP)
    journal = _journal(path, _checked(path, "journal.", top.pop("journal", {}), _JOURNAL))
    probes = _probes(path, _checked(path, "probes.", top.pop("probes", {}), _PROBES))
    runtime = _checked(path, "runtime.", top.pop("runtime", {}), {"foundry": dict, "endpoint": dict})
    foundry = _checked(path, "runtime.foundry.", runtime.get("foundry", {}), _FOUNDRY)
    endpoint = _checked(path, "runtime.endpoint.", runtime.get("endpoint", {}), _ENDPOINT)
    for name in ("data_dir", "reference_cache_dir"):
        if name in top:
            top[name] = Path(top[name]).expanduser()
    top["model_roots"] = tuple(Path(root).expanduser() for root in _strings(path, "model_roots", top))
    if "model_cache_dir" in foundry:
        foundry["model_cache_dir"] = Path(foundry["model_cache_dir"]).expanduser()
    foundry["catalog_urls"] = tuple(_strings(path, "catalog_urls", foundry))
    cpus = foundry.get("cpus", [])
    if not all(isinstance(cpu, int) and not isinstance(cpu, bool) and cpu >= 0 for cpu in cpus):
        raise ConfigError(f"{path}: runtime.foundry.cpus must be a list of processor numbers, such as [0, 1]")
    foundry["cpus"] = tuple(cpus)
    access = _checked(path, "access.", top.pop("access", {}), _ACCESS)
    policy = AccessPolicy(**{name: frozenset(_strings(path, f"access.{name}", access, name)) for name in access})
    return AgentConfig(
        **top,
        foundry=FoundryConfig(**foundry),
        endpoint_url=endpoint.get("url", ""),
        endpoint_allow=tuple(_strings(path, "runtime.endpoint.allow", endpoint, "allow")),
        endpoint_tokenizers=_tokenizers(path, endpoint.get("tokenizers", {})),
        journal=journal,
        probes=probes,
        access=policy,
    )


def _tokenizers(path: Path, table: Mapping[str, Any]) -> dict[str, Path]:
    found = {}
    for model, value in table.items():
        if not isinstance(value, str) or not (file := Path(value).expanduser()).is_file():
            raise ConfigError(f"{path}: runtime.endpoint.tokenizers: {value!r} for {model} is no file on this host")
        found[model] = file
    return found


def _journal(path: Path, table: Mapping[str, Any]) -> JournalConfig:
    config = JournalConfig()
    if "max_bytes" in table:
        config = replace(config, max_bytes=_size(path, table["max_bytes"]))
    if "max_age_days" in table:
        days = table["max_age_days"]
        if not isinstance(days, int | float) or isinstance(days, bool) or not 0 <= days < math.inf:
            raise ConfigError(f"{path}: journal.max_age_days must be a number of days; 0: never warn")
        config = replace(config, max_age_days=float(days) or None)
    return config


def _size(path: Path, value: object) -> int | None:
    if value == "unlimited":
        return None
    size = value if isinstance(value, int) and not isinstance(value, bool) else None
    if isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        unit = (match[2] or "").lower()
        base = 1024 if unit.endswith("i") else 1000
        size = int(float(match[1]) * base ** " kmgt".index(unit[:1] or " "))
    if size is None:
        raise ConfigError(f'{path}: journal.max_bytes must be bytes, or a text such as "8 GiB" or "unlimited"')
    if size < SMALLEST_JOURNAL_BYTES:
        raise ConfigError(f"{path}: journal.max_bytes must be at least 1 MiB, or no job could run; it is {size} B")
    return size


def _probes(path: Path, table: Mapping[str, Any]) -> ProbesConfig:
    disabled, periods_ms = _strings(path, "probes.disabled", table, "disabled"), table.get("period_ms", {})
    if not all(isinstance(period, int) and not isinstance(period, bool) for period in periods_ms.values()):
        raise ConfigError(f"{path}: probes.period_ms must give whole milliseconds, such as {{ nvidia = 500 }}")
    try:
        choose(default_probes(), frozenset(disabled), periods_ms)
    except ValueError as error:
        raise ConfigError(f"{path}: [probes]: {error}") from None
    return ProbesConfig(tuple(disabled), periods_ms)


def parse_cpus(text: str) -> tuple[int, ...]:
    """Read ``0``, ``0,2``, ``0-3`` or ``all`` as logical processor numbers. Raises `ConfigError`."""
    count = os.cpu_count() or 1
    if text == "all":
        return tuple(range(count))
    chosen: set[int] = set()
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()):
            raise ConfigError(f"{text!r} names no processors; write 0, 0,2, 0-3 or all")
        chosen |= set(range(int(first), int(last or first) + 1))
    if missing := sorted(cpu for cpu in chosen if cpu >= count):
        raise ConfigError(f"this machine has no processor {missing[0]}; it has 0 to {count - 1}")
    return tuple(sorted(chosen))


def override(config: AgentConfig, flags: Mapping[str, Any]) -> AgentConfig:
    """The settings with the command line's flags (None: not given) in front."""
    given = {name: value for name, value in flags.items() if value is not None}
    cpus = given.pop("cpus", None)
    foundry = config.foundry if cpus is None else replace(config.foundry, cpus=cpus)
    return replace(config, **given, foundry=foundry)


def _checked(path: Path, prefix: str, table: dict[str, Any], known: dict[str, type]) -> dict[str, Any]:
    for key, value in table.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known are {', '.join(sorted(known))}"
            raise ConfigError(f"{path}: unknown key {prefix}{key}; {hint}")
        if not isinstance(value, known[key]):
            raise ConfigError(f"{path}: {prefix}{key} must be a {known[key].__name__}, not {type(value).__name__}")
    return dict(table)


def _strings(path: Path, name: str, table: Mapping[str, Any], key: str | None = None) -> list[str]:
    values = table.get(key or name, [])
    if not all(isinstance(value, str) for value in values):
        raise ConfigError(f"{path}: {name} must be a list of strings")
    return list(values)
