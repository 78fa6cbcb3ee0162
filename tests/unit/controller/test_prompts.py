from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchfleet_controller import prompts
from benchfleet_controller.plan import ChatMessage, Prompt
from benchfleet_controller.prompts import PromptError, inline_prompts, load_prompts


def _file(tmp_path: Path, name: str, text: str) -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8", newline="")
    return path


def _user(prompt_id: str, text: str, max_tokens: int | None = None) -> Prompt:
    return Prompt(prompt_id, (ChatMessage("user", text),), max_tokens)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        (
            "a.txt",
            "\ufeff# about\nOne?\r\n\n  Two\u2028lines?  \n",
            [_user("p1", "One?"), _user("p2", "Two\u2028lines?")],
        ),
        ("a.json", '["One?", {"prompt": "Two?", "id": 7}]', [_user("p1", "One?"), _user("7", "Two?")]),
        ("a.JSON", '{"prompts": ["One?"]}', [_user("p1", "One?")]),
        (
            "a.json",
            '[{"id": "q", "prompt": "One?", "max_tokens": 8, "tags": ["qa"], "expected": "1"}]',
            [Prompt("q", (ChatMessage("user", "One?"),), 8, ("qa",), ("1",))],
        ),
        (
            "a.jsonl",
            '"One\u2028?"\n\n{"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]}\n',
            [_user("p1", "One\u2028?"), Prompt("p2", (ChatMessage("system", "S"), ChatMessage("user", "U")))],
        ),
        (
            "a.csv",
            'ID,Prompt,max_tokens\r\nx,"One,\nor two?",8\r\n,Three?,\r\n',
            [_user("x", "One,\nor two?", 8), _user("p2", "Three?")],
        ),
    ],
)
def test_each_kind_of_file_is_read(tmp_path: Path, name: str, text: str, expected: list[Prompt]) -> None:
    found = load_prompts(_file(tmp_path, name, text))

    assert found.name == "a"
    assert list(found.prompts) == expected


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.md", "x", "a.md: prompts are read from .txt, .json, .jsonl, .csv files"),
        ("a.txt", "# only this\n", "a.txt: there is no prompt in it; write at least one"),
        ("a.json", "[]", "there is no prompt in it"),
        ("a.jsonl", "\n", "there is no prompt in it"),
        ("a.csv", "prompt\n", "there is no prompt in it"),
        ("a.csv", "", "line 1: the header needs a column named prompt"),
        ("a.csv", "prompt;id\nx;y\n", "the header needs a column named prompt (separate columns by commas)"),
        ("a.csv", "prompt,model\n", "line 1: unknown column 'model'; known are id, prompt, max_tokens"),
        ("a.csv", "prompt,id\na,b,c\n", "line 2: more cells than columns; put quotes around texts with commas"),
        ("a.csv", 'prompt\n"x\n', "unexpected end of data"),
        ("a.csv", "prompt,max_tokens\nx,many\n", "line 2: max_tokens must be a whole number between 1 and 1048576"),
        ("a.csv", "prompt,id\n,b\n", "line 2: the prompt is empty"),
        ("a.json", '[\n"x",\n]', "a.json: line 3, column 1: "),
        ("a.json", "3", "expected an array of texts or objects, not a number"),
        ("a.json", "[" * 200_000, "line 1: cannot be read"),
        ("a.jsonl", '"x"\n{"prompt": }\n', "a.jsonl: line 2, column 12: "),
        ("a.json", '[\n  "x, [y",\n\n {\n"prompt": ""}]', "a.json: line 4, prompt 2: the prompt is empty"),
        ("a.json", '{"prompts": [\n"x",\n3]}', "a.json: line 3, prompt 2: a prompt is a text or an object"),
        ("a.json", '{"prompts": ["x"],\n"prompts": ["x", "y", 3]}', "prompt 3: a prompt is a text or an object"),
        ("a.json", "[3]", "prompt 1: a prompt is a text or an object, not a number"),
        ("a.json", "[null]", "prompt 1: a prompt is a text or an object, not null"),
        ("a.json", '["x", ""]', "prompt 2: the prompt is empty"),
        ("a.json", '[{"promt": "x"}]', "unknown key 'promt'; did you mean prompt?"),
        ("a.json", '[{"zzz": "x"}]', "unknown key 'zzz'; known are id, prompt, messages"),
        ("a.json", '[{"id": "x"}]', "give either prompt or messages"),
        ("a.json", '[{"prompt": "x", "messages": []}]', "give either prompt or messages"),
        ("a.json", '[{"messages": []}]', "messages must be a list that is not empty"),
        ("a.json", '[{"messages": ["x"]}]', "a message is an object with role and content"),
        (
            "a.json",
            '[{"messages": [{"role": "robot", "content": "x"}]}]',
            "role must be one of system, user, assistant",
        ),
        ("a.json", '[{"prompt": 3}]', "the prompt must be a text, not a number"),
        ("a.json", '[{"prompt": "x", "id": ""}]', "id must be a short printable text"),
        ("a.json", '[{"prompt": "x", "id": true}]', "id must be a short printable text"),
        ("a.json", r'[{"prompt": "x", "id": "a\u001b"}]', "id must be a short printable text"),
        ("a.json", '[{"prompt": "x", "max_tokens": 0}]', "max_tokens must be a whole number between 1 and"),
        ("a.json", '[{"prompt": "x", "max_tokens": true}]', "max_tokens must be a whole number between 1 and"),
        ("a.json", '[{"prompt": "x", "max_tokens": 9999999999}]', "max_tokens must be a whole number between 1 and"),
        ("a.json", '[{"prompt": "x", "tags": [1]}]', "tags must be a text or a list of texts"),
        ("a.json", '[{"prompt": "x", "expected": {}}]', "expected must be a text or a list of texts"),
        ("a.json", r'["\ud83d"]', "the prompt holds half a surrogate pair"),
        ("a.json", '["x", {"id": "p1", "prompt": "y"}]', "prompt 2: the id 'p1' is already that of line 1, prompt 1"),
        ("a.txt", "x" * (1 << 20) + "y", "line 1: the prompt is over 1048576 characters; shorten it"),
        ("a.txt", "x\n" * 10_001, "over 10000 prompts; split them into several sets"),
    ],
)
def test_a_file_that_makes_no_sense_says_where_and_why(tmp_path: Path, name: str, text: str, said: str) -> None:
    path = _file(tmp_path, name, text)

    with pytest.raises(PromptError) as error:
        load_prompts(path)

    assert str(path) in str(error.value)
    assert said in str(error.value)


