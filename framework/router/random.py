"""Random: any server, each as likely as the others."""

import random as randomness
from collections.abc import Sequence as ListOf

from framework.contracts import Router, Server


def random(servers: ListOf[Server], *, seed: int = 0) -> Router:
    rng = randomness.Random(seed)
    return lambda sequence: rng.choice(servers)
