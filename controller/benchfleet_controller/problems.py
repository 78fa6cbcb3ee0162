"""What can be wrong with hosts, apart from what speaks to them: commands that ask no host load no gRPC."""

from __future__ import annotations

from benchfleet.failures import Failure
from benchfleet_controller.plan import HostTarget


class HostProblem(Exception):
    """A host could not be reached or refused; says which, why and what to do."""

    def __init__(self, target: HostTarget, failure: Failure) -> None:
        super().__init__(f"{target.name} ({target.address}): {failure.message}")
        self.target = target
        self.failure = failure


class Refused(Exception):
    """Nothing was started; one problem a host."""

    def __init__(self, problems: list[HostProblem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems
