"""JSON schemas as masks on the logits: which tokens may come next. The only importer of llguidance.

A matcher reads its sequence's new tokens when the next mask is asked for: nothing has to tell it that they came, and a
preempted sequence goes on where it was. A step launched ahead would be too early.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from framework.core import Request, Sequence
from framework.kernels.arrays import IntArray
from framework.models.config import ModelConfig
from framework.models.tokenizer import NUM_BYTES, ByteTokenizer, load_tokenizer

ALL = -1  # 32 bits that are set
COMPACT = {"whitespace_flexible": False}  # else a model may write spaces for ever


class Grammars:
    """One matcher for each request that has a `json_schema`; its output has no whitespace outside of strings."""

    def __init__(self, config: ModelConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        token_ids = torch.arange(config.vocab_size, device=device)
        self._words, self._shifts = token_ids >> 5, (token_ids & 31).int()  # where a token's bit is
        self._tokenizer: Any = None  # takes a second for a large vocabulary
        self._matchers: dict[int, Any] = {}  # by request id
        self._num_read: dict[int, int] = {}
        self._sampling: list[Sequence] = []

    @property
    def is_needed(self) -> bool:
        return bool(self._matchers)

    def begin(self, requests: Iterable[Request]) -> None:
        """Compile the schemas of `requests`.

        Raises ValueError for a schema that is none, or uses what is not implemented; for a request that does not stop
        at the model's end-of-sequence tokens; and without the package llguidance.
        """
        compiled: dict[str, Any] = {}
        self._matchers, self._num_read = {}, {}
        for request in requests:
            if request.json_schema is None:
                continue
            eos_token_ids = set(self.config.eos_token_ids)
            if not eos_token_ids:
                raise ValueError(
                    "a json_schema needs a model with an end-of-sequence token (eos_token_id): it has none"
                )
            if not eos_token_ids <= request.stop_token_ids:
                raise ValueError(
                    f"request {request.request_id} has a json_schema, so its stop_token_ids "
                    f"{sorted(request.stop_token_ids)} must have the model's end-of-sequence tokens {eos_token_ids}"
                )
            if request.json_schema not in compiled:
                compiled[request.json_schema] = self._compile(request.json_schema)
            self._matchers[request.request_id] = compiled[request.json_schema].deep_copy()
            self._num_read[request.request_id] = 0

    def set_step(self, sampling: Iterable[Sequence]) -> None:
        """The sequences that sample in the step that comes, one per row of its logits."""
        self._sampling = list(sampling) if self._matchers else []

    def mask(self, logits: Tensor) -> Tensor:
        """Logits (rows, vocab_size) with -inf for what the step's sequences may not sample.

        The host finds that out only now, while a GPU is at the logits.
        """
        if not self._sampling:
            return logits
        bits = torch.from_numpy(np.stack([self._allowed(sequence) for sequence in self._sampling])).to(self.device)
        is_allowed = bits.index_select(1, self._words) >> self._shifts & 1
        return logits.masked_fill(is_allowed == 0, -torch.inf)

    def _allowed(self, sequence: Sequence) -> IntArray:
        """A bit per token, (ceil(vocab_size / 32),) int32."""
        num_words = -(-self.config.vocab_size // 32)
        if sequence.request.json_schema is None or sequence.is_finished:  # a finished sequence's seat may go on
            return np.full(num_words, ALL, dtype=np.int32)
        request_id = sequence.request.request_id
        matcher = self._matchers[request_id]
        new_tokens = sequence.output_token_ids[self._num_read[request_id] :]
        self._num_read[request_id] += len(new_tokens)
        if not matcher.consume_tokens(new_tokens):
            raise RuntimeError(f"request {request_id} left its json_schema: {matcher.get_error()}")
        return np.frombuffer(matcher.compute_bitmask(), dtype=np.int32, count=num_words)

    def _compile(self, json_schema: str) -> Any:
        library = _import_llguidance()
        if self._tokenizer is None:
            self._tokenizer = _make_tokenizer(library, self.config)
        try:
            grammar = library.LLMatcher.grammar_from_json_schema(json_schema, overrides=COMPACT)
        except ValueError as error:
            raise ValueError(f"json_schema cannot be read: {error}") from error
        matcher = library.LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise ValueError(f"json_schema: {matcher.get_error().splitlines()[0]}")
        return matcher


class _Vocabulary:
    """What llguidance asks of a tokenizer that it does not know: the bytes of every token; those beyond are special."""

    bos_token_id = None

    def __init__(self, config: ModelConfig) -> None:
        self.eos_token_id = config.eos_token_ids[0]
        self.tokens = [bytes([token]) if token < NUM_BYTES else b"" for token in range(config.vocab_size)]
        self.special_token_ids = sorted({*config.eos_token_ids, *range(NUM_BYTES, config.vocab_size)})

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


def _make_tokenizer(library: ModuleType, config: ModelConfig) -> Any:
    eos_token_ids = list(config.eos_token_ids)
    tokenizer = load_tokenizer(config)
    if isinstance(tokenizer, ByteTokenizer):
        return library.LLTokenizer(library.TokenizerWrapper(_Vocabulary(config)), eos_token=eos_token_ids)
    from llguidance.hf import from_tokenizer  # imports transformers

    return from_tokenizer(tokenizer, n_vocab=config.vocab_size, eos_token=eos_token_ids)


def _import_llguidance() -> ModuleType:
    try:
        import llguidance
    except ImportError as error:
        raise ValueError(
            "a json_schema needs the package llguidance: pip install 'llm-serving-replay[structured]'"
        ) from error
    module: ModuleType = llguidance
    return module
