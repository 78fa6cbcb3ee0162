"""What `fit` needs to know of this host and a case: free memory, the model's files, the longest prompt."""

from __future__ import annotations

import contextlib
from pathlib import Path

from benchfleet.failures import Failure, Reason, WorkFailed
from benchfleet_agent import fit
from benchfleet_agent.fit import CacheShape, Forecast
from benchfleet_agent.jobs import CaseOrder, SyntheticOrder
from benchfleet_agent.load.accounting import BYTES_PER_TOKEN
from benchfleet_agent.probes import Probe, Targets, Unavailable, default_probes
from benchfleet_agent.runtimes import Model, Runtime
from benchfleet_agent.runtimes.foundry_files import read_facts, size_of

FOUNDRY = "foundry"
"""The runtime whose overhead was measured."""
_CGROUP = Path("/sys/fs/cgroup")


def forecast_case(order: CaseOrder, model: Model, directory: Path | None, *, remote: bool = False) -> Forecast:
    """The forecast for a case; ``directory`` holds the model's files, None: not here yet, or not known.

    Nothing is forecast for a server on another machine (``remote``) and for a model that is in memory already.
    """
    if remote:
        return fit.unknown(fit.RAM, None, "the server is on another machine, whose memory is not known here")
    if model.loaded:
        memory, available = free_memory(model.device)
        return fit.unknown(memory, available, "it is in the runtime's memory already")
    facts = read_facts(directory) if directory is not None else None
    shape = None
    if facts is not None and facts.layers and facts.kv_heads and facts.head_size:
        shape = CacheShape(facts.layers, facts.kv_heads, facts.head_size)
    memory, available = free_memory(model.device)
    context = (facts.context_length if facts else None) or model.context_length
    tokens = longest_prompt(order) + order.max_tokens
    return fit.forecast(
        memory,
        weights_bytes=size_of(directory) if directory is not None else model.size_bytes,
        shape=shape,
        tokens=min(tokens, context) if context else tokens,
        concurrency=order.concurrency,
        available_bytes=available,
        measured=order.runtime == FOUNDRY,
        placed=order.runtime == FOUNDRY or model.device is not None,
    )


def refuse_unfit(found: Forecast, model: Model, runtime: Runtime) -> Failure:
    """Why a case is left out that would not fit, with what would."""
    suggestions = fit.smaller(model, _offered(runtime), fit.spare_of(found))
    return Failure(Reason.DOES_NOT_FIT, fit.does_not_fit(model.variant, found, suggestions))


def with_smaller(failure: Failure, model: Model, runtime: Runtime) -> Failure:
    """The failure of a case; when memory ran out it names smaller variants."""
    if failure.reason is not Reason.OUT_OF_MEMORY:
        return failure
    named = fit.smaller(model, _offered(runtime))
    return Failure(failure.reason, f"{failure.message}; {fit.advice(named)}") if named else failure


def longest_prompt(order: CaseOrder) -> int:
    """Tokens of the case's longest prompt: as asked for, else estimated from its length."""
    if isinstance(order.prompts, SyntheticOrder):
        return order.prompts.token_count
    sizes = [sum(len(message["content"].encode()) for message in prompt.messages) for prompt in order.prompts]
    return max(sizes, default=0) // BYTES_PER_TOKEN + 1


def free_memory(device: str | None) -> tuple[str, int | None]:
    """The kind of memory a model's weights go to, and how much of it is free; None: the host does not say.

    Of several GPUs the one with the most free: which one a runtime takes is its own affair.
    """
    if device == "gpu":
        known = []
        for probe in default_probes():
            with contextlib.suppress(Exception):  # a driver's trouble must not cost the case
                known += _free_of(probe)
        if known:
            return fit.VRAM, max(known)
    return fit.RAM, _free_ram()


def _free_of(probe: Probe) -> list[int]:
    """Free memory of a probe's devices that have memory of their own."""
    name = "device_memory_used_bytes"
    if name not in probe.metrics():
        return []
    probe.discover()
    try:
        total = {device.device_id: device.memory_bytes for device in probe.devices()}
        place = probe.metrics().index(name)
        read = {reading.device_id: reading.values[place] for reading in probe.read(Targets()) if reading.device_id}
    finally:
        probe.close()
    found = ((total.get(device_id), used) for device_id, used in read.items())
    return [all_bytes - int(used) for all_bytes, used in found if all_bytes is not None and used is not None]


def _free_ram() -> int | None:
    """Memory new work can have without swapping, of the machine and of the container."""
    from benchfleet_agent.probes.system import SystemProbe

    probe = SystemProbe()
    try:
        probe.discover()
        place = probe.metrics().index("host_available_bytes")
        value = probe.read(Targets())[0].values[place]
    except (Unavailable, OSError, ValueError):
        return None
    finally:
        probe.close()
    limits = [int(value)] if value is not None else []
    with contextlib.suppress(OSError, ValueError):  # "max": no limit
        limit = int((_CGROUP / "memory.max").read_text(encoding="ascii"))
        limits.append(limit - int((_CGROUP / "memory.current").read_text(encoding="ascii")))
    return max(0, min(limits)) if limits else None


def _offered(runtime: Runtime) -> list[Model]:
    try:
        return runtime.models()
    except WorkFailed:
        return []
