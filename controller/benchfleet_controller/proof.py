"""Whether a case ran on the device it claims: what was declared against what was observed. Pure.

Declared is the device of the variant with its execution provider, and what the runtime says it ran on. Observed are the
processor time of the runtime and, by device, engine time and memory: best of the runtime's own processes, else of the
whole device, in rounds against the baseline. Nothing seen is no proof of nothing: where a source is missing, a case is
unproven and the evidence says which source would tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

ACCELERATORS = ("gpu", "npu")
BUSY_RATIO = 0.05
"""Share of the rounds from which engine time of the runtime counts as work; contexts and copies stay below."""
RISE_RATIO = 0.1
"""How much busier than in the baseline a device must be in rounds: a desktop alone makes some per cent."""
HELD_SHARE = 0.5
"""Share of the model's size that lies on a device which computes with it."""
HELD_BYTES = 256 << 20
"""The same where the size is unknown: more than what a driver's context takes."""
NOTHING_BYTES = 64 << 20
BUSY_CORES = 0.3
"""Processors kept busy by a runtime that computes on them, at the least."""
ALONE_CORES = 0.05
"""The same on a host without any GPU or NPU: whatever is left of a crowded processor, nothing else can have done it."""
FULL_CORES = 0.9

_ACCELERATED = ("cuda", "tensorrt", "nvml", "openvino", "directml", "dml", "qnn", "vitis", "rocm", "hip", "migraphx",
                "coreml", "webgpu", "vulkan", "ze_loader", "ze_intel", "amdxdna")  # fmt: skip
"""In names of libraries without which no accelerator is reached."""


class Verdict(StrEnum):
    """What the observations say of the declaration."""

    CONFIRMED = "confirmed"
    CONTRADICTED = "contradicted"
    UNPROVEN = "unproven"


@dataclass(frozen=True, slots=True)
class Declared:
    """What a case claims; None: nobody says."""

    device: str | None
    ep_requested: str | None = None
    ep_actual: str | None = None
    libraries: Sequence[str] | None = None
    """Libraries of execution providers and drivers in the runtime's processes; None: not known."""
    size_bytes: int | None = None
    remote: bool = False


@dataclass(frozen=True, slots=True)
class Seen:
    """One GPU or NPU of the host during a case; None: not measured. Ratios are over the counted rounds."""

    device_id: str
    kind: str = ""
    """``gpu`` or ``npu``; empty: unknown."""
    runtime_busy_ratio: float | None = None
    """Engine time of the runtime."""
    runtime_memory_bytes: float | None = None
    """Most device memory of the runtime."""
    busy_ratio: float | None = None
    """Of everyone."""
    idle_busy_ratio: float | None = None
    """Of everyone, before anything was loaded."""
    memory_growth_bytes: float | None = None
    """Most in use by everyone, above the baseline."""

    @property
    def read(self) -> bool:
        """Whether anything was measured that could tell."""
        told = (self.runtime_busy_ratio, self.runtime_memory_bytes, self.busy_ratio, self.memory_growth_bytes)
        return any(value is not None for value in told)

    @property
    def rise_ratio(self) -> float | None:
        """How much busier it was than in the baseline; None: one of both is unmeasured."""
        if self.busy_ratio is None or self.idle_busy_ratio is None:
            return None
        return self.busy_ratio - self.idle_busy_ratio


@dataclass(frozen=True, slots=True)
class Proof:
    """The verdict, and the sentences with numbers that it rests on."""

    verdict: Verdict
    evidence: tuple[str, ...]


def judge(declared: Declared, busy_cores: float | None, devices: Sequence[Seen]) -> Proof:
    """Hold what was declared against what was observed.

    ``busy_cores`` is processor time of the runtime over the time of the rounds; ``devices`` are all GPUs and NPUs of
    the host, also those without any reading.
    """
    asked, actual = declared.ep_requested, declared.ep_actual
    if asked and actual and _plain(asked) != _plain(actual):
        return Proof(Verdict.CONTRADICTED, (f"the runtime ran on {actual} although the variant is for {asked}",))
    if declared.device in ACCELERATORS and actual and _plain(actual) == "cpu":
        return Proof(Verdict.CONTRADICTED, (f"declared {declared.device}, but the runtime ran on {actual}",))
    if declared.remote:
        return Proof(Verdict.UNPROVEN, ("the endpoint is on another machine: nothing of it was observed",))
    if declared.device == "cpu":
        return _of_cpu(declared, busy_cores, devices)
    if declared.device in ACCELERATORS:
        mine = [one for one in devices if one.kind in (declared.device, "")]
        return _of_accelerator(declared, busy_cores, mine)
    return Proof(Verdict.UNPROVEN, ("the runtime does not say which device it uses", *_cores(busy_cores)))


