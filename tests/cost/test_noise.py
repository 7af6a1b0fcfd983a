"""The noise of steps: drawn by seed, one quantile a step, and looked at ahead without being taken."""

import random

import numpy as np

from framework.cost.noise import NUM_DRAWN, Noise
from tests.cost_models import kind_cost

KINDS = {"decode": kind_cost("decode", ratios=(0.5, 1.0, 3.0)), "prompt": kind_cost("prompt", ratios=(1.0, 2.0))}


def test_each_step_takes_the_next_quantile_whatever_its_kind():
    noise, draw = Noise(KINDS, seed=3), random.Random(3).random
    for index in range(NUM_DRAWN + 10):
        kind = ("decode", "prompt")[index % 2]
        assert noise.take(kind) == KINDS[kind].ratio_at(draw())


def test_what_is_ahead_is_what_will_be_taken():
    noise, other = Noise(KINDS, seed=3), Noise(KINDS, seed=3)
    num_taken = 0
    for num_steps in (5, 3, 2000, 2000, 7):
        ahead = noise.ahead("decode", num_steps)
        assert 0 < len(ahead) <= num_steps
        noise.skip(len(ahead) // 2)
        assert ahead[: len(ahead) // 2].tolist() == [other.take("decode") for _ in range(len(ahead) // 2)]
        num_taken += len(ahead) // 2
    assert num_taken > NUM_DRAWN / 2


def test_without_a_seed_every_step_takes_the_mean():
    noise = Noise(KINDS, seed=None)
    assert noise.take("decode") == KINDS["decode"].mean_ratio
    assert np.all(noise.ahead("prompt", 4) == KINDS["prompt"].mean_ratio)
