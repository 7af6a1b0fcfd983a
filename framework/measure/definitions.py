"""What the words in tables, captions and notes mean: a page ends with those that occur in it."""

import re
from collections.abc import Iterable

from framework.measure.metrics import METRICS

DEFINITIONS = {
    **{metric.label[0].upper() + metric.label[1:]: metric.definition for metric in METRICS},
    "Saturated": "at a rate at which waiting (arrival → first step) grows by more than 0.1 s per second, from the "
    "first third of the arrivals to the last, mean over seeds: at x times what a server can do it grows by x − 1, at "
    "less not at all. With fewer than 48 requests in a replay there is no verdict: chance alone could saturate 1% of "
    "the replays on a half-loaded server. All at once saturates",
    "Served at most": "requests/s completed in the middle 80% of the completions, the most at a rate that saturated",
    "Capacity": "the highest offered rate at which every goal holds and waiting does not grow, from a search by "
    "replications; its interval is 95%",
    "P50": "median; P90, P95 and P99 are the 90th, 95th and 99th percentile",
    "[low, high]": "95% interval: Student's t over seeds where there are several, else percentile bootstrap over the "
    "requests of the one run; of what is measured on a text, over its windows. Over seeds, positive quantities "
    "(latencies, throughputs, factors) have their geometric mean, and t is of their logarithms; shares, and what is "
    "zero for one seed, have the arithmetic mean, and the interval ends at 0, a share's at 1 too",
    "Ceiling": "what the device was measured to do at most: bytes read per second, FLOP/s of a large matrix product",
    "Floor": "the least time a step can take: the longer of its bytes / read bandwidth and its FLOPs / rate, both "
    "ceilings measured on the device",
    "MBU": "model bandwidth utilisation: floor / device time of a step whose bytes bind",
    "MFU": "model FLOPs utilisation: floor / device time of a step whose arithmetic binds",
    "Device": "seconds that the device took for a step, from its first kernel to its last",
    "Step to step": "from the tokens of one step on the host to those of the next: device, host and what is between",
    "Intensity": "FLOPs / bytes of a step; left of the ridge the bandwidth binds, right of it the arithmetic",
    "Nats/byte": "mean negative log-likelihood of the text's bytes, natural logarithm; bits/byte: divided by ln 2",
    "Perplexity": "exp of the mean negative log-likelihood per token",
    "Change of perplexity": "perplexity / that of the same model in float32 − 1; its interval is over the differences "
    "in each window, so that it is narrower than that of the perplexity",
    "Top-1 agreement": "share of a text's tokens before which the model and the same one in float32 find the same "
    "token the most likely",
    "KL": "Kullback–Leibler divergence of the model's next-token probabilities from those of the same model in "
    "float32, KL(float32 ‖ model), mean per token",
    "Logit error": "‖z′ − z‖ / ‖z‖ over all logits on the text, z in float32; each token's are centred, since a "
    "constant changes no prediction",
    "Weight error": "‖W′ − W‖ / ‖W‖ (Frobenius) over all matrices of the blocks, W in float32 and W′ as applied",
    "KV tokens": "tokens whose keys and values the cache holds at once: blocks × block size",
    "Virtual clock": "simulated time, advanced by the measured duration of every step; idle time costs nothing",
}


def defined_in(texts: Iterable[str]) -> dict[str, str]:
    """The definitions of the terms that occur in `texts`, whatever their case."""
    text = "\n".join(texts)
    return {term: meaning for term, meaning in DEFINITIONS.items() if occurs(term, text)}


def occurs(term: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(term)}(?!\w)", text, re.IGNORECASE) is not None
