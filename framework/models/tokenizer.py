"""Text to token ids and back: the checkpoint's own tokenizer, or plain UTF-8 bytes where there is none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Protocol

from framework.models.checkpoint import find_checkpoint, read_model_config
from framework.models.config import ModelConfig

NUM_BYTES = 256
VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


class Tokenizer(Protocol):
    """The two methods of a Hugging Face tokenizer that text traces need."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, token_ids: list[int]) -> str: ...


class ByteTokenizer:
    """Token ids are the bytes of the text; ids above 255, which random weights may produce, decode to U+FFFD."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, token_ids: list[int]) -> str:
        # 0xFF never occurs in UTF-8, so that it is replaced
        return bytes(min(token_id, NUM_BYTES - 1) for token_id in token_ids).decode(errors="replace")


def tokenizer_of(path: str | None) -> Tokenizer:
    """That of the model at `path`, a folder or a hub repository; None: plain bytes, which any vocabulary has."""
    if path is None:
        return ByteTokenizer()
    folder = find_checkpoint(path, weights=False)
    return load_tokenizer(replace(read_model_config(folder, None), checkpoint=str(folder)))


def load_tokenizer(config: ModelConfig) -> Tokenizer:
    """The tokenizer of a model: bytes for random weights and 256-token vocabularies, else from its checkpoint."""
    if config.checkpoint is None or config.vocab_size == NUM_BYTES:
        if config.vocab_size < NUM_BYTES:
            raise ValueError(
                f"text needs a vocabulary of {NUM_BYTES} tokens or more; this model has {config.vocab_size}"
            )
        return ByteTokenizer()
    return read_tokenizer(Path(config.checkpoint))


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in a checkpoint's folder, none of whose code is run; ValueError where it is missing or broken."""
    advice = "copy tokenizer.json (or tokenizer.model) and tokenizer_config.json there, or use a trace without text"
    if not any((folder / name).is_file() for name in VOCABULARY_FILES):  # transformers would make one without words
        raise ValueError(f"{folder} has no tokenizer ({', '.join(VOCABULARY_FILES)}); {advice}")
    from transformers import AutoTokenizer  # takes seconds to import, and most studies have no text

    try:
        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the library's readers raise whatever they meet
        first_line = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{folder} has no tokenizer that transformers reads ({type(error).__name__}: {first_line}); {advice}"
        ) from error
    return tokenizer
