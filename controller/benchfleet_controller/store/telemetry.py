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

_Lengths = npt.NDArray[np.int64]
_TYPES: dict[str, Any] = {metric.name: np.int64 if metric.integer else np.float64 for metric in SAMPLE_METRICS}


@dataclass(slots=True)
class _Metric:
    """The columns of one metric in the messages that carry it, by their places."""

    places: list[int] = field(default_factory=list)
    columns: list[event_pb2.SampleColumn] = field(default_factory=list)


def sample_columns(
    run_of: Mapping[str, str], samples: Sequence[tuple[str, event_pb2.SamplesRecorded]]
) -> dict[str, npt.NDArray[Any]]:
    """All messages end to end, a column each; a metric that a message does not carry is NULL over its readings."""
    messages = [message for _, message in samples]
    times = [message.sample_ns for message in messages]
    lengths = _lengths(times)
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
        "sample_ns": _joined(times, lengths, np.int64),
        "cost_us": _joined([message.cost_us for message in messages], lengths, np.int32),
    }
    for name, metric in _by_metric(messages).items():
        columns[name] = _column(metric, lengths, starts, _TYPES[name])
    return columns


def _by_metric(messages: Iterable[event_pb2.SamplesRecorded]) -> dict[str, _Metric]:
    """Known metrics only: others are of a later agent, and their columns come with the next version."""
    found: dict[str, _Metric] = {}
    for place, message in enumerate(messages):
        for column in message.columns:
            metric = found.get(column.metric)
            if metric is None:
                metric = found[column.metric] = _Metric()
            if metric.places and metric.places[-1] == place:  # twice in one message: the later one counts
                metric.columns[-1] = column
                continue
            metric.places.append(place)
            metric.columns.append(column)
    return {name: metric for name, metric in found.items() if name in _TYPES}


def _column(metric: _Metric, lengths: _Lengths, starts: _Lengths, dtype: Any) -> npt.NDArray[Any]:
    """One metric over all readings; masked where there is none."""
    places = np.array(metric.places)
    expected = lengths[places]
    carried = [column.integers or column.doubles for column in metric.columns]
    given = _joined(carried, expected, dtype)
    missing = [(place, column.absent) for place, column in zip(metric.places, metric.columns, strict=True)]
    complete = len(places) == len(lengths) and not any(absent for _, absent in missing)
    short = np.flatnonzero(_lengths(carried) < expected)
    if complete and not len(short):
        return given
    values, empty = np.zeros(int(starts[-1]), dtype), np.ones(int(starts[-1]), np.bool_)
    rows = _rows_of(starts, lengths, places)
    values[rows], empty[rows] = given, False
    for place, absent in missing:
        if absent:
            empty[[starts[place] + index for index in absent if index < lengths[place]]] = True
    for number in short:
        place = metric.places[number]
        empty[starts[place] + len(carried[number]) : starts[place + 1]] = True
    return np.ma.masked_array(values, empty)


def _joined(parts: Sequence[Sequence[float]], lengths: _Lengths, dtype: Any) -> npt.NDArray[Any]:
    """The parts end to end, each with as many values as ``lengths`` says: what a hostile or broken message has too
    many or too few of must not shift the readings of others.
    """
    if np.array_equal(_lengths(parts), lengths) and (whole := _merged(parts)) is not None:
        return np.array(whole, dtype)
    fitted = []
    for part, length in zip(parts, lengths, strict=True):
        values = np.zeros(length, dtype)
        taken = np.array(part[:length], dtype)
        values[: len(taken)] = taken
        fitted.append(values)
    return np.concatenate(fitted)


def _merged(parts: Sequence[Any]) -> Any:
    """Repeated fields of one type end to end, without a Python object a value; None: their types differ."""
    holder = event_pb2.SampleColumn()
    for whole in (holder.integers, holder.doubles):
        try:
            for part in parts:
                whole.extend(part)
        except TypeError:
            continue
        return whole
    return None


def _lengths(parts: Sequence[Sequence[Any]]) -> _Lengths:
    return np.fromiter(map(len, parts), np.int64, len(parts))


def _rows_of(starts: _Lengths, lengths: _Lengths, places: _Lengths) -> _Lengths:
    """The rows of some messages, in order."""
    counts = lengths[places]
    offsets = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(starts[places], counts) + offsets
