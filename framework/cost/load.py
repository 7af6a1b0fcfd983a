"""How much of prompts a device computed of late: at its power limit it is slower for what follows."""

from __future__ import annotations

from functools import reduce
from math import exp
from operator import add

import numpy as np
import pandas as pd

from framework.cost.least_squares import Floats

LATELY = 0.05  # seconds; of 0.02 to 2 the load of so long told most of what prompts of Llama-8B take longer on an H200


class Load:
    """Rows of prompts per second that were computed lately, each weighted by exp(-age / LATELY).

    Steps of decodes only let it fade. At first there were none.
    """

    def __init__(self) -> None:
        self._rate, self._elapsed = 0.0, 0.0  # at the end of the last step with prompts, and the seconds since then

    def decode(self, elapsed: float) -> None:
        """A step of decodes took this long (s)."""
        self._elapsed += elapsed

    def decodes(self, elapsed: list[float]) -> None:
        """Some of them, one behind the other; to the last bit as `decode` of each."""
        self._elapsed = reduce(add, elapsed, self._elapsed)

    def prompt(self, num_tokens: int, elapsed: float) -> None:
        """A step with so many rows of prompts takes this long (s)."""
        kept = exp(-elapsed / LATELY)
        self._rate = self.rate * kept + (num_tokens / elapsed * (1 - kept) if elapsed else 0.0)
        self._elapsed = 0.0

    @property
    def rate(self) -> float:
        return self._rate * exp(-self._elapsed / LATELY)


def loads_in(log: pd.DataFrame) -> Floats:
    """(steps,): `Load.rate` before every step with prompts of a step log, else 0.

    A replay begins with none. Steps that were timed apart had others like them before. Of a step in no replay it is not
    known, and 0.
    """
    rates = np.zeros(len(log))
    if "replay" not in log:
        return rates
    seconds = log["elapsed"].fillna(log["device"]).fillna(0).tolist()
    columns = (log[name].tolist() for name in ("replay", "is_replayed", "num_prefill_tokens"))
    load, of_load = Load(), None
    for index, (elapsed, replay, is_replayed, num_tokens) in enumerate(zip(seconds, *columns, strict=True)):
        if not is_replayed:
            rates[index] = num_tokens / elapsed if elapsed else 0.0
        elif replay > 0:
            load, of_load = (load if replay == of_load else Load()), replay
            if num_tokens:
                rates[index] = load.rate
                load.prompt(num_tokens, elapsed)
            else:
                load.decode(elapsed)
    return rates
