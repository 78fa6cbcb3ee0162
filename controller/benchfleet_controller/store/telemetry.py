"""Telemetry messages as the columns of ``samples``: all messages end to end, no row built one by one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from benchfleet.samples import SAMPLE_METRICS
from benchfleet.v1 import event_pb2
from benchfleet_controller.store.columns import objects

_Ints = npt.NDArray[np.int64]
_TYPES: dict[str, Any] = {metric.name: np.int64 if metric.integer else np.float64 for metric in SAMPLE_METRICS}


@dataclass(slots=True)
class _Part:
    """Values of some messages end to end, by the messages' places."""

    values: Any
    """A repeated field: extending it by another one makes no Python object a value."""
    places: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    def add(self, place: int, values: Any) -> None:
        self.values.extend(values)
        self.places.append(place)
        self.counts.append(len(values))

    def take_back(self, place: int) -> None:
        """Forget the message at ``place`` if it was the last one added."""
        if self.places and self.places[-1] == place:
            self.places.pop()
            del self.values[len(self.values) - self.counts.pop() :]


class _Metric:
    """What messages carry of one metric."""

    __slots__ = ("absent", "doubles", "integers", "last_place")

    def __init__(self) -> None:
        holder = event_pb2.SampleColumn()
        self.integers, self.doubles = _Part(holder.integers), _Part(holder.doubles)
        self.absent: dict[int, Sequence[int]] = {}
        self.last_place = -1

    def forget_last(self) -> None:
        """Take back what the last message said."""
        self.integers.take_back(self.last_place)
        self.doubles.take_back(self.last_place)
        self.absent.pop(self.last_place, None)


def sample_columns(
    run_of: Mapping[str, str], samples: Sequence[tuple[str, event_pb2.SamplesRecorded]]
) -> dict[str, npt.NDArray[Any]]:
    """All messages end to end, a column each; a metric that a message does not carry is NULL over its readings."""
    messages = [message for _, message in samples]
    lengths = np.fromiter((len(message.sample_ns) for message in messages), np.int64, len(messages))
    starts = np.concatenate(([0], np.cumsum(lengths)))

    def repeated(values: Iterable[str | None]) -> npt.NDArray[Any]:
        return np.repeat(objects(values), lengths)

    columns: dict[str, npt.NDArray[Any]] = {
        "run_id": repeated(run_of[job_id] for job_id, _ in samples),
        "job_id": repeated(job_id for job_id, _ in samples),
        "case_id": repeated(message.case_id or None for message in messages),
        "round_id": repeated(message.round_id or None for message in messages),
        "phase": repeated(message.phase for message in messages),
        "probe_id": repeated(message.probe_id for message in messages),
        "device_id": repeated(message.device_id or None for message in messages),
        "sample_ns": _filled([_part(message.sample_ns for message in messages)], lengths, starts, np.int64)[0],
        "cost_us": _filled([_part(message.cost_us for message in messages)], lengths, starts, np.int32)[0],
    }
    for name, metric in _by_metric(messages).items():
        columns[name] = _column(metric, lengths, starts, _TYPES[name])
    return columns


def _by_metric(messages: Iterable[event_pb2.SamplesRecorded]) -> dict[str, _Metric]:
    """Known metrics only: others are of a later agent, and their columns come with the next version.

    Its inner loop is most of what storing telemetry takes beside DuckDB's own work.
    """
    found: dict[str, _Metric] = {}
    for place, message in enumerate(messages):
        for column in message.columns:
            name = column.metric
            metric = found.get(name)
            if metric is None:
                metric = found[name] = _Metric()
            if metric.last_place == place:  # twice in one message: the later one counts
                metric.forget_last()
            metric.last_place = place
            integers = column.integers
            if integers:
                metric.integers.add(place, integers)
            else:
                metric.doubles.add(place, column.doubles)
            absent = column.absent
            if absent:
                metric.absent[place] = absent
    return {name: metric for name, metric in found.items() if name in _TYPES}


def _part(parts: Iterable[Sequence[int]]) -> _Part:
    whole = _Part(event_pb2.SampleColumn().integers)
    for place, part in enumerate(parts):
        whole.add(place, part)
    return whole


def _column(metric: _Metric, lengths: _Ints, starts: _Ints, dtype: Any) -> npt.NDArray[Any]:
    """One metric over all readings; masked where there is none."""
    values, empty = _filled([metric.integers, metric.doubles], lengths, starts, dtype)
    for place, indices in metric.absent.items():
        empty[[starts[place] + index for index in indices if 0 <= index < lengths[place]]] = True
    return np.ma.masked_array(values, empty) if empty.any() else values


def _filled(
    parts: Sequence[_Part], lengths: _Ints, starts: _Ints, dtype: Any
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """The parts' values over all readings, and where there are none (0).

    What a hostile or broken message has too many or too few of does not shift the readings of others.
    """
    size = int(starts[-1])
    for part in parts:
        if len(part.places) == len(lengths) and np.array_equal(part.counts, lengths):
            return np.array(part.values, dtype), np.zeros(size, np.bool_)
    values, empty = np.zeros(size, dtype), np.ones(size, np.bool_)
    for part in parts:
        if part.places:
            places, counts = np.array(part.places), np.array(part.counts)
            fitting = np.minimum(counts, lengths[places])
            rows = _ranges(starts[places], fitting)
            values[rows] = np.array(part.values, dtype)[_ranges(np.cumsum(counts) - counts, fitting)]
            empty[rows] = False
    return values, empty


def _ranges(starts: _Ints, counts: _Ints) -> _Ints:
    """Ranges of ``counts`` numbers from ``starts`` on, end to end."""
    offsets: _Ints = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(starts, counts) + offsets