def test_all_problems_are_told_but_not_thousands(tmp_path: Path) -> None:
    with pytest.raises(PromptError) as error:
        load_prompts(_file(tmp_path, "a.json", json.dumps([3] * 100)))

    lines = str(error.value).splitlines()
    assert len(lines) == 21
    assert lines[-1].endswith("and 80 problems more")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "latin.txt").write_bytes(b"na\xefve?")
    with pytest.raises(PromptError, match=r"absent\.txt cannot be read: No such file"):
        load_prompts(tmp_path / "absent.txt")
    with pytest.raises(PromptError, match=r"latin\.txt is not UTF-8 \(byte 2\); save it as UTF-8"):
        load_prompts(tmp_path / "latin.txt")
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(PromptError, match="cannot be read"):
        load_prompts(tmp_path / "folder.txt")

    monkeypatch.setattr(prompts, "MAXIMUM_FILE_BYTES", 1 << 20)
    with pytest.raises(PromptError, match=r"big\.txt is over 1 MiB; split it into several sets"):
        load_prompts(_file(tmp_path, "big.txt", "x" * ((1 << 20) + 1)))


def test_inline_prompts_are_texts_or_objects() -> None:
    found = inline_prompts(["One?", {"id": "two", "prompt": "Two?"}], "mine")

    assert (found.name, [prompt.prompt_id for prompt in found.prompts]) == ("mine", ["p1", "two"])
    with pytest.raises(PromptError, match="--prompt: prompt 2: the prompt is empty"):
        inline_prompts(["x", " "], where="--prompt")
    with pytest.raises(PromptError, match="cannot be a prompt set's name"):
        inline_prompts(["x"], "a\x1b")
