"""Fits what steps cost, by least squares: the terms are those of a typical step, and slow ones are in the ratios."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.linalg import block_diag

from framework.cost.features import BESIDE_TERMS, HOST_TERMS, KINDS, TERMS, Features, features_in
from framework.cost.least_squares import PULL, Floats, solve
from framework.cost.model import KindCost, Table, Terms, mean_of_quantiles
from framework.cost.step_log import WAITED
from framework.cost.tables import (
    LONG,
    bends_of,
    choose_far_knots,
    choose_knots,
    choose_near_knots,
    differences_of,
    hats,
    padded,
    shares_of_long,
)

Bools = npt.NDArray[np.bool_]

MAX_STEPS = 50_000  # of a kind that are fitted; of more, evenly spread ones
NUM_RATIOS = 201
UNPLANNED_PULL = 0.1  # as PULL, of a log that hardly tells rows and pairs of whole prompts apart
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


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a log is fitted. `sizes` are the rows that graphs hold, of the kind of step.

    Where the steps are not those of a grid, which tells terms apart (`is_planned`), a context token costs the same in
    all steps of a kind whatever the longest sequence is, and what the log hardly tells apart is the rows'.
    """

    sizes: list[int]
    is_planned: bool


@dataclass(frozen=True, kw_only=True)
class Knots:
    """Where the tables of a kind of step have their entries."""

    rows: list[int]
    context: list[int]
    longest: list[int]
    long_tokens: int = 1  # of a longest sequence, beyond which it takes no longer

    @property
    def ends(self) -> list[int]:
        """Where in a step's columns each table ends, and the other terms begin."""
        sizes = [len(self.rows), len(self.context), len(self.longest)]
        return [sum(sizes[: index + 1]) for index in range(len(sizes))]


def fit_kinds(log: pd.DataFrame, sizes: dict[str, list[int]], *, is_planned: bool = True) -> dict[str, KindCost]:
    """What steps of each kind in a step log cost.

    `log` has the columns of `step_log`. `is_replayed` is 0 for steps timed apart: their ratios are not a server's.
    `replay`, if there is one, numbers the replays from 1 on; 0: of none. `device` may be NaN or 0: then all seconds
    count as the device's. `elapsed` may be NaN where only the device was timed, and `host` where the host's work is not
    known. `sizes` are the rows that graphs hold, of each kind; the others are as in Plan. ValueError for a log without
    steps.
    """
    if log.empty:
        raise ValueError("a cost model needs steps to be fitted on, and there are none")
    features = features_in(log).reset_index(drop=True)
    found, of_kinds = {}, {kind: np.flatnonzero(features["kind"] == kind) for kind in KINDS}
    hosts = {
        kind: fit_host(log.iloc[chosen], features.iloc[chosen]) for kind, chosen in of_kinds.items() if len(chosen)
    }
    log = log.assign(
        launching=launching(hosts, features) * log["is_replayed"].to_numpy(float), is_hidden=hidden(log, features)
    )
    for kind, chosen in of_kinds.items():
        if len(chosen):
            chosen = chosen[:: math.ceil(len(chosen) / MAX_STEPS)]
            plan = Plan(sizes=sizes.get(kind, []), is_planned=is_planned)
            found[kind] = fit_kind(kind, log.iloc[chosen], features.iloc[chosen], plan)
    return found


def hidden(log: pd.DataFrame, features: pd.DataFrame) -> Bools:
    """Which steps took no longer than the host's work for the next one: they say nothing of the device."""
    is_replayed = log["is_replayed"].to_numpy(float) > 0
    host = np.nan_to_num(log["host"].to_numpy(float))
    found: Bools = is_replayed & (log["elapsed"].to_numpy(float) < WAITED * until_next(host, features))
    return found


def fit_host(log: pd.DataFrame, features: pd.DataFrame) -> Terms:
    host = log["host"].to_numpy(float)
    return fit_linear(HOST_TERMS, features, host, ~np.isnan(host), np.zeros(len(log)))


