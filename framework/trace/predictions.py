"""How long a predictor says each output will be: laws (rng, lengths) → predicted lengths, whose error is set.

A study of orders sets the error; a trace of your own may have the predictions of a real predictor as a column.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy.special import ndtri

from framework.checks import whole
from framework.core import Trace
from framework.trace.lengths import Lengths

Predictor = Callable[[np.random.Generator, Lengths], Lengths]


def predict(trace: Trace, predictor: Predictor | None, rng: np.random.Generator) -> Trace:
    """Every request with the `num_predicted_tokens` that the predictor gives it; None: as they are."""
    if predictor is None:
        return trace
    lengths = np.array([request.num_output_tokens for request in trace.requests])
    predicted = zip(trace.requests, predictor(rng, lengths).tolist(), strict=True)
    return replace(trace, requests=[replace(request, num_predicted_tokens=length) for request, length in predicted])


def kendall(rng: np.random.Generator, lengths: Lengths, *, tau: float) -> Lengths:
    """The trace's own lengths in another order, whose rank correlation with the true one (Kendall's τ) is `tau`.

    Ranks are made normal, mixed with noise to a correlation of sin(π·tau / 2), and ranked again: of a Gaussian copula
    that is the correlation whose τ is `tau` (Kruskal, 1958). Equal lengths are ranked at random. A finite trace's own τ
    is about `tau`; Learning to rank (NeurIPS 2024) reports one of 0.54 for its predictor.
    """
    if not -1 <= tau <= 1:
        raise ValueError(f"predictions.tau={tau} is not from -1 to 1")
    num_requests = len(lengths)
    true_order = np.lexsort((rng.random(num_requests), lengths))
    ranked = np.empty(num_requests)
    ranked[true_order] = ndtri((np.arange(num_requests) + 0.5) / num_requests)
    correlation = math.sin(math.pi * tau / 2)
    noisy = correlation * ranked + math.sqrt(1 - correlation**2) * rng.standard_normal(num_requests)
    predicted = np.empty(num_requests, dtype=np.int64)
    predicted[np.argsort(noisy, kind="stable")] = np.sort(lengths)
    return predicted


def classes(rng: np.random.Generator, lengths: Lengths, *, num_classes: int) -> Lengths:
    """The upper end of the class of each length, of so many of equal width up to the longest: nothing else is wrong.

    Within a class all are predicted equal, so that an order by it is that of arrival: what a classifier of ten classes
    can do at best (Learning to rank, NeurIPS 2024).
    """
    width = int(lengths.max()) / whole("predictions.num_classes", num_classes)
    ends = np.ceil(np.arange(1, num_classes + 1) * width).astype(np.int64)
    return ends[np.searchsorted(ends, lengths)]
