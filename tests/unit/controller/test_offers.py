"""What ``--device all`` means on a host."""

from __future__ import annotations

from benchfleet.v1 import host_pb2
from benchfleet_controller.offers import offers_of


def _listed(*pairs: tuple[str, str]) -> list[host_pb2.ModelVariant]:
    return [host_pb2.ModelVariant(alias="tiny", variant=variant, device=device) for variant, device in pairs]


def test_every_variant_is_a_case_and_a_lone_one_keeps_the_models_name() -> None:
    listed = _listed(("tiny-webgpu:1", "gpu"), ("tiny-cpu:1", "cpu"), ("tiny-cuda:1", "gpu"))

    assert offers_of("tiny", listed) == (("cpu", "tiny"), ("gpu", "tiny-cuda:1"), ("gpu", "tiny-webgpu:1"))
    assert offers_of("tiny-cuda:1", listed) == (("gpu", "tiny-cuda:1"),)


def test_of_several_versions_only_the_newest_is_run() -> None:
    assert offers_of("tiny", _listed(("tiny-cpu:9", "cpu"), ("tiny-cpu:10", "cpu"))) == (("cpu", "tiny"),)


def test_a_runtime_that_names_no_devices_chooses_for_itself() -> None:
    assert offers_of("tiny", []) == (("", "tiny"),)
    assert offers_of("tiny", [host_pb2.ModelVariant(alias="tiny", variant="tiny")]) == (("", "tiny"),)
