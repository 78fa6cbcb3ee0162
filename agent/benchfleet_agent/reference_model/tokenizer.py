"""The tokenizer's files: a GPT-2 style byte-level BPE, written as the JSON that Hugging Face tokenizers and
ONNX Runtime GenAI read.

The pre-tokenizer is SmolLM2's (llama.cpp calls it ``smollm``): every digit alone, then GPT-2's split into
words. Nothing is added in front of a text: SmolLM2 wants no begin-of-text token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

CHATML_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>'"
    " + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_LETTERS_USED_TWICE = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Everything that turns text into token ids. Token ids are positions in ``tokens``."""

    tokens: Sequence[str]
    """Written with GPT-2's byte alphabet: a space is ``Ġ``."""
    special: frozenset[int]
    """Ids of tokens that mark structure and are never text."""
    merges: Sequence[str]
    """Pairs in order of priority, the two parts separated by one space."""
    begin_id: int
    end_id: int
    unknown_id: int
    padding_id: int
    chat_template: str


def byte_alphabet() -> list[str]:
    """GPT-2's printable character for each byte 0 to 255 (``bytes_to_unicode`` in openai/gpt-2, encoder.py)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    unprintable = iter(range(256, 512))
    return [chr(byte if byte in printable else next(unprintable)) for byte in range(256)]


def tiny_vocabulary() -> Vocabulary:
    """Special tokens, the 256 bytes and 52 two-letter tokens: enough to encode any text and to need merges."""
    merges = [f"Ġ {letter}" for letter in _LETTERS_USED_TWICE] + [
        f"{letter} {'eaiou'[index % 5]}" for index, letter in enumerate(_LETTERS_USED_TWICE)
    ]
    tokens = [*SPECIAL_TOKENS, *byte_alphabet(), *(merge.replace(" ", "") for merge in merges)]
    return Vocabulary(
        tokens=tokens,
        special=frozenset(range(len(SPECIAL_TOKENS))),
        merges=merges,
        begin_id=1,
        end_id=2,
        unknown_id=0,
        padding_id=2,
        chat_template=CHATML_TEMPLATE,
    )


def speakable(vocabulary: Vocabulary) -> list[int]:
    """Ids of tokens that are visible ASCII text (with or without a leading space) by themselves."""
    return [
        token_id
        for token_id, token in enumerate(vocabulary.tokens)
        if token_id not in vocabulary.special and (text := token.removeprefix("Ġ")) and text.isascii()
    ]


def tokenizer_json(vocabulary: Vocabulary) -> dict[str, Any]:
    """The content of ``tokenizer.json``."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _added_token(vocabulary.tokens[token_id], id=token_id) for token_id in sorted(vocabulary.special)
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            ],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": vocabulary.tokens[vocabulary.unknown_id],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: token_id for token_id, token in enumerate(vocabulary.tokens)},
            "merges": list(vocabulary.merges),
        },
    }


def tokenizer_config_json(vocabulary: Vocabulary, context_length: int) -> dict[str, Any]:
    """The content of ``tokenizer_config.json``; ``context_length`` in tokens."""
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(token_id): _added_token(vocabulary.tokens[token_id]) for token_id in sorted(vocabulary.special)
        },
        "bos_token": vocabulary.tokens[vocabulary.begin_id],
        "eos_token": vocabulary.tokens[vocabulary.end_id],
        "pad_token": vocabulary.tokens[vocabulary.padding_id],
        "unk_token": vocabulary.tokens[vocabulary.unknown_id],
        "chat_template": vocabulary.chat_template,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context_length,
        # The class name tells ONNX Runtime GenAI's tokenizer which pre-tokenizer rules to follow.
        "tokenizer_class": "GPT2Tokenizer",
    }


def _added_token(content: str, **extra: int) -> dict[str, Any]:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {**extra, "content": content, **flags}
