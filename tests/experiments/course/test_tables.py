"""What experiment=kv_cache says of curves: how they grow, and from which token on a cache pays."""

import numpy as np
import pandas as pd

from experiments.course.tables import NUM_EDGE, compare_caches, compare_with_source, faster_from, growth


def series(values) -> "pd.Series[float]":
    return pd.Series(np.asarray(values, dtype=float), index=range(1, len(values) + 1))


def test_from_which_token_on_the_cache_pays():
    slow = series(np.arange(1, 41))
    assert faster_from(series([20.5] * 40), slow) == 21
    assert faster_from(series([99.0] + [0.5] * 39), slow) == 2  # the first token has the prompt in it
    assert faster_from(series([100.0] * 40), slow) is None
    one_outlier = series([20.5] * 40)
    one_outlier[30] = 100.0
    assert faster_from(one_outlier, slow) == 21


def test_growth_is_of_the_ends_without_the_prompt():
    assert growth(series([1000.0] + [2.0] * NUM_EDGE + [6.0] * NUM_EDGE)) == 3.0
    assert np.isnan(growth(series([1.0] * 2 * NUM_EDGE)))


def make_curves(num_tokens, **seconds_per_token):
    rows = [
        ("greedy", cache, token, seconds)
        for cache, seconds in seconds_per_token.items()
        for token in range(1, num_tokens + 1)
    ]
    return pd.DataFrame(rows, columns=["sampling", "cache", "token", "elapsed"])


def test_a_row_compares_the_seconds_and_the_texts_of_both():
    curves = make_curves(4, without=0.5, **{"with": 0.25})
    texts = {("greedy", "without"): [1, 2, 3, 4], ("greedy", "with"): [1, 2, 9, 4]}
    row = compare_caches(curves, texts, "greedy")
    assert (row["without (s)"], row["with (s)"], row["without ÷ with"]) == (2.0, 1.0, 2.0)
    assert row["cache faster from token"] == 2
    assert row["same text"] == "up to token 2"
    texts["greedy", "with"] = [1, 2, 3, 4]
    assert compare_caches(curves, texts, "greedy")["same text"] == "yes"


def test_the_first_tokens_stand_beside_the_sources():
    curves = make_curves(4, without=0.5, **{"with": 0.25})
    reference = {"sampling": "greedy", "num_tokens": 2, "without": 0.42, "with": 0.28, "source": "lesson 1"}
    line = compare_with_source(reference, curves)
    assert "1 s without → 0.5 s with a cache, 2.00×" in line
    assert "reported: 0.42 s → 0.28 s, 1.50×" in line
    assert "too few" in compare_with_source(reference | {"num_tokens": 5}, curves)
