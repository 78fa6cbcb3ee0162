"""Job specs for tests: valid by default, one field changed at a time."""

from __future__ import annotations

from benchfleet.v1 import job_pb2


def case_spec(case_id: str = "case-1", model: str = "tiny-random", **changes: object) -> job_pb2.CaseSpec:
    spec = job_pb2.CaseSpec(
        case_id=case_id,
        runtime="foundry",
        model=model,
        prompt_set="two",
        round_count=2,
        warmup_round_count=1,
        concurrency=1,
        stream=True,
        sampling=job_pb2.SamplingSpec(max_tokens=8, temperature=0.0, seed=1),
    )
    for name, value in changes.items():
        setattr(spec, name, value)
    return spec


def job_spec(*cases: job_pb2.CaseSpec, run_id: str = "run-1") -> job_pb2.JobSpec:
    prompts = [
        job_pb2.Prompt(prompt_id=f"p{index}", messages=[job_pb2.ChatMessage(role="user", content=text)])
        for index, text in enumerate(("Hello there.", "Count to five."), start=1)
    ]
    return job_pb2.JobSpec(
        run_id=run_id,
        held_by="tester@here",
        prompt_sets=[job_pb2.PromptSet(name="two", prompts=prompts)],
        cases=cases or [case_spec()],
    )
