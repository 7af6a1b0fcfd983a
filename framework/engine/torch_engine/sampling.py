"""Choosing the next tokens from logits, on the device and without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor


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
