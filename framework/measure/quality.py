"""What a quantization does to a model: errors of its weights and logits, and its predictions beside a reference's.

Both models read the same text side by side, so that logits of any vocabulary are compared without being kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from framework.measure.perplexity import WindowLosses, interval_per_token, scored_logits
from framework.models.gpt2 import GPT2
from framework.models.layers import SurroundedLinear
from framework.models.llama import Llama
from framework.models.tokenizer import load_tokenizer

PROBE = 256.0  # large beside biases, which are subtracted again; a power of two, so that it rounds nothing
PROBE_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Comparison:
    """A model's predictions of a text beside a reference's: sums over the scored tokens of each window.

    (num_windows,) each: negative log-likelihoods (nats), KL(reference ‖ model) (nats), tokens at which both find the
    same one the most likely, and squares of the logits' difference and of the reference's logits.
    """

    nll: np.ndarray
    reference_nll: np.ndarray
    kl: np.ndarray
    num_agreeing: np.ndarray
    squared_error: np.ndarray
    squared_norm: np.ndarray
    num_tokens: np.ndarray

    def summary(self) -> dict[str, float]:
        """Per token, with `…_low` and `…_high` of 95% intervals over windows; `logit_error` is relative.

        `perplexity_change` is by which share the model's is above the reference's. Its interval is of the difference in
        each window, and so narrower than those of the two.
        """
        change = self._per_token("perplexity_change", self.nll - self.reference_nll)
        return {
            "num_scored_tokens": int(self.num_tokens.sum()),
            "reference_perplexity": WindowLosses(self.reference_nll, self.num_tokens).perplexity,
            **{name: math.exp(nats) for name, nats in self._per_token("perplexity", self.nll).items()},
            **{name: math.expm1(nats) for name, nats in change.items()},
            **self._per_token("top1_agreement", self.num_agreeing),
            **self._per_token("kl", self.kl),
            "logit_error": math.sqrt(self.squared_error.sum() / self.squared_norm.sum()),
        }

    def _per_token(self, name: str, sums: np.ndarray) -> dict[str, float]:
        low, high = interval_per_token(sums, self.num_tokens)
        return {name: float(sums.sum() / self.num_tokens.sum()), f"{name}_low": low, f"{name}_high": high}


@torch.inference_mode()
def compare_models(
    model: Llama | GPT2,
    reference: Llama | GPT2,
    token_ids: Tensor,
    *,
    window_len: int,
    stride: int,
    batch_size: int,
    kv_dtype: torch.dtype | None = None,
) -> Comparison:
    """Both models' predictions of a text (num_tokens,), as framework.measure.perplexity.scored_logits has them.

    `kv_dtype` is of the model's KV cache; the reference, and the model with None, attend to keys and values themselves.
    """
    read = partial(scored_logits, token_ids=token_ids, window_len=window_len, stride=stride, batch_size=batch_size)
    batches = zip(read(model, kv_dtype=kv_dtype), read(reference), strict=True)
    sums = [
        compare_logits(logits, expected, targets)
        for ours, theirs in batches
        for (logits, targets), (expected, _) in zip(ours, theirs, strict=True)
    ]
    return Comparison(*torch.stack(sums, dim=1).cpu().numpy())


def compare_logits(logits: Tensor, expected: Tensor, targets: Tensor) -> Tensor:
    """The fields of Comparison for one window, (7,) in float64: logits (rows, vocab_size) twice, targets (rows,).

    Computed in float32. A row's logits are centred before their error is taken: a constant changes no prediction.
    """
    logits, expected = logits.float(), expected.float()
    found, wanted = logits.log_softmax(-1), expected.log_softmax(-1)
    centred = expected - expected.mean(-1, keepdim=True)
    error = logits - logits.mean(-1, keepdim=True) - centred
    sums = [
        -found.gather(1, targets[:, None]),
        -wanted.gather(1, targets[:, None]),
        wanted.exp() * (wanted - found),
        logits.argmax(-1) == expected.argmax(-1),
        error.square(),
        centred.square(),
        torch.ones_like(targets),
    ]
    return torch.stack([one.sum(dtype=torch.float64) for one in sums])


@torch.inference_mode()
def weight_errors(model: Llama | GPT2, reference: Llama | GPT2) -> pd.DataFrame:
    """One row per matrix: `module`, `squared_error` and `squared_norm` (Frobenius), and `relative_error`.

    The error is of the weight as the model applies it, whatever it keeps: of what comes out of each layer, in the
    model's dtype, for tokens that are zero but for one feature.
    """
    rows = []
    for name, module in reference.named_modules():
        if isinstance(module, SurroundedLinear | nn.Embedding):
            weight = module.weight if isinstance(module, nn.Embedding) else module.weight.T
            rows.append((name, *squares(model.get_submodule(name), weight, model.norm.weight.dtype)))
    table = pd.DataFrame(rows, columns=["module", "squared_error", "squared_norm"])
    return table.assign(relative_error=(table["squared_error"] / table["squared_norm"]) ** 0.5)


def block_error(errors: pd.DataFrame) -> float:
    """The relative error of the blocks' linear layers together."""
    blocks = errors[errors["module"].str.startswith("layers.")]
    return float((blocks["squared_error"].sum() / blocks["squared_norm"].sum()) ** 0.5)


def squares(module: nn.Module, weight: Tensor, dtype: torch.dtype) -> tuple[float, float]:
    """Of the error of `module` and of `weight` (in_features or num_embeddings, columns), part by part in float64."""
    sums = torch.zeros(2, dtype=torch.float64, device=weight.device)
    for start in range(0, len(weight), PROBE_ROWS):
        expected = weight[start : start + PROBE_ROWS]
        rows = torch.arange(start, start + len(expected), device=weight.device)
        if isinstance(module, nn.Embedding):
            applied = module(rows).float()
        else:
            probe = torch.zeros(len(rows) + 1, len(weight), dtype=dtype, device=weight.device)
            probe[:-1].scatter_(1, rows[:, None], PROBE)
            outputs = module(probe).float()
            applied = (outputs[:-1] - outputs[-1]) / PROBE  # less the bias
        sums += torch.stack([one.square().sum(dtype=torch.float64) for one in (applied - expected, expected)])
    error, norm = sums.tolist()
    return error, norm


def read_tokens(path: Path, model: Llama | GPT2, num_tokens: int | None) -> Tensor:
    """The first `num_tokens` (None: all) of a text under the model's tokenizer, (num_tokens,), on its device.

    Raises ValueError for a file that is no UTF-8 text.
    """
    try:
        text = path.read_bytes().decode()  # line ends as they are
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: {error}") from error
    token_ids = load_tokenizer(model.config).encode(text)[:num_tokens]
    return torch.tensor(token_ids, device=model.norm.weight.device)