def launching(hosts: dict[str, Terms], features: pd.DataFrame) -> Floats:
    """Of each step the host's work from the tokens before it, or from its own start where it is the first, until the
    next one is launched; 0 where that is launched afterwards."""
    own = np.zeros(len(features))
    for kind, terms in hosts.items():
        of_kind = (features["kind"] == kind).to_numpy()
        own[of_kind] = terms["constant"] + sum(features.loc[of_kind, name] * terms[name] for name in HOST_TERMS)
    return until_next(own, features)


def until_next(host: Floats, features: pd.DataFrame) -> Floats:
    """The same where each step's own `host` is known."""
    is_first = features["is_first"].to_numpy() > 0
    has_next = np.append(~is_first[1:], False)
    return np.where(has_next, np.append(host[1:], 0.0) + np.where(is_first, host, 0.0), 0.0)


def fit_kind(kind: str, log: pd.DataFrame, features: pd.DataFrame, plan: Plan) -> KindCost:
    rows = [padded(int(num), plan.sizes) for num in features["num_rows"]]
    features = features.assign(num_rows=rows)
    cost = fit_terms(kind, log, features, plan)
    is_whole = log["elapsed"].notna()
    is_served = is_whole & (log["is_replayed"] > 0)
    is_typical = (is_served if is_served.any() else is_whole).to_numpy()
    typical = predict(cost, features[is_typical], log.loc[is_typical, "launching"].to_numpy(float))
    apart = predict_apart(kind, log, features, plan, cost.long_tokens)[is_typical] if "replay" in log else typical
    return with_ratios(cost, log.loc[is_typical, "elapsed"].to_numpy(float), typical, apart)


def fit_terms(
    kind: str, log: pd.DataFrame, features: pd.DataFrame, plan: Plan, long_tokens: int | None = None
) -> KindCost:
    """All but the ratios; the rows of `features` are those that the device computes.

    The longest sequence takes no longer from `long_tokens` on (None: what leaves the least errors).
    """
    elapsed, device, awaited = (log[name].to_numpy(float) for name in ("elapsed", "device", "launching"))
    device = np.where(device > 0, device, elapsed)
    device[log["is_hidden"].to_numpy()] = np.nan
    host = fit_host(log, features)
    own = host["constant"] + sum(features[name].to_numpy(float) * host[name] for name in HOST_TERMS)
    own = np.where(features["is_first"].to_numpy() > 0, own, 0.0)
    is_known = ~np.isnan(device)
    solve_with = partial(solve_device, kind, features, device, np.maximum(awaited, own), plan)
    knots = choose_all_knots(features[is_known] if is_known.any() else features, plan)
    if knots.longest:
        longs = [replace(knots, long_tokens=num) for num in (LONG if long_tokens is None else [long_tokens])]
        knots = min(longs, key=lambda one: solve_with(one)[1]) if len(longs) > 1 else longs[0]
    solved, _ = solve_with(knots)
    inputs = columns_of(kind, features, knots)
    of_rows, of_context, of_longest, of_terms = np.split(solved, knots.ends)
    device = np.where(is_known, device, inputs @ solved)
    apart = np.maximum(device + own, awaited)
    return KindCost(
        rows=as_table(knots.rows, of_rows),
        context=as_table(knots.context, of_context),
        longest=as_table(knots.longest, of_longest),
        long_tokens=knots.long_tokens,
        device=dict(zip(TERMS[kind], map(float, of_terms), strict=True)),
        beside=fit_linear(BESIDE_TERMS, features, elapsed - apart, ~np.isnan(elapsed), apart),
        host=host,
        ranges={name: (float(features[name].min()), float(features[name].max())) for name in RANGED},
        ratios=[1.0, 1.0],
        num_steps=len(log),
    )


