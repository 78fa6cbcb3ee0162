"""What may mislead, with advice: one closed list of warnings over results and hosts. Pure.

Rows are those of `results.results_of` and of `store`: ``hosts_of_runs`` and ``certificates``. A missing key is an
unknown, never an alarm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchfleet_controller.checks.codes import Code, Warned
from benchfleet_controller.checks.of_cases import load_shape, of_case
from benchfleet_controller.checks.of_hosts import of_hosts

__all__ = ["Code", "Warned", "check", "load_shape"]

Row = Mapping[str, Any]


def check(cases: Sequence[Row], hosts: Sequence[Row] = (), certificates: Sequence[Row] = ()) -> tuple[Warned, ...]:
    """All warnings, cases first, each once."""
    several_prompt_sets = len({case.get("prompt_set") for case in cases}) > 1
    found = [
        warned for case in cases if case.get("status") != "skipped" for warned in of_case(case, several_prompt_sets)
    ]
    found += [
        Warned(
            Code.CERTIFICATE_MISSING,
            str(row.get("host")),
            f"the agent could not measure its own time stamps: {row.get('failure_message') or row['failure_reason']}",
            "how true its times are is not known: run again on a quieter machine",
        )
        for row in certificates
        if row.get("failure_reason")
    ]
    found += of_hosts(hosts)
    return tuple(dict.fromkeys(found))
