"""Choosing the next tokens from logits, on the device and without waiting for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from framework.core import Sequence
from framework.engine.torch_engine.grammar import Grammars
from framework.kernels.decode_step import tokens_or_none


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen (see `sample`), drawn from `seed`; ValueError where a setting is out of range."""

    temperature: float
    top_k: int
    top_p: float
    seed: int

    def __post_init__(self) -> None:
        check_sampling(self.temperature, self.top_k, self.top_p)
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed {self.seed} must be at least 0 and below 2**63")


class Sampler:
    """Chooses a step's tokens: what its grammars allow, then as `sampling` says, with the `generator` of its server."""

    def __init__(self, sampling: Sampling, grammars: Grammars, generator: torch.Generator) -> None:
        self.sampling, self.grammars, self.generator = sampling, grammars, generator

    @property
    def is_greedy(self) -> bool:
        """Whether the largest logit is taken whatever the host knows, so that a graph may take it."""
        return self.sampling.temperature == 0.0 and not self.grammars.is_needed

    def set_step(self, sequences: Iterable[Sequence]) -> None:
        """The sequences that sample in the step that comes, one per row of its logits."""
        self.grammars.set_step(sequences)

    def choose(self, logits: Tensor) -> Tensor:
        """(rows, vocab_size) → (rows,), int64; NO_TOKEN where a row of logits is not finite."""
        chosen = self.sampling
        masked = self.grammars.mask(logits)
        tokens = sample(masked, chosen.temperature, chosen.top_k, chosen.top_p, self.generator)
        return tokens_or_none(logits, tokens)


def check_sampling(temperature: float, top_k: int, top_p: float) -> None:
    """ValueError where a setting is out of range."""
    if not temperature >= 0.0:
        raise ValueError(f"temperature {temperature} must be at least 0 (0: greedy)")
    if top_k < 0:
        raise ValueError(f"top_k {top_k} must be at least 0 (0: all tokens)")
    if not 0.0 < top_p <= 1.0:
        raise ValueError(f"top_p {top_p} must be above 0 and at most 1 (1: all tokens)")


def sample(logits: Tensor, temperature: float, top_k: int, top_p: float, generator: torch.Generator | None) -> Tensor:
    """One token id per row of logits (rows, vocab_size) → (rows,), int64.

    Temperature 0 takes the largest logit. Otherwise softmax(logits / temperature) is cut to its `top_k` most likely
    tokens (0: all; ties with the last stay) and then to the fewest that hold `top_p` of what is left (nucleus,
    arXiv:1904.09751), and a token is drawn in proportion.
    """
    check_sampling(temperature, top_k, top_p)
    if temperature == 0.0:
        return logits.argmax(dim=-1)
    scores = logits.float()
    scores = (scores - scores.amax(dim=-1, keepdim=True)) / temperature  # so that a low temperature stays finite
    if 0 < top_k < scores.shape[-1]:
        least = scores.topk(top_k, dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    probabilities = scores.softmax(dim=-1)
    if top_p < 1.0:
        probabilities = _nucleus(probabilities, top_p)
    # The smallest of exponential times with these rates is a draw in proportion to them (the Gumbel-max trick)
    times = torch.empty_like(probabilities).exponential_(generator=generator)
    return (probabilities / times).argmax(dim=-1)


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Zero out all but the most likely tokens that together reach top_p."""
    ordered, order = probabilities.sort(dim=-1, descending=True)
    before = ordered.cumsum(dim=-1) - ordered  # what the more likely tokens hold together
    return torch.zeros_like(probabilities).scatter_(-1, order, ordered.masked_fill(before >= top_p, 0.0))
