"""Which adapters the sequences of a measured step ask for, and tables of such steps."""

from functools import partial

import pandas as pd
import pytest

from experiments.lora.steps import Sizes, growth, measure_steps, median_steps, mixed_table
from framework.config import describe
from framework.engine.torch_engine import TorchEngine
from tests.lora.serving_models import make_engine


def test_the_sequences_of_a_step_use_as_many_adapters_as_it_says():
    engine, slots = make_engine(num_slots=3), []
    launch = engine.launch
    engine.launch = lambda batch: slots.append({one.adapter_slot for one in batch.sequences}) or launch(batch)
    sizes = Sizes([1, 2, 4], [[3, 0, 2, 16]], {"": 3, ", one adapter": 1}, context=16, num_steps=2, num_rounds=1)
    counts = []
    for row in measure_steps("loop", engine, sizes, pytest.fail):
        counts.append((row["arm"], row["num_seqs"], row["num_adapters"]))
        assert [len(used - {0}) for used in slots] == [row["num_adapters"]] * len(slots)
        assert len(slots) > 2
        slots.clear()
    several, one = ("loop", "loop, one adapter")
    assert counts == [
        (several, 1, 1),
        (several, 2, 2),
        (several, 4, 3),
        (several, 3, 3),
        *((one, size, 1) for size in (1, 2, 4, 3)),
    ]


def test_the_cache_holds_the_largest_step():
    engine = partial(TorchEngine, block_size=16, max_num_blocks=None)
    sizes = Sizes([1, 4], [[3, 30, 2, 16]], {}, context=16, num_steps=2, num_rounds=1)
    assert describe(sizes.limited(engine))["max_num_blocks"] == 8  # 4 × 18 tokens; the mixed step 33 + 2 × 18


def test_tables_are_of_medians_over_the_rounds():
    rows = [("none", "decode 1 × 8", 1, 1e-3), ("none", "mixed a", 3, 2e-3), ("loop", "mixed a", 3, 3e-3)]
    rows += [("none", "decode 4 × 8", 4, 4e-3)]
    rounds = [(*row[:3], row[3] * factor) for factor in (1, 3, 2) for row in rows]
    steps = pd.DataFrame(rounds, columns=["arm", "case", "num_seqs", "elapsed"])
    assert growth(median_steps(steps, "decode")).to_numpy().tolist() == [["none", 2.0, 8.0, 4.0]]
    table = mixed_table(median_steps(steps, "mixed"), "none")
    assert table["step to step (ms)"].tolist() == pytest.approx([4, 6])
    assert table["more than none (%)"].tolist() == pytest.approx([0, 50])
    assert list(mixed_table(median_steps(steps, "mixed"), "gone")) == ["step", "arm", "step to step (ms)"]
