from __future__ import annotations

from pathlib import Path

import pytest

from benchfleet_controller.model_facts import ModelFactsError, load_model_facts
from benchfleet_controller.plan import ModelFacts


def _file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "models.json"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_workshops_shape_is_read(tmp_path: Path) -> None:
    path = _file(tmp_path, '{"phi-4-mini": {"capabilities": ["chat", "code"], "size_mb": 3600}, "tiny": {}}')

    assert load_model_facts(path) == (
        ModelFacts("phi-4-mini", ("chat", "code"), 3_600_000_000),
        ModelFacts("tiny", (), None),
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "expected"),
        ("{}", "expected"),
        ("{", "line 1, column 2"),
        ('{"a": 1}', "a: must be an object"),
        ('{"a": {"size": 1}}', "a: unknown key 'size'; known are capabilities, size_mb"),
        ('{"a": {"size_mb": "big"}}', "a: size_mb must be a number"),
        ('{"a": {"size_mb": -1}}', "a: size_mb must be a number"),
        ('{"a": {"capabilities": "chat"}}', "a: capabilities must be a list of texts"),
        ('{" ": {}}', "must be printable and not empty"),
    ],
)
def test_what_makes_no_sense_says_where_and_why(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ModelFactsError) as caught:
        load_model_facts(_file(tmp_path, text))
    assert said in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path))


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ModelFactsError) as caught:
        load_model_facts(_file(tmp_path, '{"a": 1, "b": {"size_mb": true}}'))
    assert len(str(caught.value).splitlines()) == 2


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelFactsError, match="cannot be read: No such file"):
        load_model_facts(tmp_path / "none.json")
