from __future__ import annotations

import pytest

from benchfleet_controller.judge import Judge, JudgeError, grade
from benchfleet_controller.quality import AspectError, check_aspects, expected_of, score


def test_a_score_is_the_share_of_aspects_an_answer_has() -> None:
    found = score("The capital is PARIS, on the\nSeine.", ["Paris", "on the Seine", "Lyon", "/sei?ne/"])

    assert found.value == 0.75
    assert found.found == ("Paris", "on the Seine", "/sei?ne/")
    assert found.missing == ("Lyon",)


@pytest.mark.parametrize(("text", "aspect"), [("I know.", "no"), ("Parisian", "Paris"), ("1.50", "/^15$/")])
def test_phrases_are_whole_words(text: str, aspect: str) -> None:
    assert score(text, [aspect]).value == 0


@pytest.mark.parametrize(
    ("text", "aspect"), [("C++!", "c++"), ("ﬁne", "fine"), ("Straße", "STRASSE"), ("it is (so)", "(so)")]
)
def test_forms_of_writing_do_not_matter(text: str, aspect: str) -> None:
    assert score(text, [aspect]).value == 1


def test_without_expectations_there_is_no_score() -> None:
    found = score("anything", [])

    assert found.value is None
    assert found.reason == "the prompt names nothing that is expected"


@pytest.mark.parametrize("aspect", ["/(/", " ", "/" + "x" * 1000 + "/"])
def test_aspects_that_cannot_be_looked_for_are_refused(aspect: str) -> None:
    with pytest.raises(AspectError):
        check_aspects(["fine", aspect])


def test_expectations_are_found_by_prompt_set_and_prompt() -> None:
    plan = {
        "prompt_sets": [
            {"name": "a", "prompts": [{"prompt_id": "p1", "expected": ["x"]}, {"prompt_id": "p2", "expected": []}]},
            {"name": "b", "prompts": [{"prompt_id": "p1", "expected": ["y"]}]},
        ]
    }

    assert expected_of(plan) == {("a", "p1"): ("x",), ("b", "p1"): ("y",)}
    assert expected_of(None) == {}


@pytest.mark.parametrize(("reply", "value"), [("5", 1.0), ("Grade: 1.", 0.0), (" 3\n", 0.5), ("4 of 5", 0.75)])
def test_a_grade_is_the_first_digit_of_the_scale(reply: str, value: float) -> None:
    assert grade(reply).value == value


@pytest.mark.parametrize("reply", ["", "excellent", "10", "4.5", "7"])
def test_what_is_no_grade_is_no_score(reply: str) -> None:
    found = grade(reply)

    assert found.value is None
    assert "no grade" in str(found.reason)


@pytest.mark.parametrize("url", ["127.0.0.1:80", "ftp://x/v1", "http://user:pw@host/v1", ""])
def test_a_judge_needs_a_url_without_credentials(url: str) -> None:
    with pytest.raises(JudgeError):
        Judge.at(url, "m")


def test_a_judges_key_is_not_shown() -> None:
    assert "secret" not in repr(Judge("http://h/v1", "m", "secret"))
