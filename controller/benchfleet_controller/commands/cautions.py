"""What may mislead about an answer: the warnings about the cases it rests on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from benchfleet_controller.checks import Warned, check
from benchfleet_controller.dimensions import group_name, matches, shared_conditions
from benchfleet_controller.report import sentence
from benchfleet_controller.store import Row, Store

WARNED_INTERVALS = ("ttft_avg_s", "e2e_avg_s", "decode_tokens_per_s")
"""What warnings ask the width of; by round, so that a million requests need not be read again."""


@dataclasses.dataclass(frozen=True, slots=True)
class Cautions:
    """The cases of an answer with their hosts, to be warned about together or group by group."""

    cases: Sequence[Row]
    hosts: Sequence[Row] = ()
    certificates: Sequence[Row] = ()

    @classmethod
    def of_cases(
        cls, store: Store, run_ids: Sequence[str], found: Sequence[Row], where: Mapping[str, str] | None = None
    ) -> Cautions:
        """Of the cases of runs (as `results_of` has them, with `WARNED_INTERVALS`) that ``where`` lets through."""
        names = {row.run_id: row.name for row in store.runs()}
        cases = [
            case | {"run_name": names.get(case["run_id"])}
            for case in found
            if all(matches(case, *one) for one in (where or {}).items())
        ]
        return cls(cases, store.hosts_of_runs(run_ids), store.certificates(run_ids))._about(cases)

    def warnings(self) -> tuple[Warned, ...]:
        """All of them."""
        return check(self.cases, self.hosts, self.certificates)

    def of_group(self, conditions: Mapping[str, Any], group: str, by: Sequence[str]) -> list[dict[str, Any]]:
        """Those about one group of a comparison, as JSON objects."""
        mine = [
            case
            for case in self.cases
            if group_name(case, by) == group and str(shared_conditions(case, by)) == str(dict(conditions))
        ]
        return [dataclasses.asdict(warned) for warned in self._about(mine).warnings()]

    def _about(self, cases: Sequence[Row]) -> Cautions:
        jobs = {case["job_id"] for case in cases}
        hosts, certificates = (
            [row for row in rows if row["job_id"] in jobs] for rows in (self.hosts, self.certificates)
        )
        return Cautions(cases, hosts, certificates)


def warnings_text(warnings: Sequence[Warned], style: str = "table") -> str:
    """Warnings as lines; what is said of several subjects is said once."""
    subjects: dict[tuple[str, str], list[str]] = {}
    for warned in warnings:
        subjects.setdefault((warned.message, warned.advice), []).append(warned.subject)
    return "".join(
        sentence(f"warning: {', '.join(names)}: {message}; {advice}", style) + "\n"
        for (message, advice), names in subjects.items()
    )