def _of_cpu(declared: Declared, busy_cores: float | None, devices: Sequence[Seen]) -> Proof:
    for one in devices:
        if used := _use(one, declared.size_bytes):
            return Proof(Verdict.CONTRADICTED, (f"declared cpu, but {used}", *_cores(busy_cores)))
    if busy_cores is None:
        why = "the processor time of the runtime is unknown: its processes were not found or not readable"
        return Proof(Verdict.UNPROVEN, (why,))
    if busy_cores < (BUSY_CORES if devices else ALONE_CORES):
        return Proof(Verdict.UNPROVEN, (*_cores(busy_cores), "too little to be the work, and nothing else was seen"))
    unread = [one.device_id for one in devices if not one.read]
    if unread and not _no_way_out(declared.libraries):
        why = f"nothing was read from {', '.join(unread)}: {_DOCTOR}"
        return Proof(Verdict.UNPROVEN, (*_cores(busy_cores), why))
    if not devices:
        rest = "the host has no GPU or NPU that is known"
    elif unread:
        rest = "the runtime's processes hold no library of an accelerator"
    else:
        rest = f"no device shows the runtime at work ({', '.join(one.device_id for one in devices)})"
    return Proof(Verdict.CONFIRMED, (*_cores(busy_cores), rest))


def _of_accelerator(declared: Declared, busy_cores: float | None, devices: Sequence[Seen]) -> Proof:
    for one in devices:
        if used := _use(one, declared.size_bytes):
            return Proof(Verdict.CONFIRMED, (used,))
    read = [one for one in devices if one.read]
    if not read:
        why = f"no reading of any {declared.device} of this host: {_DOCTOR}"
        return Proof(Verdict.UNPROVEN, (why, *_cores(busy_cores)))
    told = tuple(_told(one) for one in read)
    if busy_cores is not None and busy_cores >= FULL_CORES and all(_idle(one, declared.size_bytes) for one in read):
        return Proof(Verdict.CONTRADICTED, (*_cores(busy_cores), *told))
    if all(one.runtime_busy_ratio is None and one.runtime_memory_bytes is None for one in read):
        why = "engine time or memory of the runtime's own processes would prove it (NVML, DRM fdinfo, PDH): " + _DOCTOR
    else:
        why = "that neither proves nor denies it: longer rounds show more"
    return Proof(Verdict.UNPROVEN, (*told, *_cores(busy_cores), why))


_DOCTOR = "`benchfleet doctor HOST` says what its probe needs"


def _use(one: Seen, size_bytes: int | None) -> str:
    """What shows the runtime at work on a device; empty: nothing does."""
    enough = HELD_SHARE * size_bytes if size_bytes else HELD_BYTES
    if one.runtime_busy_ratio is not None and one.runtime_busy_ratio >= BUSY_RATIO:
        return f"{one.device_id} worked for the runtime in {one.runtime_busy_ratio:.0%} of the rounds"
    if one.runtime_memory_bytes is not None and one.runtime_memory_bytes >= enough:
        return f"{one.device_id} held {_mib(one.runtime_memory_bytes)} of the runtime{_of_model(size_bytes)}"
    rise, growth = one.rise_ratio, one.memory_growth_bytes
    if rise is not None and rise >= RISE_RATIO and growth is not None and growth >= enough:
        return (
            f"{one.device_id} was busy in {one.busy_ratio:.0%} of the rounds ({one.idle_busy_ratio:.0%} before) and "
            f"held {_mib(growth)} more than before{_of_model(size_bytes)}"
        )
    return ""


def _idle(one: Seen, size_bytes: int | None) -> bool:
    """Whether a device surely did nothing for the runtime: memory and work are both known to be none."""
    held = one.runtime_memory_bytes if one.runtime_memory_bytes is not None else one.memory_growth_bytes
    most = max(NOTHING_BYTES, 0.1 * size_bytes) if size_bytes else NOTHING_BYTES
    worked = one.runtime_busy_ratio if one.runtime_busy_ratio is not None else one.rise_ratio
    return held is not None and held < most and worked is not None and worked < BUSY_RATIO


def _told(one: Seen) -> str:
    parts = []
    if one.runtime_busy_ratio is not None:
        parts.append(f"worked for the runtime in {one.runtime_busy_ratio:.0%} of the rounds")
    elif one.busy_ratio is not None:
        before = "" if one.idle_busy_ratio is None else f" ({one.idle_busy_ratio:.0%} before)"
        parts.append(f"was busy in {one.busy_ratio:.0%} of the rounds{before}")
    if one.runtime_memory_bytes is not None:
        parts.append(f"held {_mib(one.runtime_memory_bytes)} of the runtime")
    elif one.memory_growth_bytes is not None:
        parts.append(f"held {_mib(one.memory_growth_bytes)} more than before")
    return f"{one.device_id} {' and '.join(parts)}"


def _no_way_out(libraries: Sequence[str] | None) -> bool:
    """Whether the runtime's processes surely hold nothing that reaches an accelerator."""
    return libraries is not None and not any(word in name.lower() for name in libraries for word in _ACCELERATED)


def _cores(busy_cores: float | None) -> tuple[str, ...]:
    return () if busy_cores is None else (f"the runtime kept {busy_cores:.1f} processors busy in rounds",)


def _of_model(size_bytes: int | None) -> str:
    return f"; the model is {_mib(size_bytes)}" if size_bytes else ""


def _mib(size: float) -> str:
    return f"{size / 2**20:.0f} MiB"


def _plain(provider: str) -> str:
    """``CUDAExecutionProvider``, ``CUDA`` and ``cuda`` are one."""
    return provider.lower().removesuffix("executionprovider")
