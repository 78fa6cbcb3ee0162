"""The contract between agents and controllers: messages, failures, transport.

Both sides import this package and it imports neither. `benchfleet.v1` holds the generated code of the
``.proto`` files beside it; `failures` the one vocabulary of reasons; `transport` channel and server
options; `samples` the registry of telemetry columns; `addresses` and `quantities` what people write for
hosts, sizes and times.
"""

__version__ = "0.1.0"

CONTRACT_REVISION = 4
"""Raised when an agent and a controller can no longer understand each other. Additions do not raise it."""
