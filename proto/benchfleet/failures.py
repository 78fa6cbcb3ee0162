"""Why something failed: one closed vocabulary for the wire, the database and the command line.

A *refused call* is a gRPC status whose details carry one ``ErrorInfo`` with a reason from here
(AIP-193). *Failed work* (a job, a case, a request) is data: a `Failure` in an event, with a reason
from the same list. Reasons are lower_snake_case strings on the wire and in SQL.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchfleet.v1 import event_pb2


class Reason(StrEnum):
    """Every reason benchfleet gives. Additions are compatible; a reason is never renamed."""

    # The call was refused.
    INVALID_SPEC = "invalid_spec"
    HOST_BUSY = "host_busy"
    JOB_NOT_FOUND = "job_not_found"
    JOB_DIFFERS = "job_differs"
    EVENTS_RELEASED = "events_released"
    VERSION_MISMATCH = "version_mismatch"
    UNAUTHENTICATED = "unauthenticated"
    PERMISSION_DENIED = "permission_denied"

    # The host or the agent.
    HOST_UNREACHABLE = "host_unreachable"
    NOT_AN_AGENT = "not_an_agent"
    AGENT_RESTARTED = "agent_restarted"
    AGENT_STOPPED = "agent_stopped"
    DISK_FULL = "disk_full"
    CANCELLED = "cancelled"
    ON_BATTERY = "on_battery"
    TOO_HOT = "too_hot"
    BACKGROUND_LOAD = "background_load"
    JOURNAL_FULL = "journal_full"
    INTERNAL = "internal"

    # The runtime and the model.
    RUNTIME_UNAVAILABLE = "runtime_unavailable"
    UNSUPPORTED = "unsupported"
    UNSUPPORTED_OS = "unsupported_os"
    MODEL_NOT_FOUND = "model_not_found"
    NOT_CACHED = "not_cached"
    NOT_LOADED = "not_loaded"
    MODEL_IN_USE = "model_in_use"
    PATH_NOT_ALLOWED = "path_not_allowed"
    ENDPOINT_NOT_ALLOWED = "endpoint_not_allowed"
    DOES_NOT_FIT = "does_not_fit"
    EP_MISSING = "ep_missing"
    EP_MISMATCH = "ep_mismatch"
    DOWNLOAD_FAILED = "download_failed"
    BUILD_FAILED = "build_failed"
    CORRUPT_MODEL = "corrupt_model"
    LOAD_FAILED = "load_failed"
    LOAD_TIMEOUT = "load_timeout"
    OUT_OF_MEMORY = "out_of_memory"
    RUNTIME_CRASHED = "runtime_crashed"
    LOAD_PROCESS_CRASHED = "load_process_crashed"
    ALL_REQUESTS_FAILED = "all_requests_failed"
    SOME_REQUESTS_FAILED = "some_requests_failed"
    RATE_NOT_KEPT = "rate_not_kept"

    # One request.
    CONNECTION_FAILED = "connection_failed"
    HTTP_ERROR = "http_error"
    RATE_LIMITED = "rate_limited"
    CONTEXT_OVERFLOW = "context_overflow"
    REDIRECTED = "redirected"
    BAD_RESPONSE = "bad_response"
    STREAM_ERROR = "stream_error"
    STREAM_TRUNCATED = "stream_truncated"
    EMPTY_ANSWER = "empty_answer"
    FIRST_TOKEN_TIMEOUT = "first_token_timeout"
    TOKEN_TIMEOUT = "token_timeout"
    REQUEST_TIMEOUT = "request_timeout"


@dataclass(frozen=True, slots=True)
class Failure:
    """One failure: the reason for programs, the message for people (it says what to do)."""

    reason: Reason
    message: str

    @classmethod
    def from_proto(cls, message: event_pb2.Failure) -> Failure:
        """Read a failure; a reason this version does not know becomes ``internal``, named in the message."""
        try:
            return cls(Reason(message.reason), message.message)
        except ValueError:
            return cls(Reason.INTERNAL, f"[{message.reason}] {message.message}")

    def to_proto(self) -> event_pb2.Failure:
        """Write the failure for an event."""
        from benchfleet.v1 import event_pb2

        return event_pb2.Failure(reason=self.reason.value, message=self.message)


class WorkFailed(Exception):
    """Work that failed for a known reason; carries the `Failure` to the place that records it."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.failure = Failure(reason, message)
