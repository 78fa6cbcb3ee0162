"""Why a case did not succeed is told with what speaks for it."""

from __future__ import annotations

from benchfleet_controller.report.sections import failure_text


def test_evidence_stands_behind_the_message() -> None:
    evidence = ["killed by signal 9 (SIGKILL)", "1.9 GiB of 2 GiB were in use"]
    assert failure_text({"message": "the runtime ended", "evidence": evidence}) == (
        "the runtime ended (killed by signal 9 (SIGKILL); 1.9 GiB of 2 GiB were in use)"
    )


def test_without_evidence_the_message_stands_alone() -> None:
    assert failure_text({"message": "no room", "evidence": None}) == "no room"
    assert failure_text({"message": None, "evidence": []}) == ""
