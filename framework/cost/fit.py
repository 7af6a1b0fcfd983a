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

from framework.cost.features import BESIDE_TERMS, HOST_TERMS, KINDS, TERMS, Features, features_in
from framework.cost.model import KindCost, Table, Terms, mean_of_quantiles

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

BIN = 1.5  # rows that no graph holds share an entry of the table within this factor
FAR = 4  # the factor from an entry to the next in the table of rates per context token
MAX_STEPS = 50_000  # of a kind that are fitted; of more, evenly spread ones
NUM_ROUNDS = 12
HUBER = 1.345  # in standard deviations: 95% efficient for normal errors
LEAST_SPREAD = 1e-4  # of relative errors, below which none counts as unusual
NUM_RATIOS = 201
PULL = 1e-3  # towards 0, of a column's norm: it moves a rate that the log tells by a millionth
UNPLANNED_PULL = 0.1  # likewise, of a log that hardly tells rows and pairs of whole prompts apart
RANGED = (
    "num_rows",
    "num_seqs",
    "num_context_tokens",
    "max_context_tokens",
    "num_pairs",
    "num_keys",
    "num_adapters",
    "num_adapter_loads",
    "num_copied_blocks",
)


def fit_kinds(log: pd.DataFrame, sizes: dict[str, list[int]], *, is_planned: bool = True) -> dict[str, KindCost]:
    """What steps of each kind in a step log cost.

    `log` has the columns of `step_log`, and `is_replayed`, which is 0 for steps timed apart: their ratios are not a
    server's. `device` may be NaN or 0: then all seconds count as the device's. `elapsed` may be NaN where only the
    device was timed, `host` where the host's work is not known. `sizes` are the rows that graphs hold, of each kind.
    Where the steps are not those of a grid, which tells terms apart (`is_planned`), a context token costs the same in
    all steps of a kind, and what the log hardly tells apart is the rows'. ValueError for a log without steps.
    """
    if log.empty:
        raise ValueError("a cost model needs steps to be fitted on, and there are none")
    features = features_in(log).reset_index(drop=True)
    found, of_kinds = {}, {kind: np.flatnonzero(features["kind"] == kind) for kind in KINDS}
    hosts = {
        kind: fit_host(log.iloc[chosen], features.iloc[chosen]) for kind, chosen in of_kinds.items() if len(chosen)
    }
    log = log.assign(launching=launching(hosts, features) * log["is_replayed"].to_numpy(float))
    for kind, chosen in of_kinds.items():
        if len(chosen):
            chosen = chosen[:: math.ceil(len(chosen) / MAX_STEPS)]
            given = log.iloc[chosen], features.iloc[chosen], sizes.get(kind, [])
            found[kind] = fit_kind(kind, *given, is_planned=is_planned)
    return found


def fit_host(log: pd.DataFrame, features: pd.DataFrame) -> Terms:
    host = log["host"].to_numpy(float)
    return fit_linear(HOST_TERMS, features, host, ~np.isnan(host), np.zeros(len(log)))


def launching(hosts: dict[str, Terms], features: pd.DataFrame) -> Floats:
    """Of each step in turn the host's work until the next one is launched; 0 where that is launched afterwards."""
    own = np.zeros(len(features))
    for kind, terms in hosts.items():
        of_kind = (features["kind"] == kind).to_numpy()
        own[of_kind] = terms["constant"] + sum(features.loc[of_kind, name] * terms[name] for name in HOST_TERMS)
    is_first = features["is_first"].to_numpy() > 0
    return np.append(np.where(is_first, 0.0, own)[1:], 0.0)


def fit_kind(
    kind: str, log: pd.DataFrame, features: pd.DataFrame, sizes: list[int], *, is_planned: bool = True
) -> KindCost:
    rows = [padded(int(num), sizes) for num in features["num_rows"]]
    features = features.assign(num_rows=rows)
    cost = fit_terms(kind, log, features, sizes, is_planned)
    is_whole = log["elapsed"].notna()
    is_served = is_whole & (log["is_replayed"] > 0)
    is_typical = (is_served if is_served.any() else is_whole).to_numpy()
    typical = predict(cost, features[is_typical], log.loc[is_typical, "launching"].to_numpy(float))
    apart = predict_apart(kind, log, features, sizes, is_planned)[is_typical] if "replay" in log else typical
    return with_ratios(cost, log.loc[is_typical, "elapsed"].to_numpy(float), typical, apart)


