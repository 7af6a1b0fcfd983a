"""Where shares that fall over the rate cross a target: a logistic curve, with an interval that trusts no request alone.

Replications in one cluster depend on each other, and so may the requests of each.
"""

from dataclasses import dataclass
from functools import cache
from math import inf, log, nan, sqrt

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student_t

from framework.measure.intervals import CONFIDENCE, Values

BANDWIDTH = 0.3  # relative to the crossing: a rate so far away weighs 0.6 in the fit, one twice as far 0.14
NUM_REWEIGHTED = 4  # times that the weights follow the crossing
RIDGE = 1e-3  # on level and slope, so that shares of 0 and 1 alone have finite ones


@dataclass(frozen=True)
class Crossing:
    """The rate with its 95% interval, and how wide, relative to it, the fall from odds of 3 : 1 to 1 : 3 is.

    `num_effective` independent requests would tell as much. A share that does not fall crosses at infinity.
    """

    rate: float = inf
    low: float = inf
    high: float = inf
    width: float = inf
    num_effective: float = nan


def find_crossing(
    rates: Values, shares: Values, counts: Values, clusters: npt.NDArray[np.int64], share: float
) -> Crossing:
    """Where a logistic curve through `shares` of `counts` requests over `rates` is `share`; all are (replications,).

    Rates near the crossing weigh the most. The interval is Fieller's, with the covariance of a jackknife that leaves
    out one cluster after the other.
    """
    target, centre, weights = log(share / (1 - share)), float(np.median(rates)), counts
    for _ in range(NUM_REWEIGHTED):
        level, slope = fit_logistic(rates / centre - 1, shares, weights)
        if slope >= 0:
            return Crossing()
        centre *= 1 + (target - level) / slope
        centre = min(max(centre, 0.5 * rates.min()), 1.5 * rates.max())
        distances = np.abs(rates / centre - 1)
        width = max(BANDWIDTH, float(np.unique(distances)[:2].max()))
        weights = counts * np.exp(-0.5 * (distances / width) ** 2)
    x = rates / centre - 1
    level, slope = fit_logistic(x, shares, weights)
    if slope >= 0:
        return Crossing()
    robust, simple, freedom = covariances(
        x, shares, weights, counts, np.unique(clusters, return_inverse=True)[1], level, slope
    )
    low, high = fieller(level - target, slope, robust, t_quantile(freedom))
    at = (target - level) / slope
    towards = np.array([1.0, at])
    is_noisy = float(towards @ robust @ towards)
    ratio = min(1.0, float(towards @ simple @ towards) / is_noisy) if is_noisy else 1.0
    rate, low, high = (centre * (1 + value) for value in (at, low, high))
    return Crossing(rate, low, high, 2 * log(3) / -slope, float(weights.sum()) * ratio)


def fieller(level: float, slope: float, covariance: Values, quantile: float) -> tuple[float, float]:
    """All x at which level + slope · x may be 0; without an end where the slope may be."""
    a = slope**2 - quantile**2 * covariance[1, 1]
    b = level * slope - quantile**2 * covariance[0, 1]
    c = level**2 - quantile**2 * covariance[0, 0]
    if a <= 0:
        return -inf, inf
    root = sqrt(max(b * b - a * c, 0.0))
    return (-b - root) / a, (-b + root) / a


def fit_logistic(x: Values, shares: Values, weights: Values) -> tuple[float, float]:
    """Level and slope of the log odds over x, by Newton's steps of limited length."""
    level = slope = 0.0
    for _ in range(50):
        fitted = sigmoid(level + slope * x)
        residual, information = weights * (shares - fitted), weights * fitted * (1 - fitted)
        a, b, c = information.sum() + RIDGE, (information * x).sum(), (information * x * x).sum() + RIDGE
        u, v = residual.sum() - RIDGE * level, (residual * x).sum() - RIDGE * slope
        one, two = (c * u - b * v) / (a * c - b * b), (a * v - b * u) / (a * c - b * b)
        scale = min(1.0, 5.0 / max(abs(one), 0.1 * abs(two), 1e-12))
        level, slope = level + scale * one, slope + scale * two
        if abs(one) < 1e-7 and abs(two) < 1e-6:
            break
    return level, slope


def sigmoid(odds: Values) -> Values:
    return 1 / (1 + np.exp(-np.clip(odds, -500, 500)))


def covariances(
    x: Values,
    shares: Values,
    weights: Values,
    counts: Values,
    clusters: npt.NDArray[np.int64],
    level: float,
    slope: float,
) -> tuple[Values, Values, float]:
    """Of level and slope, (2, 2): by a jackknife over `clusters`, 0 … n − 1, and by independent requests.

    The third value is the degrees of freedom of the first, clusters as they weigh less two, which it is corrected for.
    """
    fitted = sigmoid(level + slope * x)
    information, residual = weights * fitted * (1 - fitted), weights * (shares - fitted)

    def of_clusters(values: Values) -> Values:
        return np.bincount(clusters, values).astype(float)

    own = [of_clusters(information), of_clusters(information * x), of_clusters(information * x * x)]
    total = np.array([[own[0].sum() + RIDGE, own[1].sum()], [own[1].sum(), own[2].sum() + RIDGE]])
    a, b, c = total[0, 0] - own[0], total[0, 1] - own[1], total[1, 1] - own[2]
    u, v = of_clusters(residual), of_clusters(residual * x)
    changes = np.stack([c * u - b * v, a * v - b * u]) / (a * c - b * b)
    spread = information * weights / counts
    off = (spread * x).sum()
    middle = np.array([[spread.sum(), off], [off, (spread * x * x).sum()]])
    inverse = np.linalg.inv(total)
    num_clusters = float(own[0].sum() ** 2 / np.square(own[0]).sum())
    freedom = max(num_clusters - 2, 1.0)
    return num_clusters / freedom * changes @ changes.T, inverse @ middle @ inverse, round(freedom, 1)


def mean_interval(values: Values) -> tuple[float, float, float]:
    """Mean and 95% interval (Student's t) of at least two independent values."""
    half = t_quantile(len(values) - 1) * values.std(ddof=1) / sqrt(len(values))
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


@cache
def t_quantile(freedom: float) -> float:
    return float(student_t.ppf((1 + CONFIDENCE) / 2, freedom))
