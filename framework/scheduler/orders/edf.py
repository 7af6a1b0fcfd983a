"""Earliest deadline first, the deadline being the latest end that meets every limit of the SLO."""

from math import inf

from framework.contracts import Order
from framework.core import Sequence
from framework.scheduler.orders.lengths import PREDICTED, output_length
from framework.scheduler.orders.ranked import Ranked

METRICS = ("ttft", "tpot", "e2e", "normalized_latency")


def edf(*, slo: dict[str, float], preempts: bool, predicted: bool, max_wait: float | None) -> Order:
    """By when a request has to end: `slo` maps metrics to seconds, as a study's does.

    With an output of n tokens that is `ttft` + `tpot` · (n − 1), `e2e`, or `normalized_latency` · n after its arrival,
    whichever is first; with a `ttft` alone it is that of the first token, and all come in the order of arrival. n is
    known or `predicted`; see Ranked for `preempts` and `max_wait` (s). ValueError for an SLO without such a limit.
    """
    unknown = [metric for metric in slo if metric not in METRICS]
    if unknown or not slo.keys() - {"tpot"}:
        raise ValueError(f"order.slo={slo}: a deadline follows from {', '.join(METRICS)}, and tpot alone gives none")
    ttft, tpot = slo.get("ttft", inf), slo.get("tpot", 0.0)
    e2e, normalized_latency = slo.get("e2e", inf), slo.get("normalized_latency", inf)

    def deadline(sequence: Sequence) -> float:
        num_tokens = output_length(sequence.request, predicted)
        allowed = min(ttft + tpot * (num_tokens - 1), e2e, normalized_latency * num_tokens)
        return sequence.arrival_time + allowed

    return Ranked(deadline, preempts=preempts, max_wait=max_wait, uses=PREDICTED if predicted else ())
