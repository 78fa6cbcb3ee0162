from __future__ import annotations

import pytest

from benchfleet.failures import Reason, WorkFailed
from benchfleet_agent import words
from benchfleet_agent.jobs import SyntheticOrder
from benchfleet_agent.synthetic import MOST_PROBES, compose

TEMPLATE = 31


class Server:
    """Counts tokens like a server whose vocabulary takes ``per_word`` tokens a word."""

    def __init__(self, per_word: float = 1.0) -> None:
        self.per_word = per_word
        self.asked = 0

    def count(self, text: str) -> int:
        self.asked += 1
        return TEMPLATE + int(len(text.split()) * self.per_word)


@pytest.mark.parametrize("wanted", [40, 128, 512, 4096, 100_000])
@pytest.mark.parametrize("per_word", [1.0, 2.0, 0.5])
def test_prompts_have_exactly_the_wanted_length_after_a_few_questions(wanted: int, per_word: float) -> None:
    server = Server(per_word)
    length = wanted if per_word != 2.0 or (wanted - TEMPLATE) % 2 == 0 else wanted + 1

    prompts = compose(SyntheticOrder(length, 3), "42", server.count)

    asked = server.asked
    assert [server.count(prompt.messages[0]["content"]) for prompt in prompts] == [length] * 3
    assert asked <= MOST_PROBES
    assert len({prompt.messages[0]["content"] for prompt in prompts}) == 3
    assert [prompt.prompt_id for prompt in prompts] == ["synthetic-1", "synthetic-2", "synthetic-3"]


@pytest.mark.parametrize("per_word", [0.5, 1.0, 5.0, 9.0])
def test_no_question_is_much_longer_than_what_is_wanted(per_word: float) -> None:
    server, counts = Server(per_word), list[int]()

    def count(text: str) -> int:
        counts.append(server.count(text))
        return counts[-1]

    compose(SyntheticOrder(4096, 1), "42", count)

    assert max(counts) <= 4096 * 1.01, "it would not fit into a context that the prompt fits into"
    assert abs(counts[-1] - 4096) <= per_word


def test_words_that_defeat_prefix_caches_are_part_of_the_wanted_length() -> None:
    server = Server()
    starts = iter(range(100))

    (prompt,) = compose(
        SyntheticOrder(128, 1), "42", lambda text: server.count(words.prefix("calibration", next(starts)) + text)
    )

    text = prompt.messages[0]["content"]
    assert [server.count(words.prefix("42/counted/0", position) + text) for position in range(5)] == [128] * 5


def test_a_length_the_vocabulary_cannot_meet_gives_the_nearest() -> None:
    server = Server(per_word=2.0)
    (prompt,) = compose(SyntheticOrder(TEMPLATE + 101, 1), "42", server.count)
    assert abs(server.count(prompt.messages[0]["content"]) - (TEMPLATE + 101)) == 1


def test_a_server_that_does_not_count_is_refused() -> None:
    with pytest.raises(WorkFailed, match="does not count prompt tokens") as caught:
        compose(SyntheticOrder(64, 1), "42", lambda _: None)
    assert caught.value.failure.reason is Reason.UNSUPPORTED


def test_a_length_below_the_chat_template_is_refused_with_what_it_takes() -> None:
    with pytest.raises(WorkFailed, match="8 tokens are too few: the chat template and one word take 32") as caught:
        compose(SyntheticOrder(8, 1), "42", Server().count)
    assert caught.value.failure.reason is Reason.INVALID_SPEC


def test_words_are_decided_by_their_seed_and_a_longer_text_begins_like_a_shorter_one() -> None:
    assert words.text(5, "a") == words.text(5, "a")
    assert words.text(50, "a").startswith(words.text(5, "a"))
    assert words.text(5, "a") != words.text(5, "b")
    assert words.prefix("a", 0) != words.prefix("a", 1)
    assert words.prefix("a", 0).endswith("\n\n")
