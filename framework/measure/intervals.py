"""A mean or a percentile with its 95% interval: over the requests of one run, or over the seeds of several."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from scipy.stats import bootstrap
from scipy.stats import t as student_t

STATISTICS = ("mean", "p50", "p90", "p95", "p99")
MAX_RESAMPLED = 20_000_000  # values drawn per bootstrap: bounds its time on large traces
MAX_GAPS = 1_000_000  # of which each is drawn by itself; of more, groups of requests with counts of gaps are
NUM_GROUPS = 1000
CONFIDENCE = 0.95
SHARES = np.array([0.50, 0.90, 0.95, 0.99])  # of these statistics
BINS = np.clip(np.append(np.linspace(0, 1, 2001), SHARES[:, None] + np.linspace(-0.01, 0.01, 501)), 0, 1)  # their ends

Values = npt.NDArray[np.float64]
Bounds = tuple[Values, Values]  # lower and upper, one each per statistic


def statistics(values: Values, axis: int = -1, *, is_owned: bool = False) -> Values:
    """Mean, P50, P90, P95 and P99 along `axis`, as the first axis of the result.

    What `is_owned` is put into another order, which needs no copy.
    """
    if values.size == 0:
        return np.full(len(STATISTICS), np.nan)
    mean = np.mean(values, axis=axis)[None]
    return np.concatenate([mean, np.percentile(values, [50, 90, 95, 99], axis=axis, overwrite_input=is_owned)], axis=0)


def num_resamples(num_values: int) -> int:
    return int(np.clip(MAX_RESAMPLED // max(num_values, 1), 100, 1000))


def bootstrap_statistics(values: Values) -> Bounds:
    """Lower and upper 95% bounds, (5,) each, of `statistics`; NaN for fewer than two values."""
    if len(values) < 2:
        return np.full(len(STATISTICS), np.nan), np.full(len(STATISTICS), np.nan)
    result = bootstrap(
        (values,),
        statistics,
        n_resamples=num_resamples(len(values)),
        batch=max(1, 1_000_000 // len(values)),
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return result.confidence_interval.low, result.confidence_interval.high


def bootstrap_pooled(token_times: list[Values]) -> Bounds:
    """The same for the pooled gaps, drawing whole requests: each resample weights every gap by its request's count.

    Of more than MAX_GAPS groups of requests are drawn, as `bootstrap_groups` says.
    """
    if sum(map(len, token_times)) > MAX_GAPS:
        return bootstrap_groups(token_times)
    owners = np.repeat(np.arange(len(token_times)), [max(len(times) - 1, 0) for times in token_times])
    if len(token_times) < 2 or owners.size == 0:
        return np.full(len(STATISTICS), np.nan), np.full(len(STATISTICS), np.nan)
    gaps = pooled_gaps(token_times)
    order = np.argsort(gaps)
    gaps, owners = gaps[order], owners[order]
    rng = np.random.default_rng(0)
    resampled = []
    for _ in range(num_resamples(len(gaps))):
        draws = rng.integers(len(token_times), size=len(token_times))
        weights = np.bincount(draws, minlength=len(token_times))[owners]
        cumulated = np.cumsum(weights)
        if cumulated[-1] == 0:
            continue
        ranks = SHARES * cumulated[-1]
        resampled.append([np.average(gaps, weights=weights), *gaps[np.searchsorted(cumulated, ranks)]])
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.array(resampled), [tail, 1 - tail], axis=0)
    return low, high


def bootstrap_groups(token_times: list[Values]) -> Bounds:
    """The same in memory that does not grow: NUM_GROUPS groups of requests are drawn, not single ones.

    Neighbours are in different groups. Of each its sum is kept, and how many gaps are in each of the bins, in which all
    count as the largest. The bins' ends are quantiles of the gaps of requests equally far from each other.
    """
    step = -(-sum(map(len, token_times)) // MAX_GAPS)
    edges = np.unique(np.quantile(pooled_gaps(token_times[::step]), BINS))
    num_groups = min(NUM_GROUPS, len(token_times))
    counts, sums = np.zeros((num_groups, len(edges))), np.zeros(num_groups)
    for group in range(num_groups):
        gaps = np.sort(pooled_gaps(token_times[group::num_groups]))
        ends = np.searchsorted(gaps, edges, side="right")
        ends[-1] = len(gaps)  # with those above the last edge
        counts[group], sums[group] = np.diff(ends, prepend=0), gaps.sum()
    draws = np.random.default_rng(0).multinomial(num_groups, np.full(num_groups, 1 / num_groups), size=1000)
    cumulated = np.cumsum(draws.astype(float) @ counts, axis=1)
    resampled = [
        [total / ends[-1], *edges[np.searchsorted(ends, SHARES * ends[-1])]]
        for total, ends in zip(draws @ sums, cumulated, strict=True)
        if ends[-1]
    ]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.array(resampled), [tail, 1 - tail], axis=0)
    return low, high


def gap_statistics(token_times: list[Values]) -> Values:
    """`statistics` of the pooled gaps; of more than MAX_GAPS, those of all are never in memory together."""
    num_gaps = sum([max(len(times) - 1, 0) for times in token_times])
    if num_gaps <= MAX_GAPS:
        return statistics(pooled_gaps(token_times), is_owned=True)
    step, size = -(-num_gaps // MAX_GAPS), len(token_times) * MAX_GAPS // num_gaps + 1
    sample = np.sort(pooled_gaps(token_times[::step]))
    for margin in (0.01, 1.0):
        ranges = [
            (sample_quantile(sample, share - margin, -np.inf), sample_quantile(sample, share + margin, np.inf))
            for share in SHARES
        ]
        chunks = (pooled_gaps(token_times[first : first + size]) for first in range(0, len(token_times), size))
        found = statistics_of_chunks(chunks, num_gaps, ranges)
        if found is not None:
            return found
    raise AssertionError("every gap lies between -inf and inf")


def sample_quantile(ordered: Values, share: float, beyond: float) -> float:
    """A value of which about this share of others is below; `beyond` where it is not between 0 and 1."""
    return float(ordered[int(share * len(ordered))]) if 0 < share < 1 and len(ordered) else beyond


def statistics_of_chunks(chunks: Iterable[Values], num_values: int, ranges: list[tuple[float, float]]) -> Values | None:
    """`statistics` of all `num_values` in the chunks together, if each percentile is within its range (low, high).

    Of each chunk only the values in these ranges are kept. None if one of them is elsewhere.
    """
    total, num_below = 0.0, [0] * len(ranges)
    kept: list[list[Values]] = [[] for _ in ranges]
    for chunk in chunks:
        total += float(chunk.sum())
        for place, (low, high) in enumerate(ranges):
            num_below[place] += int(np.count_nonzero(chunk < low))
            kept[place].append(chunk[(chunk >= low) & (chunk <= high)])
    percentiles = []
    for place, share in enumerate(SHARES):
        values = np.sort(np.concatenate(kept[place]))
        rank = share * (num_values - 1)
        index = int(rank) - num_below[place]
        if not 0 <= index < len(values) - 1:
            return None
        percentiles.append(np.quantile(values[index : index + 2], rank - int(rank)))
    return np.array([total / num_values, *percentiles])


def pooled_gaps(token_times: list[Values]) -> Values:
    """Those between the consecutive tokens of each request, (gaps,) seconds."""
    sizes = [max(len(times) - 1, 0) for times in token_times]
    gaps, end = np.empty(sum(sizes)), 0
    for times, size in zip(token_times, sizes, strict=True):
        end += size
        if size:
            np.subtract(times[1:], times[:-1], out=gaps[end - size : end])
    return gaps


def estimate(values: Values, is_share: bool = False) -> tuple[float, float, float]:
    """Mean over seeds and the bounds of its interval (Student's t), NaN of fewer than two values.

    Of positive values all three are taken on the logarithm: the mean is the geometric one, which the interval holds,
    and no bound is negative. Zero has no logarithm: where one value is zero, and of shares, the mean is the arithmetic
    one, and the interval is cut off at zero, of shares at one too.
    """
    if len(values) < 2:
        return float(values[0]) if len(values) else np.nan, np.nan, np.nan
    is_geometric = not is_share and bool((values > 0).all())
    scaled = np.log(values) if is_geometric else values
    standard_error = scaled.std(ddof=1) / np.sqrt(len(values))
    half_width = student_t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * standard_error
    mean = scaled.mean()
    bounds = np.array([mean, mean - half_width, mean + half_width])
    centre, low, high = np.exp(bounds) if is_geometric else np.clip(bounds, 0.0, 1.0 if is_share else None)
    return float(centre), float(low), float(high)
