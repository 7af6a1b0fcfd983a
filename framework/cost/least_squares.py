"""Least squares of relative errors with no negative cost, robust against single slow steps.

A step counts by its error over its predicted time, and no more than in proportion where that is beyond what is usual
(Huber, 1964).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

Floats = npt.NDArray[np.float64]

NUM_ROUNDS = 12
HUBER = 1.345  # in standard deviations: 95% efficient for normal errors
LEAST_SPREAD = 1e-4  # of relative errors, below which none counts as unusual
PULL = 1e-3  # towards 0, of a column's norm: it moves a rate that the log tells by a millionth
BEND = 0.1  # how far an entry of a table is from the line between its neighbours: a standard deviation, of its seconds


def solve(
    inputs: Floats,
    seconds: Floats,
    beside: Floats,
    num_free: int,
    pull: float = PULL,
    bends: Floats | None = None,
    counts: Floats | None = None,
) -> Floats:
    """Costs of at least 0 per unit of each column, for small and usual errors relative to all of a step's seconds.

    `beside` are those of the step that these columns do not explain. Columns that the log cannot tell apart go to the
    first `num_free`: a rate that only it could tell is 0. Each row of `bends` says by how much costs bend, as a share
    of a step. A bend of BEND counts as much as a step that is off by as much as is usual, as in penalised splines
    (Eilers and Marx, 1996): many steps tell an entry whatever its neighbours, none leaves it to them. `counts` is as
    how many steps each one counts (None: one).
    """
    if not len(seconds):
        return np.zeros(inputs.shape[1])
    bends = np.zeros((0, inputs.shape[1])) if bends is None else bends
    scale = scale_of(inputs, bends)
    own = np.ones(len(seconds)) if counts is None else np.sqrt(counts)
    whole, weights, spread = seconds + beside, own, 1.0  # at first all is smooth
    for _ in range(NUM_ROUNDS):
        weighted = inputs / scale * (weights / whole)[:, None]
        pulled = np.diag(pull * np.linalg.norm(weighted, axis=0))[num_free:]
        pulled = np.vstack((pulled, bends / scale * (spread / BEND)))
        targets = np.append(seconds * weights / whole, np.zeros(len(pulled)))
        scaled = least_squares(np.vstack((weighted, pulled)), targets)
        solved: Floats = scaled / scale
        predicted = inputs @ solved
        whole = np.maximum(predicted + beside, 1e-3 * (seconds + beside))
        errors = (seconds - predicted) / whole
        spread = spread_of(errors)
        weights = own * huber(errors, spread)
    return solved


def least_squares(inputs: Floats, targets: Floats) -> Floats:
    """Of no negative cost, by the triangle that is left of many rows: as good, and quicker."""
    triangle: Floats = np.linalg.qr(np.column_stack((inputs, targets)), mode="r")  # type: ignore[assignment]
    found: Floats = nnls(triangle[:, :-1], triangle[:, -1])[0]
    return found


def scale_of(inputs: Floats, bends: Floats) -> Floats:
    """The size of each column: in the steps, or in the bends alone where no step has it."""
    of_steps, of_bends = (np.abs(rows).max(axis=0, initial=0.0) for rows in (inputs, bends))
    of_steps = np.where(of_steps > 0, of_steps, of_bends)
    return np.where(of_steps > 0, of_steps, 1.0)


def spread_of(errors: Floats) -> float:
    """The standard deviation of those that are usual."""
    return max(1.4826 * float(np.median(np.abs(errors - np.median(errors)))), LEAST_SPREAD)


def huber(errors: Floats, spread: float) -> Floats:
    """Square roots of the weights: 1 for usual errors, less for larger ones."""
    return np.sqrt(np.minimum(1.0, HUBER * spread / np.maximum(np.abs(errors), 1e-300)))
