"""Power of two choices: of two servers drawn at random, the one with fewer unfinished requests (Mitzenmacher, 2001)."""

import random
from collections.abc import Sequence as ListOf

from framework.contracts import Router, Server
from framework.router.load import least_loaded


def power_of_two(servers: ListOf[Server], *, seed: int = 0) -> Router:
    rng = random.Random(seed)
    choose = least_loaded(servers)
    return lambda sequence: choose(rng.sample(servers, min(2, len(servers))))
