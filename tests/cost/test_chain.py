"""From the steps of a replay to a cost model to a replay without them: it serves other requests as they would be."""

from functools import partial

import numpy as np
import pandas as pd
import pytest

from framework.build import replay_trace
from framework.core import Request
from framework.cost.fit import fit_kinds
from framework.cost.step_log import from_steps
from framework.engine.modelled import ModelledEngine
from framework.measure.replay_tables import request_table, step_table
from framework.scheduler.continuous import ContinuousScheduler
from tests.cost_models import MODEL, target, write_model
from tests.fake_engine import FakeEngine
from tests.quantization.small_models import LLAMA

SIZES = {"decode": [1, 2, 4, 8, 16, 32]}
LONG = partial(MODEL.func, **MODEL.keywords | {"config": LLAMA | {"max_position_embeddings": 4096}})


def requests(seed, num=300, rate=25.0):
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(1 / rate, num)).tolist()
    lengths = rng.integers(8, 400, num).tolist(), rng.integers(2, 60, num).tolist()
    return [Request(index, *row) for index, row in enumerate(zip(arrivals, *lengths, strict=True))]


def step_time(rng, batch):
    """Graphs of a few sizes for decodes, rows and pairs for prompts, and 3% of noise."""
    if batch.num_prefill_tokens:
        rows = batch.num_prefill_tokens + batch.num_decode_tokens
        seconds = 5e-3 + 2e-5 * rows + 1e-8 * batch.num_prefill_pairs
    else:
        rows = next(size for size in SIZES["decode"] if size >= batch.num_decode_tokens)
        seconds = 4e-3 + 1e-4 * rows + 2e-7 * batch.num_context_tokens
    return seconds * float(np.exp(0.03 * rng.standard_normal()))


def serve(engine, seed, **options):
    limits = {"max_num_seqs": 32, "max_num_batched_tokens": 512}
    sequences, steps = replay_trace(requests(seed), ContinuousScheduler(1000, 16, **limits, **options), engine)
    return request_table(sequences), step_table(steps)


@pytest.mark.parametrize("options", [{}, {"steps": "mixed", "whole_prompts": False}], ids=["continuous", "mixed"])
def test_a_replay_with_a_fitted_model_serves_as_the_engine_that_was_fitted(tmp_path, options):
    """Waiting depends on every step before it: a single replay's TTFT varies by some 3% with the noise."""

    def executed(noise_seed):
        return FakeEngine(partial(step_time, np.random.default_rng(noise_seed)), num_blocks=1000, block_size=16)

    def modelled(noise_seed):
        return ModelledEngine(target(model=LONG), path=str(path), block_size=16, num_blocks=1000, seed=noise_seed)

    def pooled(make):
        return pd.concat([serve(make(noise_seed), seed=2, **options)[0] for noise_seed in range(1, 4)])

    log = from_steps(serve(executed(0), seed=1, **options)[1], 0).assign(is_replayed=1)
    path = write_model(tmp_path, kinds=fit_kinds(log, SIZES), sizes=SIZES)
    expected, found = pooled(executed), pooled(modelled)
    for quantile in (0.5, 0.9, 0.99):
        assert found["ttft"].quantile(quantile) == pytest.approx(expected["ttft"].quantile(quantile), rel=0.06)
        assert found["e2e"].quantile(quantile) == pytest.approx(expected["e2e"].quantile(quantile), rel=0.03)
    assert found["tpot"].median() == pytest.approx(expected["tpot"].median(), rel=0.01)
