"""Model directories of the operator: found, described, and looked at for damage."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from benchfleet.failures import Reason, WorkFailed
from benchfleet_agent.runtimes import foundry_files, local_models
from benchfleet_agent.runtimes.foundry_files import ModelFacts, damage_of, read_facts
from benchfleet_agent.runtimes.local_models import describe, scan


def make(directory: Path, *, provider: str | None = None, weights: bytes = b"weights", **model: Any) -> Path:
    directory.mkdir(parents=True)
    options: dict[str, Any] = {"provider_options": [{provider: {}}] if provider else []}
    decoder = {"filename": "model.onnx", "num_hidden_layers": 2, "num_key_value_heads": 1, "head_size": 8,
               "session_options": options}  # fmt: skip
    config = {"model": {"context_length": 512, "decoder": decoder, **model}}
    (directory / "genai_config.json").write_text(json.dumps(config))
    (directory / "model.onnx").write_bytes(weights)
    return directory


def test_directories_are_named_after_themselves_unless_they_say_otherwise(tmp_path: Path) -> None:
    plain = describe(make(tmp_path / "My Model (v2)"))
    assert (plain.model.alias, plain.model.variant) == ("my-model-v2", "my-model-v2-local-cpu:1")
    assert (plain.model.context_length, plain.model.device, plain.model.cached) == (512, "cpu", True)
    assert plain.reasoning is None
    said = make(tmp_path / "x", provider="cuda")
    (said / "benchfleet.toml").write_text(
        'alias = "phi"\nversion = 7\nlicense = "mit"\nquantisation = "INT4"\nreasoning = ["<t>", "</t>"]\n'
    )
    found = describe(said)
    assert (found.model.variant, found.model.license) == ("phi-local-gpu:7", "mit")
    assert (found.model.quantisation, plain.model.quantisation) == ("int4", None)
    assert found.model.execution_provider == "CUDAExecutionProvider"
    assert found.reasoning == ("<t>", "</t>")
    assert "reasoning" in found.model.capabilities


@pytest.mark.parametrize(
    "text", ["alias = 3", "reasoning = ['x']", "version = -1", "colour = 'red'", "not toml", "version = true"]
)
def test_a_declaration_that_makes_no_sense_is_refused_and_left_out_of_a_scan(tmp_path: Path, text: str) -> None:
    directory = make(tmp_path / "m")
    (directory / "benchfleet.toml").write_text(text)
    with pytest.raises(WorkFailed) as caught:
        describe(directory)
    assert caught.value.failure.reason is Reason.CORRUPT_MODEL
    assert "benchfleet.toml" in caught.value.failure.message
    assert scan([tmp_path]) == []


def test_a_scan_stays_shallow_and_leaves_links_and_hidden_directories_alone(tmp_path: Path) -> None:
    root = tmp_path / "root"
    make(root / "a")
    make(root / "publisher" / "b" / "v1")
    make(root / ".hidden" / "c")
    make(root / "1" / "2" / "3" / "4" / "5" / "deep")
    make(tmp_path / "outside")
    with contextlib.suppress(OSError):  # Windows without the privilege
        (root / "link").symlink_to(tmp_path / "outside")
    assert [one.model.alias for one in scan([root])] == ["a", "v1"]
    assert scan([tmp_path / "nowhere"]) == []


def test_a_huge_root_is_not_walked_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_models, "MOST_DIRECTORIES", 3)
    for name in "abcdef":
        (tmp_path / name).mkdir()
    make(tmp_path / "z")
    assert scan([tmp_path]) == []


def test_of_two_directories_with_one_id_the_first_keeps_it(tmp_path: Path) -> None:
    first, second = make(tmp_path / "1" / "same"), make(tmp_path / "2" / "same")
    assert [one.path for one in scan([tmp_path / "1", tmp_path / "2"])] == [first]
    assert second.is_dir()


def test_facts_of_a_configuration(tmp_path: Path) -> None:
    assert read_facts(make(tmp_path / "m")) == ModelFacts(512, 2, 1, 8, "CPUExecutionProvider")
    assert read_facts(tmp_path) is None
    assert read_facts(make(tmp_path / "odd", decoder=None, context_length=-1)) == ModelFacts(
        execution_provider="CPUExecutionProvider"
    )


def test_files_that_are_nested_too_deep_are_no_model(tmp_path: Path) -> None:
    deep = make(tmp_path / "deep")
    (deep / "genai_config.json").write_text("[" * 100_000)
    said = make(tmp_path / "said")
    (said / "benchfleet.toml").write_text("alias = " + "[" * 100_000)
    assert read_facts(deep) is None
    assert scan([tmp_path]) == []


def test_what_speaks_against_a_directory(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole")
    assert damage_of(whole, 5) is None
    assert "not ended" in str(damage_of(_with(make(tmp_path / "half"), "download.tmp")))
    assert "the catalog says" in str(damage_of(whole, 5_000_000))
    assert damage_of(tmp_path) is not None
    empty = make(tmp_path / "empty", weights=b"")
    assert "model.onnx is empty" in str(damage_of(empty))
    (empty / "model.onnx").unlink()
    assert "model.onnx is missing" in str(damage_of(empty))


def test_stretches_of_zeros_are_a_download_that_slept(tmp_path: Path) -> None:
    size = 4 << 20
    weights = bytes(range(1, 256)) * (size // 255)
    assert damage_of(make(tmp_path / "whole", weights=weights)) is None
    slept = weights[: size // 2] + bytes(size // 2)
    assert "zeros" in str(damage_of(make(tmp_path / "slept", weights=slept)))
    padded = weights + bytes(foundry_files._BLOCK_BYTES * 4)
    assert damage_of(make(tmp_path / "padded", weights=padded)) is None


def _with(directory: Path, name: str) -> Path:
    (directory / name).touch()
    return directory
