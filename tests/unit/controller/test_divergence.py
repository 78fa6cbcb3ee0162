from __future__ import annotations

import hashlib

import pytest

from benchfleet_controller.divergence import Answer, Key, Unrepeatable, equality, repeatability
from benchfleet_controller.stats import Interval, share_interval


def _answer(text: str, prompt: str = "p", round_index: int = 0, *, tokens: tuple[str, ...] | None = None) -> Answer:
    return Answer(
        key=Key(prompt, round_index, 0),
        text="".join(tokens) if tokens else text,
        pieces=tuple(map(len, tokens)) if tokens else None,
        output_tokens=len(tokens) if tokens else None,
        finish_reason="length",
    )


def test_pairs_are_made_by_key_and_counted() -> None:
    left = [_answer("a", "p", 0), _answer("b", "q", 0), _answer("c", "p", 1), _answer("only here", "p", 2)]
    right = [_answer("b", "q", 0), _answer("x", "p", 1), _answer("a", "p", 0), _answer("d", "q", 1)]
    found = equality(left, right)
    assert (found.pairs, found.equal, found.share, found.why) == (3, 2, 2 / 3, "")
    assert [one.key for one in found.first_divergences] == [Key("p", 1, 0)]


def test_the_interval_counts_prompts_and_not_repetitions() -> None:
    def answers(prompts: int, rounds: int) -> list[Answer]:
        return [_answer("a", f"p{p}", r) for p in range(prompts) for r in range(rounds)]

    assert equality(answers(5, 1), answers(5, 1)).interval == share_interval(5, 5)
    assert equality(answers(5, 40), answers(5, 40)).interval == share_interval(5, 5)
    few = equality(answers(5, 1), answers(5, 1)).interval
    assert isinstance(few, Interval)
    assert few.low < 0.6


def test_the_first_difference_is_found_by_token_and_by_character() -> None:
    left = _answer("", tokens=("The", " sky", " is", " blue", "."))
    right = _answer("", tokens=("The", " sky", " is", " black", "."))
    (found,) = equality([left], [right]).first_divergences
    assert (found.token, found.character) == (3, len("The sky is bl"))
    assert (found.left, found.right) == ("The sky is blue.", "The sky is black.")


def test_excerpts_are_short() -> None:
    (found,) = equality([_answer("a" * 100 + "b" * 100)], [_answer("a" * 100 + "c" * 100)]).first_divergences
    assert (found.character, found.token) == (100, None)
    assert (found.left, found.right) == ("a" * 20 + "b" * 20, "a" * 20 + "c" * 20)


@pytest.mark.parametrize("swapped", [False, True])
def test_an_answer_that_goes_on_parts_where_the_other_ends(swapped: bool) -> None:
    pair = [_answer("", tokens=("One", " two")), _answer("", tokens=("One", " two", " three"))]
    if swapped:
        pair.reverse()
    (found,) = equality(pair[:1], pair[1:]).first_divergences
    assert (found.token, found.character) == (2, 7)


@pytest.mark.parametrize(
    ("output_tokens", "finish", "pieces", "cut"),
    [
        (2, "length", (1, 2), ("a", "bc")),
        (3, "stop", (1, 2), ("a", "bc")),  # the stop token is counted and has no text
        (3, "length", (1, 2), None),
        (4, "stop", (1, 2), None),
        (1, "stop", (1, 2), None),
        (2, "stop", (0, 2), None),  # a chunk of reasoning: not all of the text is cut
        (None, "stop", (1, 2), None),
        (2, "stop", None, None),
    ],
)
def test_an_answer_is_cut_into_tokens_only_where_each_chunk_is_one(
    output_tokens: int | None, finish: str, pieces: tuple[int, ...] | None, cut: tuple[str, ...] | None
) -> None:
    answer = Answer(Key("p", 0, 0), "abc", pieces, None, output_tokens, finish)
    assert answer.tokens() == cut


def test_answers_that_differ_in_reasoning_alone_differ_nowhere_in_their_text() -> None:
    def thought(reasoning: str) -> Answer:
        return Answer(Key("p", 0, 0), "42", sha256=hashlib.sha256(f"{reasoning}\0".encode() + b"42").hexdigest())

    assert equality([thought("x")], [thought("x")]).equal == 1
    (found,) = equality([thought("x")], [thought("y")]).first_divergences
    assert (found.token, found.character, found.left, found.right) == (None, None, "", "")
    assert equality([thought("x")], [_answer("42")]).equal == 1  # one side has no digest: the text decides


def test_it_is_said_why_nothing_could_be_paired() -> None:
    some = [_answer("a", "p1"), _answer("b", "p2")]
    assert equality(some, []).why == "there are no answers on the right"
    assert equality([], some).why == "there are no answers on the left"
    others = [_answer("a", f"q{i}") for i in range(5)]
    assert equality(some, others).why == "no prompt in common: p1, p2 on the left, q0, q1, q2 and 2 more on the right"
    found = equality(some, [_answer("a", "p1", 7)])
    assert found.why.startswith("no prompt in the same place of the same round")
    assert (found.pairs, found.share, found.interval) == (0, None, None)


def test_a_key_that_comes_twice_is_paired_in_order() -> None:
    found = equality([_answer("a"), _answer("b")], [_answer("a"), _answer("c"), _answer("d")])
    assert (found.pairs, found.equal) == (2, 1)


def test_repeatability_is_the_share_of_equal_pairs_of_one_prompt() -> None:
    same = [_answer("a", "p", r) for r in range(3)]
    mixed = [_answer(text, "q", r) for r, text in enumerate("xxy")]
    found = repeatability([*same, *mixed, _answer("z", "once")])
    assert (found.prompts, found.pairs, found.equal, found.share) == (2, 6, 4, 4 / 6)
    assert found.unrepeatable == (Unrepeatable("q", 3, 2),)
    assert repeatability([_answer("a", "p"), _answer("b", "q")]).share is None


def test_answers_after_other_words_are_not_paired_and_no_inner_key_is_told() -> None:
    left, right = (Answer(Key("p1", 0, 0, words), "same") for words in ("body night question", "river small green"))
    found = equality([left], [right])
    assert (found.pairs, found.why) == (
        0,
        "the same prompts, but after other words on each side: only deterministic runs begin them alike",
    )
