"""The tables of experiment=kv_cache: what a cache is worth, from which token on, beside what a source says."""

import pandas as pd
from typing_extensions import TypedDict

CACHES = {"without": False, "with": True}  # a cache
NUM_EDGE = 16  # tokens at either end of the output, for how much slower the last ones are
SMOOTHING = 9  # tokens; single ones are too noisy to say from where on one curve is below another

Texts = dict[tuple[str, str], list[int]]  # sampling, cache → output token ids
Reference = TypedDict(  # a source's seconds of the first `num_tokens` tokens
    "Reference", {"sampling": str, "num_tokens": int, "without": float, "with": float, "source": str}
)


def compare_caches(curves: pd.DataFrame, texts: Texts, sampling: str) -> dict[str, object]:
    """One row of the summary: seconds in all, how they grow, and from which token on the cache pays."""
    without, cached = (curve(curves, sampling, cache) for cache in CACHES)
    one, other = (texts[sampling, cache] for cache in CACHES)
    differing = [index for index, pair in enumerate(zip(one, other, strict=True), start=1) if pair[0] != pair[1]]
    return {
        "sampling": sampling,
        "without (s)": float(without.sum()),
        "with (s)": float(cached.sum()),
        "without ÷ with": float(without.sum() / cached.sum()),
        "last ÷ first tokens, without": growth(without),
        "last ÷ first tokens, with": growth(cached),
        "cache faster from token": crossover(curves, sampling),
        "same text": "yes" if not differing else f"up to token {differing[0] - 1}",
    }


def crossover(curves: pd.DataFrame, sampling: str) -> int | None:
    """The token from which on the cache pays."""
    return faster_from(curve(curves, sampling, "with"), curve(curves, sampling, "without"))


def curve(curves: pd.DataFrame, sampling: str, cache: str) -> "pd.Series[float]":
    """Seconds of every token of one curve, in order."""
    rows = curves[(curves["sampling"] == sampling) & (curves["cache"] == cache)]
    return rows.set_index("token")["elapsed"]


def growth(elapsed: "pd.Series[float]") -> float:
    """Median time of the last tokens over that of the first ones after the prompt's; NaN for too short an output."""
    decoded = elapsed.iloc[1:]
    if len(decoded) < 2 * NUM_EDGE:
        return float("nan")
    return float(decoded.iloc[-NUM_EDGE:].median() / decoded.iloc[:NUM_EDGE].median())


def faster_from(quick: "pd.Series[float]", slow: "pd.Series[float]") -> int | None:
    """The first token, but for the prompt's, from which on `quick` stays below `slow`, both smoothed; None: none."""
    smooth = [one.iloc[1:].rolling(SMOOTHING, center=True, min_periods=1).median() for one in (quick, slow)]
    at_least = smooth[0].index[smooth[0] >= smooth[1]]
    first = int(at_least.max()) + 1 if len(at_least) else 2
    return first if first <= len(quick) else None


def compare_with_source(reference: Reference, curves: pd.DataFrame) -> str:
    """The first tokens' time beside the source's, where there are as many."""
    sampling, num_tokens = reference["sampling"], reference["num_tokens"]
    if curves["token"].max() < num_tokens:
        return f"{reference['source']}, is of the first {num_tokens} tokens: these are too few to compare"
    without, cached = (float(curve(curves, sampling, cache).iloc[:num_tokens].sum()) for cache in CACHES)
    reported = f"{reference['without']:g} s → {reference['with']:g} s, {reference['without'] / reference['with']:.2f}×"
    return (
        f"{sampling}, the first {num_tokens} tokens: {without:.3g} s without → {cached:.3g} s with a cache, "
        f"{without / cached:.2f}× (reported: {reported}, {reference['source']})"
    )
