"""A part of a replay's time, and what happened in it: what every metric is computed from."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from framework.measure.servers import server_table
from framework.measure.slo import meets_slo

CHUNK = 10_000  # requests whose tokens are looked at together


@dataclass(frozen=True)
class Window:
    """A part [start, end] (s) of a replay, or all of it. `requests` and `steps` are the whole replay's.

    Each of the `num_servers` has a device of its own. What happens in the window is in the properties: latencies are of
    `offered`, batches of `started_steps`.
    """

    requests: pd.DataFrame
    steps: pd.DataFrame
    slo: dict[str, float]
    start: float
    end: float
    num_servers: int = 1

    @property
    def duration(self) -> float:
        return self.end - self.start

    @cached_property
    def offered(self) -> pd.DataFrame:
        """The requests that arrive in it."""
        return self.requests[self.requests["arrival_time"].between(self.start, self.end)]

    @property
    def served(self) -> pd.DataFrame:
        """The requests, whenever they arrive, that are not refused."""
        return self.requests[self.requests["refused"].isna()]

    @cached_property
    def started_steps(self) -> pd.DataFrame:
        """The steps that start in it."""
        return self.steps[self.steps["start_time"].between(self.start, self.end)]

    @cached_property
    def is_met(self) -> "pd.Series[bool]":
        """Whether each offered request meets the SLOs."""
        return meets_slo(self.offered, self.slo)

    @property
    def num_met(self) -> int:
        return int(self.is_met.sum())

    @property
    def num_good_tokens(self) -> int:
        """Output tokens of the offered requests that meet the SLOs."""
        return int(self.offered.loc[self.is_met, "num_output_tokens"].sum())

    @cached_property
    def servers(self) -> pd.DataFrame:
        """What each server had to do, of the offered requests and the started steps."""
        return server_table(self.offered, self.started_steps, self.num_servers)

    @property
    def num_completed(self) -> int:
        return int(self.requests["finish_time"].between(self.start, self.end).sum())

    @property
    def num_output_tokens(self) -> int:
        token_times = list(self.requests["token_times"])
        chunks = (np.concatenate(token_times[first : first + CHUNK]) for first in range(0, len(token_times), CHUNK))
        return sum(int(((times >= self.start) & (times <= self.end)).sum()) for times in chunks)

    @property
    def num_prompt_tokens(self) -> int:
        """Of the prompts whose first token appears in it."""
        is_inside = self.requests["first_token_time"].between(self.start, self.end)
        return int(self.requests.loc[is_inside, "num_prompt_tokens"].sum())
