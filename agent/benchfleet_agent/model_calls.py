"""The calls about models: pull, remove, unload; and the measurement of the machine's limits."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import grpc

from benchfleet.v1 import agent_service_pb2 as pb
from benchfleet.v1 import agent_service_pb2_grpc

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class ModelCalls(agent_service_pb2_grpc.AgentServiceServicer):
    """The part of the service that changes what models a host holds."""

    async def PullModel(  # noqa: N802
        self, request: pb.PullModelRequest, context: Context
    ) -> AsyncIterator[pb.PullModelResponse]:
        """Make a model present, telling progress."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "")
        yield pb.PullModelResponse()

    async def RemoveModel(  # noqa: N802
        self, request: pb.RemoveModelRequest, context: Context
    ) -> pb.RemoveModelResponse:
        """Remove a model's files."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "")
        raise AssertionError

    async def UnloadModel(  # noqa: N802
        self, request: pb.UnloadModelRequest, context: Context
    ) -> pb.UnloadModelResponse:
        """Take a model out of memory."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "")
        raise AssertionError

    async def MeasureLimits(  # noqa: N802
        self, request: pb.MeasureLimitsRequest, context: Context
    ) -> pb.MeasureLimitsResponse:
        """Measure what this machine can do at most."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "")
        raise AssertionError
