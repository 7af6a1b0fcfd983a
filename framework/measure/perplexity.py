"""How well a model predicts a text: the negative log-likelihood of its tokens, by the models' own forward.

Values are per window, so that an interval can be drawn from them and two models be compared window by window.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from framework.engine.torch_engine.kv_cache import allocate_cache, attach_cache
from framework.kernels.attention import plain_attention
from framework.models.gpt2 import GPT2
from framework.models.llama import Llama

NUM_RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class WindowLosses:
    """Sums of negative log-likelihood (nats) and how many tokens they are of, (num_windows,) each."""

    nll: np.ndarray
    num_tokens: np.ndarray

    @property
    def mean(self) -> float:
        """Nats per token."""
        return float(self.nll.sum() / self.num_tokens.sum())

    @property
    def perplexity(self) -> float:
        return math.exp(self.mean)

    def interval(self) -> tuple[float, float]:
        """95% interval of `mean`."""
        return interval_per_token(self.nll, self.num_tokens)


def interval_per_token(sums: np.ndarray, num_tokens: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95% percentile-bootstrap interval of sum / tokens, drawing windows (Efron 1979); (num_windows,) each."""
    rng = np.random.default_rng(seed)
    draws = rng.integers(len(sums), size=(NUM_RESAMPLES, len(sums)))
    means = sums[draws].sum(axis=1) / num_tokens[draws].sum(axis=1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def window_logits(model: Llama | GPT2, token_ids: Tensor, kv_dtype: torch.dtype | None = None) -> Tensor:
    """Logits after every token of equally long windows that know nothing of each other.

    (num_windows, window_len) → (num_windows, window_len, vocab_size). With `kv_dtype` they attend to what a KV cache of
    that dtype keeps, which replaces the model's; without one, differentiable where the parameters are.
    """
    num_windows, window_len = token_ids.shape
    config, lens = model.config, np.full(num_windows, window_len)
    positions = torch.arange(window_len, device=token_ids.device).repeat(num_windows)
    blocks = None  # a window is a block
    if kv_dtype is not None:
        blocks = np.arange(num_windows)[:, None]
        attach_cache(model, allocate_cache(model, token_ids.numel(), kv_dtype))
    attention = plain_attention(
        *(lens, lens, np.zeros_like(lens), blocks),
        block_size=window_len,
        num_queries_per_kv=config.num_heads // config.num_kv_heads,
        windows=config.layer_windows,
        dtype=model.norm.weight.dtype,
        device=token_ids.device,
    )
    hidden = model(token_ids.flatten(), positions, attention)
    return model.logits(hidden).unflatten(0, token_ids.shape)


def make_windows(num_tokens: int, window_len: int, stride: int) -> list[tuple[int, int, int]]:
    """(start, end, first scored) of every window: the tokens [start, end) are read, those from `first` on scored.

    A window reads `window_len` tokens and the next, which is only scored; starts are `stride` apart. The first window
    scores all that it can, each later one the `stride` tokens that those before did not reach, so that every token but
    the text's first is scored once, after at least window_len - stride + 1 tokens of context where the text has them.
    The last window moves back to the text's end, to be as long as the others. Raises ValueError for a text of fewer
    than two tokens or a stride outside [1, window_len].
    """
    if not 1 <= stride <= window_len:
        raise ValueError(f"stride {stride} must be from 1 to the window of {window_len} tokens")
    if num_tokens < 2:
        raise ValueError(f"a text of {num_tokens} tokens has none to predict")
    window_len = min(window_len, num_tokens - 1)
    windows: list[tuple[int, int, int]] = []
    scored = 1
    while scored < num_tokens:
        end = min(window_len + 1 if not windows else scored + stride, num_tokens)
        windows.append((end - window_len - 1, end, scored))
        scored = end
    return windows


def scored_logits(
    model: Llama | GPT2,
    token_ids: Tensor,
    *,
    window_len: int,
    stride: int,
    batch_size: int,
    kv_dtype: torch.dtype | None = None,
) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Per batch of windows, each window's logits (num_scored, vocab_size) and the tokens (num_scored,) they predict.

    `token_ids` is the text, (num_tokens,), on the model's device. Windows are those of make_windows; `kv_dtype` is as
    for window_logits.
    """
    if window_len > model.config.max_model_len:
        raise ValueError(f"a window of {window_len} tokens is longer than the model's {model.config.max_model_len}")
    windows = make_windows(len(token_ids), window_len, stride)
    for first in range(0, len(windows), batch_size):
        batch = windows[first : first + batch_size]
        inputs = torch.stack([token_ids[start : end - 1] for start, end, _ in batch])
        logits = window_logits(model, inputs, kv_dtype)
        yield [
            (rows[scored - 1 - start :], token_ids[scored:end])
            for rows, (start, end, scored) in zip(logits, batch, strict=True)
        ]


@torch.inference_mode()
def window_losses(
    model: Llama | GPT2, token_ids: Tensor, *, window_len: int, stride: int, batch_size: int
) -> WindowLosses:
    """The losses of a text (num_tokens,) under a model, log-softmax in float32, summed in float64.

    `batch_size` windows are computed at once; it changes the result by rounding only. See make_windows for which
    tokens count and what they are conditioned on.
    """
    nll, num_tokens = [], []
    for batch in scored_logits(model, token_ids, window_len=window_len, stride=stride, batch_size=batch_size):
        for logits, targets in batch:
            nll.append(F.cross_entropy(logits.float(), targets, reduction="none").double().sum())
            num_tokens.append(len(targets))
    return WindowLosses(torch.stack(nll).cpu().numpy(), np.array(num_tokens))
