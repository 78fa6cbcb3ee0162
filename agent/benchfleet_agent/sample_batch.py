"""What the sampler hands on: a label, and readings as columns, to and from the wire."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchfleet.samples import BY_NAME, PHASES
from benchfleet.v1 import event_pb2
from benchfleet_agent.probes import Value


@dataclass(frozen=True, slots=True)
class Label:
    """What the host was doing when a sample was taken."""

    case_id: str
    round_id: str
    phase: str
    """One of `benchfleet.samples.PHASES`."""

    def __post_init__(self) -> None:
        if self.phase not in PHASES:
            raise ValueError(f"{self.phase!r} is no phase; phases are {', '.join(PHASES)}")


@dataclass(frozen=True, slots=True)
class SampleBatch:
    """n readings of one probe on one device under one label, as columns of n values."""

    label: Label
    probe_id: str
    device_id: str
    sample_ns: list[int]
    """When each was taken (the middle of the reading), ascending."""
    cost_us: list[int]
    """How long each took; 0 for a reading repeated from the phase before."""
    columns: dict[str, list[int | float | None]]
    """By metric; None: absent. A metric without any value has no column."""

    def to_proto(self) -> event_pb2.SamplesRecorded:
        """Write the batch for an event."""
        return event_pb2.SamplesRecorded(
            case_id=self.label.case_id,
            round_id=self.label.round_id,
            phase=self.label.phase,
            probe_id=self.probe_id,
            device_id=self.device_id,
            sample_ns=self.sample_ns,
            cost_us=self.cost_us,
            columns=[_column_to_proto(name, values) for name, values in self.columns.items()],
        )

    @classmethod
    def from_proto(cls, message: event_pb2.SamplesRecorded) -> SampleBatch:
        """Read a batch from an event."""
        return cls(
            label=Label(message.case_id, message.round_id, message.phase),
            probe_id=message.probe_id,
            device_id=message.device_id,
            sample_ns=list(message.sample_ns),
            cost_us=list(message.cost_us),
            columns={column.metric: _column_from_proto(column) for column in message.columns},
        )


def _column_to_proto(name: str, values: Sequence[Value]) -> event_pb2.SampleColumn:
    absent = [index for index, value in enumerate(values) if value is None]
    if BY_NAME[name].integer:
        integers = [0 if value is None else int(value) for value in values]
        return event_pb2.SampleColumn(metric=name, integers=integers, absent=absent)
    doubles = [0.0 if value is None else float(value) for value in values]
    return event_pb2.SampleColumn(metric=name, doubles=doubles, absent=absent)


def _column_from_proto(column: event_pb2.SampleColumn) -> list[Value]:
    values: list[Value] = list(column.integers) if column.integers else list(column.doubles)
    for index in column.absent:
        values[index] = None
    return values