def fit_terms(kind: str, log: pd.DataFrame, features: pd.DataFrame, sizes: list[int], is_planned: bool) -> KindCost:
    """All but the ratios; the rows of `features` are those that the device computes."""
    elapsed, device, awaited = (log[name].to_numpy(float) for name in ("elapsed", "device", "launching"))
    is_served = log["is_replayed"].to_numpy(float) > 0
    device = as_served(kind, features, np.where(device > 0, device, elapsed), is_served, sizes)
    knots, far_knots, inputs = design(kind, features, sizes, is_planned)
    solved = solve(inputs, device, awaited, len(knots), PULL if is_planned else UNPLANNED_PULL)
    of_rows, of_context, of_terms = np.split(solved, np.cumsum([len(knots), len(far_knots)]))
    host, is_first = fit_host(log, features), features["is_first"].to_numpy() > 0
    own = host["constant"] + sum(features[name].to_numpy(float) * host[name] for name in HOST_TERMS)
    beside = elapsed - np.maximum(device + own * is_first, awaited)
    return KindCost(
        rows=as_table(knots, of_rows),
        context=as_table(far_knots, of_context),
        device=dict(zip(TERMS[kind], map(float, of_terms), strict=True)),
        beside=fit_linear(BESIDE_TERMS, features, beside, ~np.isnan(elapsed), device),
        host=host,
        ranges={name: (float(features[name].min()), float(features[name].max())) for name in RANGED},
        ratios=[1.0, 1.0],
        num_steps=len(log),
    )


def design(
    kind: str, features: pd.DataFrame, sizes: list[int], is_planned: bool = True
) -> tuple[list[int], list[int], Floats]:
    """The entries of both tables, and (steps, columns) of what their seconds on the device are linear in."""
    rows = features["num_rows"].to_numpy(int)
    knots, far_knots = choose_knots(rows, sizes), choose_far_knots(rows) if is_planned else [int(rows.min())]
    context = features[["num_context_tokens"]].to_numpy(float)
    terms = features[list(TERMS[kind])].to_numpy(float)
    return knots, far_knots, np.hstack((hats(rows, knots), hats(rows, far_knots) * context, terms))


def as_served(kind: str, features: pd.DataFrame, device: Floats, is_served: Bools, sizes: list[int]) -> Floats:
    """Seconds of steps that were timed apart as a server would take for them; others as they are.

    A server's device may be slower, as under a power limit that a few steps do not meet. Where steps timed apart are
    within the range of served ones, these say by which factor, in each octave of the rows; others have the next
    octave's.
    """
    if is_served.all() or not is_served.any():
        return device
    served = features[is_served]
    knots, far_knots, inputs = design(kind, served, sizes)
    solved = solve(inputs, device[is_served], np.zeros(len(served)), len(knots))
    rows, context = features["num_rows"].to_numpy(int), features["num_context_tokens"].to_numpy(float)
    columns = (hats(rows, knots), hats(rows, far_knots) * context[:, None], features[list(TERMS[kind])].to_numpy(float))
    factors = np.hstack(columns) @ solved / device
    octaves = np.ceil(np.log2(np.maximum(rows, 1)))
    found = {}
    for octave in np.unique(octaves[is_served]):
        near = is_served & (octaves == octave)
        is_inside = ~is_served & (octaves == octave) & (rows >= rows[near].min()) & (rows <= rows[near].max())
        is_inside &= (context >= context[near].min()) & (context <= context[near].max())
        if is_inside.any():
            found[octave] = float(np.median(factors[is_inside]))
    if not found:
        return device
    nearest = [found[min(found, key=lambda known: abs(known - octave))] for octave in octaves]
    return np.where(is_served, device, device * nearest)


