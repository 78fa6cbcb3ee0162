"""A tokenizer made here, for clients that cannot count without one: nothing is fetched.

Byte-level BPE of the docs, in which the scripted server's " tok" is one token: a client that counts the text with it
gets the server's own number.
"""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOKEN = " tok"
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<|im_start|>",
    "eos_token": "<|im_end|>",
    "pad_token": "<|im_end|>",
    "model_max_length": 131072,
    "clean_up_tokenization_spaces": False,
    "chat_template": _TEMPLATE,
}


def write_tokenizer(folder: Path) -> Path:
    """The folder with ``tokenizer.json`` and ``tokenizer_config.json``; what is there already is kept."""
    path = folder / "tokenizer.json"
    if path.exists():
        return folder
    import tokenizers

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=8000,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    texts = [file.read_text(encoding="utf-8") for file in sorted((ROOT / "docs").rglob("*.md"))]
    tokenizer.train_from_iterator([TOKEN * 10_000, *texts], trainer)
    (folder / "tokenizer_config.json").write_text(json.dumps(_CONFIG), encoding="utf-8")
    tokenizer.save(str(path))
    return folder
