"""Contract messages as plain values, for JSON columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def message_fields(message: Any, without: tuple[str, ...] = ()) -> Mapping[str, Any]:
    """A flat message as a dict by its own field names; absent optional fields are None, times are ISO 8601."""
    values: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        if field.name in without:
            continue
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.name == "Timestamp":
            values[field.name] = value.ToJsonString() if message.HasField(field.name) else None
        elif field.has_presence:
            values[field.name] = value if message.HasField(field.name) else None
        elif isinstance(value, str | int | float | bool):
            values[field.name] = value
        else:
            values[field.name] = dict(value) if hasattr(value, "items") else list(value)
    return values
