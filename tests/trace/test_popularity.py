"""Laws of popularity: shares as they promise, the same for every rate, and streams of their own."""

from functools import partial

import numpy as np
import pytest

from framework.trace.arrivals import poisson
from framework.trace.files import read_table
from framework.trace.lengths import fixed, independent, uniform
from framework.trace.popularity import distinct, geometric, identical, power_law, round_robin, zipf
from framework.trace.popularity import uniform as equally
from framework.trace.recorded import recorded
from framework.trace.synthetic import synthetic

LENGTHS = partial(independent, prompt=partial(uniform, low=1, high=50), output=partial(fixed, length=4))
NUM_DRAWN = 50_000


def shares(law, **keywords):
    numbers = law(np.random.default_rng(0), NUM_DRAWN, **keywords)
    return np.bincount(numbers) / NUM_DRAWN


def test_laws_without_chance():
    rng = np.random.default_rng(0)
    assert identical(rng, 3).tolist() == [0, 0, 0]
    assert distinct(rng, 3).tolist() == [0, 1, 2]
    assert round_robin(rng, 5, num_adapters=2).tolist() == [0, 1, 0, 1, 0]


def test_shares():
    assert shares(equally, num_adapters=4) == pytest.approx([0.25] * 4, abs=0.01)
    assert shares(zipf, num_adapters=3, alpha=1.0) == pytest.approx([6 / 11, 3 / 11, 2 / 11], abs=0.01)
    assert shares(zipf, num_adapters=2, alpha=2.0) == pytest.approx([0.8, 0.2], abs=0.01)
    assert shares(geometric, num_adapters=3, ratio=2.0) == pytest.approx([4 / 7, 2 / 7, 1 / 7], abs=0.01)
    power = shares(power_law, num_adapters=100, top=0.2, share=0.8)
    assert power[:20].sum() == pytest.approx(0.8, abs=0.01)
    assert power[:4].sum() == pytest.approx(0.64, abs=0.01)  # and so on: 0.8 of the 0.8 for 0.2 of the 0.2
    assert len(power) == 100


def test_uniform_takes_the_root_of_the_requests():
    for num_requests, count in ((1, 1), (9, 3), (10, 4)):
        drawn = [equally(np.random.default_rng(seed), num_requests, num_adapters=None) for seed in range(50)]
        assert set(np.concatenate(drawn).tolist()) == set(range(count))


@pytest.mark.parametrize(
    ("law", "keywords", "message"),
    [
        (zipf, {"num_adapters": 0, "alpha": 1.0}, "num_adapters=0"),
        (zipf, {"num_adapters": 3, "alpha": -1.0}, "alpha=-1.0"),
        (geometric, {"num_adapters": 3, "ratio": 0.0}, "ratio=0.0"),
        (power_law, {"num_adapters": 3, "top": 1.0, "share": 0.5}, "top=1.0 is not above 0 and below 1"),
        (power_law, {"num_adapters": 3, "top": 0.1, "share": 0.0}, "share=0.0"),
        (round_robin, {"num_adapters": 1.5}, "num_adapters=1.5"),
    ],
)
def test_what_cannot_be_is_shown(law, keywords, message):
    with pytest.raises(ValueError, match=message):
        law(np.random.default_rng(0), 5, **keywords)


def adapter_ids(trace):
    return [request.adapter_id for request in trace.requests]


def test_synthetic_requests_keep_arrivals_lengths_and_adapters_apart():
    make = partial(synthetic, arrivals=poisson, lengths=LENGTHS, num_requests=200)
    law = partial(zipf, num_adapters=8, alpha=1.0)
    without, slow, fast = make(rate=1.0), make(rate=1.0, adapters=law), make(rate=9.0, adapters=law)
    assert adapter_ids(without) == [None] * 200
    assert adapter_ids(slow) == adapter_ids(fast)
    assert set(adapter_ids(slow)) == {f"adapter-{number}" for number in range(8)}
    assert adapter_ids(make(rate=1.0, adapters=law, seed=1)) != adapter_ids(slow)
    for one, other in zip(without.requests, slow.requests, strict=True):
        assert (one.arrival_time, one.num_prompt_tokens) == (other.arrival_time, other.num_prompt_tokens)


def test_a_recorded_request_keeps_its_adapter_at_every_rate(tmp_path):
    path = tmp_path / "trace.csv"
    rows = [f"{0.1 * index},{index + 1},2,mine" for index in range(100)]
    path.write_text("\n".join(["arrival_time,num_prompt_tokens,num_output_tokens,adapter_id", *rows]))
    make = partial(recorded, reader=read_table, path=path, rescale="thin")
    assert set(adapter_ids(make())) == {"mine"}
    whole = make(adapters=partial(equally, num_adapters=5))
    by_length = {request.num_prompt_tokens: request.adapter_id for request in whole.requests}
    assert len(set(by_length.values())) == 5
    thinned = make(adapters=partial(equally, num_adapters=5), rate=5.0)
    assert 20 < len(thinned.requests) < 80
    assert all(by_length[request.num_prompt_tokens] == request.adapter_id for request in thinned.requests)