def predict_apart(kind: str, log: pd.DataFrame, features: pd.DataFrame, sizes: list[int], is_planned: bool) -> Floats:
    """Seconds of every step of a replay by terms that were fitted without this replay, as of one that is to come."""
    predicted = np.full(len(log), np.nan)
    replays = log["replay"].fillna(-1).to_numpy(int)
    for replay in np.unique(replays[replays >= 0]):
        is_own = replays == replay
        cost = fit_terms(kind, log[~is_own], features[~is_own], sizes, is_planned) if not is_own.all() else None
        if cost is not None:
            predicted[is_own] = predict(cost, features[is_own], log.loc[is_own, "launching"].to_numpy(float))
    return predicted


def fit_linear(
    names: tuple[str, ...], features: pd.DataFrame, seconds: Floats, is_known: Bools, device: Floats
) -> Terms:
    """A constant and seconds per unit of each feature, of the steps of which they are known."""
    inputs = np.hstack((np.ones((len(features), 1)), features[list(names)].to_numpy(float)))
    solved = solve(inputs[is_known], np.maximum(seconds, 0)[is_known], device[is_known], 1)
    return dict(zip(("constant", *names), map(float, solved), strict=True))


def as_table(knots: list[int], values: Floats) -> Table:
    return [(knot, float(value)) for knot, value in zip(knots, values, strict=True)]


def with_ratios(cost: KindCost, elapsed: Floats, typical: Floats, apart: Floats) -> KindCost:
    """The same with the ratios of these steps: measured seconds / those of terms, `apart` by terms without them.

    Every step counts by its seconds, so that all of them together take the mean ratio of what the terms say.
    """
    if not len(elapsed):
        return cost
    apart = np.where(np.isnan(apart), typical, apart)
    ratios = elapsed / apart
    order = np.argsort(ratios)
    places = (np.cumsum(apart[order]) - apart[order] / 2) / apart.sum()
    quantiles = np.interp(np.linspace(0, 1, NUM_RATIOS), places, ratios[order])
    quantiles *= elapsed.sum() / typical.sum() / mean_of_quantiles(quantiles.tolist())
    return replace(cost, ratios=[float(ratio) for ratio in quantiles])


def predict(cost: KindCost, features: pd.DataFrame, launching: Floats) -> Floats:
    """Seconds of a typical step, of every row; the rows are those that the device computes."""
    rows = features[list(Features._fields)].itertuples(index=False)
    pairs = zip(rows, launching.tolist(), strict=True)
    return np.array([cost.seconds(Features(*row)).elapsed(seconds) for row, seconds in pairs])


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


def choose_far_knots(rows: npt.NDArray[np.int64]) -> list[int]:
    """Where the table of rates per context token has its entries: they change little from one size to the next."""
    low, high = int(rows.min()), int(rows.max())
    return sorted({low, high, *(FAR**power for power in range(1, 10) if low < FAR**power < high)})


def hats(rows: npt.NDArray[np.int64], knots: list[int]) -> Floats:
    """(steps, knots): how much of each entry a step has, by linear interpolation."""
    identity = np.eye(len(knots))
    return np.stack([np.interp(rows, knots, column) for column in identity], axis=1)


def solve(inputs: Floats, seconds: Floats, beside: Floats, num_free: int, pull: float = PULL) -> Floats:
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
        pulled = np.diag(pull * np.linalg.norm(weighted, axis=0))[num_free:]
        scaled, _ = nnls(np.vstack((weighted, pulled)), np.append(seconds * weights / whole, np.zeros(len(pulled))))
        solved: Floats = scaled / scale
        predicted = inputs @ solved
        whole = np.maximum(predicted + beside, 1e-3 * (seconds + beside))
        weights = huber((seconds - predicted) / whole)
    return solved


def huber(errors: Floats) -> Floats:
    """Square roots of the weights: 1 for usual errors, less for larger ones."""
    spread = max(1.4826 * float(np.median(np.abs(errors - np.median(errors)))), LEAST_SPREAD)
    return np.sqrt(np.minimum(1.0, HUBER * spread / np.maximum(np.abs(errors), 1e-300)))
