"""The probes as ``[probes]`` of agent.toml wants them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from benchfleet_agent.probes import BrokenProbe, Probe, choose, default_probes

if TYPE_CHECKING:
    from benchfleet_agent.config import ProbesConfig

DISABLED = "disabled by agent.toml ([probes] disabled)"


class DisabledProbe(BrokenProbe):
    """Stands for a probe that is not to be read, so that listings say so instead of leaving it out."""

    def __init__(self, probe: Probe) -> None:
        super().__init__(probe.probe_id, DISABLED)
        self._metrics = probe.metrics()

    def metrics(self) -> tuple[str, ...]:
        """What it would deliver."""
        return self._metrics


def probes_to_read(config: ProbesConfig) -> tuple[Probe, ...]:
    """Fresh probes of this platform without the disabled ones, at the wanted periods."""
    return choose(default_probes(), frozenset(config.disabled), config.periods_ms)


def probes_to_list(config: ProbesConfig, probes: Sequence[Probe] | None = None) -> tuple[Probe, ...]:
    """Fresh probes of this platform (or those given), with a `DisabledProbe` for each disabled one."""
    known = choose(default_probes() if probes is None else probes, periods_ms=config.periods_ms)
    return tuple(DisabledProbe(probe) if probe.probe_id in config.disabled else probe for probe in known)
