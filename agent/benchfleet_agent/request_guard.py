"""What callers do wrong on the wire: bytes that are no request, connections cut in the middle of an answer.

gRPC for Python takes both for mistakes of the server and writes a traceback for each into the log.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from benchfleet.failures import Failure, Reason
from benchfleet.transport import refusal

_GRPC_LOG = "grpc._cython.cygrpc"

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_MALFORMED = Failure(Reason.INVALID_SPEC, "these bytes are no request of this call; is the caller of this contract?")


def quiet_gone_callers() -> None:
    """Keep out of the log what gRPC says of callers that went away before they had their answer."""
    logging.getLogger(_GRPC_LOG).addFilter(_of_server)


def _of_server(record: logging.LogRecord) -> bool:
    raised = record.exc_info[0] if record.exc_info else None
    return raised is None or raised.__name__ != "ExecuteBatchError"


class RequestGuard(grpc.aio.ServerInterceptor):
    """Reads requests so that one that cannot be read becomes INVALID_ARGUMENT."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Put the reading in front of a call's handler."""
        handler: Any = await continuation(handler_call_details)
        if handler is None or handler.request_streaming:
            return handler  # type: ignore[no-any-return]  # unknown; the contract has no call with a stream of requests

        def read(data: bytes) -> Any:
            try:
                return handler.request_deserializer(data)
            except DecodeError:
                return None

        async def answer(request: Any, context: Context) -> Any:
            if request is None:
                await context.abort_with_status(refusal(grpc.StatusCode.INVALID_ARGUMENT, _MALFORMED))
            return await handler.unary_unary(request, context)

        async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
            if request is None:
                await context.abort_with_status(refusal(grpc.StatusCode.INVALID_ARGUMENT, _MALFORMED))
            async for message in handler.unary_stream(request, context):
                yield message

        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(stream, read, handler.response_serializer)
        return grpc.unary_unary_rpc_method_handler(answer, read, handler.response_serializer)
