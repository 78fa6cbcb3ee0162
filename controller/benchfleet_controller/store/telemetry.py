"""Telemetry messages as the columns of ``samples``: all messages end to end, no row built one by one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from benchfleet.samples import SAMPLE_METRICS
from benchfleet.v1 import event_pb2
from benchfleet_controller.store.columns import objects


def sample_columns(
    run_of: Mapping[str, str], samples: Sequence[tuple[str, event_pb2.SamplesRecorded]]
) -> dict[str, npt.NDArray[Any]]:
    """All messages end to end, a column each; a metric that a message does not carry is NULL over its readings."""
    messages = [message for _, message in samples]
    lengths = np.array([len(message.sample_ns) for message in messages])
    starts = np.concatenate(([0], np.cumsum(lengths)))
    size = int(starts[-1])

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
        "sample_ns": _joined([message.sample_ns for message in messages], lengths, np.int64),
        "cost_us": _joined([message.cost_us for message in messages], lengths, np.int32),
    }
    known = {metric.name: np.int64 if metric.integer else np.float64 for metric in SAMPLE_METRICS}
    given: dict[str, dict[int, event_pb2.SampleColumn]] = defaultdict(dict)
    for place, message in enumerate(messages):
        for column in message.columns:
            given[column.metric][place] = column
    for name in given.keys() & known.keys():  # others are of a later agent: their columns come with the next version
        parts = given[name]
        places = np.fromiter(parts, np.int64, len(parts))
        rows = _rows_of(starts, lengths, places) if len(parts) < len(messages) else slice(None)
        values, absent = np.zeros(size, known[name]), np.ones(size, np.bool_)
        values[rows] = _joined([c.integers or c.doubles for c in parts.values()], lengths[places], known[name])
        absent[rows] = False
        for place, column in parts.items():
            length = int(lengths[place])
            carried = len(column.integers or column.doubles)
            if column.absent or carried < length:
                missing = [index for index in column.absent if index < length]
                absent[[starts[place] + index for index in (*missing, *range(carried, length))]] = True
        columns[name] = np.ma.masked_array(values, absent) if absent.any() else values
    return columns


def _joined(parts: Sequence[Sequence[float]], lengths: npt.NDArray[np.int64], dtype: Any) -> npt.NDArray[Any]:
    """The parts end to end, each with as many values as ``lengths`` says: what a hostile or broken message has too
    many or too few of must not shift the readings of others.
    """
    if all(len(part) == length for part, length in zip(parts, lengths, strict=True)):
        return np.fromiter(chain.from_iterable(parts), dtype, int(lengths.sum()))
    fitted = []
    for part, length in zip(parts, lengths, strict=True):
        values = np.zeros(length, dtype)
        taken = np.array(part[:length], dtype)
        values[: len(taken)] = taken
        fitted.append(values)
    return np.concatenate(fitted)


def _rows_of(
    starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], places: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """The rows of some messages, in order."""
    counts = lengths[places]
    offsets = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(starts[places], counts) + offsets
