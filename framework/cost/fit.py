"""Fits what steps cost: least squares of relative errors with no negative cost, robust against single slow steps.

A row of the log counts by its error over its predicted time, and no more than in proportion where that is beyond what
is usual (Huber, 1964). So the terms are those of a typical step; how much longer others take is in the ratios.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.optimize import nnls

from framework.cost.features import HOST_TERMS, KINDS, TERMS, Features, features_in
from framework.cost.model import KindCost

Floats = npt.NDArray[np.float64]

BIN = 1.5  # rows that no graph holds share an entry of the table within this factor
MAX_STEPS = 50_000  # of a kind that are fitted; of more, evenly spread ones
NUM_ROUNDS = 12
HUBER = 1.345  # in standard deviations: 95% efficient for normal errors
LEAST_SPREAD = 1e-4  # of relative errors, below which none counts as unusual
NUM_RATIOS = 201
PULL = 1e-3  # towards 0, of a column's norm: it moves a rate that the log tells by a millionth
RANGED = (
    "num_rows",
    "num_seqs",
    "num_context_tokens",
    "num_pairs",
    "num_adapters",
    "num_adapter_loads",
    "num_copied_blocks",
)


def fit_kinds(log: pd.DataFrame, sizes: dict[str, list[int]]) -> dict[str, KindCost]:
    """What steps of each kind in a step log cost.

    `log` has the columns of `step_log`, and `is_replayed`, which is 0 for steps timed apart: their ratios are not a
    server's. `device` may be NaN or 0: then all seconds count as the device's. `elapsed` may be NaN where only the
    device was timed. `sizes` are the rows that graphs hold, of each kind. ValueError for a log without steps.
    """
    if log.empty:
        raise ValueError("a cost model needs steps to be fitted on, and there are none")
    features = features_in(log)
    found = {}
    for kind in KINDS:
        chosen = np.flatnonzero(features["kind"] == kind)
        if len(chosen):
            chosen = chosen[:: math.ceil(len(chosen) / MAX_STEPS)]
            found[kind] = fit_kind(kind, log.iloc[chosen], features.iloc[chosen], sizes.get(kind, []))
    return found


def fit_kind(kind: str, log: pd.DataFrame, features: pd.DataFrame, sizes: list[int]) -> KindCost:
    rows = np.array([padded(int(num), sizes) for num in features["num_rows"]])
    features = features.assign(num_rows=rows)
    elapsed, device = (log[name].to_numpy(float) for name in ("elapsed", "device"))
    device = np.where(device > 0, device, elapsed)
    knots = choose_knots(rows, sizes)
    terms = features[list(TERMS[kind])].to_numpy(float)
    solved = solve(np.hstack((hats(rows, knots), terms)), device, np.zeros(len(log)), len(knots))
    is_whole = ~np.isnan(elapsed)
    inputs = np.hstack((np.ones((len(log), 1)), features[list(HOST_TERMS)].to_numpy(float)))
    host = solve(inputs[is_whole], np.maximum(elapsed - device, 0)[is_whole], device[is_whole], 1)
    cost = KindCost(
        rows=[(int(knot), float(seconds)) for knot, seconds in zip(knots, solved, strict=False)],
        device=dict(zip(TERMS[kind], map(float, solved[len(knots) :]), strict=True)),
        host=dict(zip(("constant", *HOST_TERMS), map(float, host), strict=True)),
        ranges={name: (float(features[name].min()), float(features[name].max())) for name in RANGED},
        ratios=[1.0, 1.0],
        num_steps=len(log),
    )
    is_served = is_whole & (log["is_replayed"].to_numpy(float) > 0)
    is_typical = is_served if is_served.any() else is_whole
    return with_ratios(cost, features[is_typical], elapsed[is_typical])


def with_ratios(cost: KindCost, features: pd.DataFrame, elapsed: Floats) -> KindCost:
    """The same with the ratios of these steps: measured seconds / those of its terms."""
    if not len(elapsed):
        return cost
    ratios = np.quantile(elapsed / predict(cost, features), np.linspace(0, 1, NUM_RATIOS))
    return replace(cost, ratios=[float(ratio) for ratio in ratios])


def predict(cost: KindCost, features: pd.DataFrame) -> Floats:
    """Seconds of a typical step, of every row; the rows are those that the device computes."""
    names = list(Features._fields)
    return np.array([sum(cost.seconds(Features(*row))) for row in features[names].itertuples(index=False)])


def padded(num_rows: int, sizes: list[int]) -> int:
    """The rows of the next graph; of more than any graph holds, as many as they are."""
    index = bisect_left(sizes, num_rows)
    return sizes[index] if index < len(sizes) else num_rows


def choose_knots(rows: npt.NDArray[np.int64], sizes: list[int]) -> list[int]:
    """Where the table of rows has its entries: at graphs' sizes, at both ends, and one in each bin between."""
    knots = {int(rows.min()), int(rows.max())} | (set(rows.tolist()) & set(sizes))
    others = np.array([num for num in rows if num not in knots], dtype=float)
    bins = np.floor(np.log(np.maximum(others, 1)) / math.log(BIN))
    knots |= {int(np.median(others[bins == one])) for one in np.unique(bins)}
    return sorted(knots)


def hats(rows: npt.NDArray[np.int64], knots: list[int]) -> Floats:
    """(steps, knots): how much of each entry a step has, by linear interpolation."""
    identity = np.eye(len(knots))
    return np.stack([np.interp(rows, knots, column) for column in identity], axis=1)


def solve(inputs: Floats, seconds: Floats, beside: Floats, num_free: int) -> Floats:
    """Costs of at least 0 per unit of each column, for small and usual errors relative to all of a step's seconds.

    `beside` are those of the step that these columns do not explain. Columns that the log cannot tell apart go to the
    first `num_free`: a rate that only it could tell is 0.
    """
    if not len(seconds):
        return np.zeros(inputs.shape[1])
    scale = np.maximum(np.abs(inputs).max(axis=0), 1e-300)
    whole, weights = seconds + beside, np.ones(len(seconds))
    for _ in range(NUM_ROUNDS):
        weighted = inputs / scale * (weights / whole)[:, None]
        pull = np.diag(PULL * np.linalg.norm(weighted, axis=0))[num_free:]
        scaled, _ = nnls(np.vstack((weighted, pull)), np.append(seconds * weights / whole, np.zeros(len(pull))))
        solved: Floats = scaled / scale
        predicted = inputs @ solved
        whole = np.maximum(predicted + beside, 1e-3 * (seconds + beside))
        weights = huber((seconds - predicted) / whole)
    return solved


def huber(errors: Floats) -> Floats:
    """Square roots of the weights: 1 for usual errors, less for larger ones."""
    spread = max(1.4826 * float(np.median(np.abs(errors - np.median(errors)))), LEAST_SPREAD)
    return np.sqrt(np.minimum(1.0, HUBER * spread / np.maximum(np.abs(errors), 1e-300)))
