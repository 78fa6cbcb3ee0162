"""The configuration files that make a directory an ONNX Runtime GenAI model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from benchfleet_agent.reference_model.graph import GRAPH_NAME
from benchfleet_agent.reference_model.tokenizer import Vocabulary, tokenizer_config_json, tokenizer_json
from benchfleet_agent.reference_model.weights import Architecture, Weights


def genai_config(sizes: Architecture, vocabulary: Vocabulary) -> dict[str, Any]:
    """The content of ``genai_config.json``: names of the graph's inputs, sizes, and greedy search by default."""
    return {
        "model": {
            "type": "llama",
            "bos_token_id": vocabulary.begin_id,
            "eos_token_id": vocabulary.end_id,
            "pad_token_id": vocabulary.padding_id,
            "context_length": sizes.context_length,
            "vocab_size": sizes.vocabulary_size,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": GRAPH_NAME,
                "head_size": sizes.head_size,
                "hidden_size": sizes.hidden_size,
                "num_attention_heads": sizes.heads,
                "num_hidden_layers": sizes.layers,
                "num_key_value_heads": sizes.kv_heads,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "do_sample": False,
            "max_length": sizes.context_length,
            "min_length": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            "past_present_share_buffer": True,
            "repetition_penalty": 1.0,
            "temperature": 1.0,
            "top_k": 50,
            "top_p": 1.0,
        },
    }


def write(weights: Weights, model_dir: Path) -> None:
    """Write the configuration and the tokenizer into ``model_dir``, flushed to the disk."""
    sizes, vocabulary = weights.architecture, weights.vocabulary
    write_text(model_dir / "genai_config.json", json.dumps(genai_config(sizes, vocabulary), indent=2) + "\n")
    write_text(model_dir / "tokenizer.json", json.dumps(tokenizer_json(vocabulary), ensure_ascii=False) + "\n")
    tokenizer_config = tokenizer_config_json(vocabulary, sizes.context_length)
    write_text(model_dir / "tokenizer_config.json", json.dumps(tokenizer_config, indent=2) + "\n")
    write_text(model_dir / "chat_template.jinja", vocabulary.chat_template)


def write_text(path: Path, text: str) -> None:
    """Write a text file with the same bytes on every OS, flushed to the disk."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
