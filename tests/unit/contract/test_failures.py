from __future__ import annotations

import pytest

from benchfleet.failures import Failure, Reason
from benchfleet.v1 import event_pb2


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_survives_the_wire(reason: Reason) -> None:
    failure = Failure(reason, "what to do")

    assert Failure.from_proto(event_pb2.Failure.FromString(failure.to_proto().SerializeToString())) == failure


def test_a_reason_of_a_newer_version_is_kept_in_the_message() -> None:
    read = Failure.from_proto(event_pb2.Failure(reason="melted", message="too hot"))

    assert read == Failure(Reason.INTERNAL, "[melted] too hot")
