"""How agents and controllers reach each other: channel and server options, errors on the wire."""

from __future__ import annotations

from collections.abc import Mapping

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from benchfleet.failures import Failure, Reason

ERROR_DOMAIN = "benchfleet"
MAX_MESSAGE_BYTES = 16 << 20
BATCH_BYTES = 512 << 10
"""About how much one StreamJobEvents message carries."""

_KEEPALIVE: list[tuple[str, int]] = [
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # keepalive_timeout_ms alone is ignored: a frozen peer would go unnoticed for a minute
    # (https://github.com/grpc/grpc/pull/39239).
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]
_LIMITS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
]
CHANNEL_OPTIONS: list[tuple[str, int]] = [
    *_KEEPALIVE,
    *_LIMITS,
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.enable_http_proxy", 0),  # agents are in the local network; a web proxy has no business here
]
SERVER_OPTIONS: list[tuple[str, int]] = [
    *_KEEPALIVE,
    *_LIMITS,
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.so_reuseport", 0),  # a second agent on the same port must fail, not share it
]
TLS_SERVER_OPTIONS: list[tuple[str, int]] = [
    *SERVER_OPTIONS,
    # New calls then take a new connection, so that both ends' certificates are verified again; streams that are open
    # may end on the old one (the agent looks at their callers' certificates with every message).
    ("grpc.max_connection_age_ms", 3_600_000),
]


def refusal(code: grpc.StatusCode, failure: Failure, metadata: Mapping[str, str] | None = None) -> grpc.Status:
    """The status of a refused call: one ErrorInfo with the reason (AIP-193)."""
    detail = any_pb2.Any()
    detail.Pack(
        error_details_pb2.ErrorInfo(reason=failure.reason.value, domain=ERROR_DOMAIN, metadata=dict(metadata or {}))
    )
    number = code_pb2.Code.Value(code.name)
    status: grpc.Status = rpc_status.to_status(  # type: ignore[no-untyped-call]
        status_pb2.Status(code=number, message=failure.message, details=[detail])
    )
    return status


def failure_of(error: grpc.RpcError) -> tuple[Failure, dict[str, str]] | None:
    """The failure and metadata a refused call carries; None when the status is not ours."""
    try:
        # The synchronous function also reads grpc.aio's errors; its async twin does not.
        status = rpc_status.from_call(error)  # type: ignore[no-untyped-call]
    except (ValueError, NotImplementedError, AttributeError):
        return None
    if status is None:
        return None
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Is(info.DESCRIPTOR) and detail.Unpack(info) and info.domain == ERROR_DOMAIN:
            try:
                reason = Reason(info.reason)
            except ValueError:
                reason = Reason.INTERNAL
            return Failure(reason, status.message), dict(info.metadata)
    return None