def choose_all_knots(features: pd.DataFrame, plan: Plan) -> Knots:
    """Where all sequences of a step are as long, as in a log that does not say, none tells what the longest takes."""
    rows = features["num_rows"].to_numpy(int)
    are_as_long = features["max_context_tokens"] * features["num_seqs"] <= features["num_context_tokens"] + 1
    return Knots(
        rows=choose_knots(rows, plan.sizes),
        context=choose_far_knots(rows) if plan.is_planned else [int(rows.min())],
        longest=choose_near_knots(rows) if plan.is_planned and not are_as_long.all() else [],
    )


def columns_of(kind: str, features: pd.DataFrame, knots: Knots) -> Floats:
    """(steps, columns): what their seconds on the device are linear in."""
    rows = features["num_rows"].to_numpy(int)
    context = features[["num_context_tokens"]].to_numpy(float)
    shares = shares_of_long(features[["max_context_tokens"]].to_numpy(float), knots.long_tokens)
    terms = features[list(TERMS[kind])].to_numpy(float)
    tables = hats(rows, knots.rows), hats(rows, knots.context) * context
    longest = hats(rows, knots.longest) * shares if knots.longest else np.zeros((len(features), 0))
    return np.hstack((*tables, longest, terms))


def solve_device(
    kind: str, features: pd.DataFrame, device: Floats, beside: Floats, plan: Plan, knots: Knots
) -> tuple[Floats, float]:
    """Costs of each column, from the steps whose seconds on the device are known, and how far off they are.

    Neighbours in the table of rows are pulled towards a line, those in the others towards each other.
    """
    inputs, known = columns_of(kind, features, knots), ~np.isnan(device)
    if not known.any():
        return np.zeros(inputs.shape[1]), 0.0
    rows, whole = features["num_rows"].to_numpy(int)[known], (device + beside)[known]
    context = features["num_context_tokens"].to_numpy(float)[known]
    pulls = [
        bends_of(knots.rows, rows, whole),
        differences_of(len(knots.context), float(np.median(context / whole))),
        differences_of(len(knots.longest), float(np.median(1 / whole))),
    ]
    bends = block_diag(*pulls, np.zeros((0, len(TERMS[kind]))))
    counts = counts_of(features[known]) if plan.is_planned else np.ones(len(whole))
    pull = PULL if plan.is_planned else UNPLANNED_PULL
    solved = solve(inputs[known], device[known], beside[known], len(knots.rows), pull, bends, counts)
    errors = np.abs(inputs[known] @ solved - device[known]) / whole
    return solved, float(counts @ errors / counts.sum())


def counts_of(features: pd.DataFrame) -> Floats:
    """As how many each step counts: n that are alike as √n of them, since they are of the same few batches."""
    alike = [features["num_rows"].to_numpy(int)]
    alike += [
        np.log2(np.maximum(features[name], 1)).to_numpy(int) for name in ("num_context_tokens", "max_context_tokens")
    ]
    _, group, sizes = np.unique(np.stack(alike), axis=1, return_inverse=True, return_counts=True)
    return 1 / np.sqrt(sizes[group.ravel()])


def predict_apart(kind: str, log: pd.DataFrame, features: pd.DataFrame, plan: Plan, long_tokens: int) -> Floats:
    """Seconds of every step of a replay by terms that were fitted without this replay, as of one that is to come."""
    predicted = np.full(len(log), np.nan)
    replays = log["replay"].fillna(0).to_numpy(int)
    for replay in np.unique(replays[replays > 0]):
        is_own = replays == replay
        cost = fit_terms(kind, log[~is_own], features[~is_own], plan, long_tokens) if not is_own.all() else None
        if cost is not None:
            predicted[is_own] = predict(cost, features[is_own], log.loc[is_own, "launching"].to_numpy(float))
    return predicted


def fit_linear(
    names: tuple[str, ...], features: pd.DataFrame, seconds: Floats, is_known: Bools, beside: Floats
) -> Terms:
    """A constant and seconds per unit of each feature, of the steps of which they are known; `beside` are the rest."""
    inputs = np.hstack((np.ones((len(features), 1)), features[list(names)].to_numpy(float)))
    solved = solve(inputs[is_known], np.maximum(seconds, 0)[is_known], beside[is_known], 1)
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
