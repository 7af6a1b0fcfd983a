"""A long prompt among decodes, with steps of known length: when every token comes, and what is said of it."""

from dataclasses import replace
from functools import partial
from itertools import cycle
from types import SimpleNamespace

import pandas as pd
import pytest

from experiments.chunked_prefill.stall import (
    NUM_BEFORE,
    PROMPT,
    Stall,
    describe_stall,
    measure_stall,
    stall_table,
    summarize_stall,
    typical,
)
from framework.scheduler.continuous import ContinuousScheduler
from tests.fake_engine import FakeEngine

STALL = Stall(["continuous", "mixed"], num_decodes=2, num_output_tokens=32, num_prompt_tokens=100, num_repeats=2)
ARMS = {
    "continuous": SimpleNamespace(scheduler=partial(ContinuousScheduler)),
    "mixed": SimpleNamespace(
        scheduler=partial(
            ContinuousScheduler, max_num_seqs=8, max_num_batched_tokens=34, steps="mixed", whole_prompts=False
        )
    ),
}


@pytest.fixture
def tokens() -> pd.DataFrame:
    """A step takes 0.1 s, and 0.01 s more for every prompt token."""
    engine = FakeEngine(lambda batch: 0.1 + 0.01 * batch.num_prefill_tokens)
    engines = SimpleNamespace(get=lambda arm: engine, on_progress=lambda line: None)
    return measure_stall(STALL, ARMS, engines)


def test_every_token_is_there_in_every_repeat(tokens):
    counts = tokens.groupby(["arm", "repeat", "sequence"]).size()
    assert len(counts) == 2 * 2 * 3
    assert counts["continuous", 0].to_dict() == {"0": 32, "1": 32, PROMPT: 8}
    first = tokens[(tokens["arm"] == "continuous") & (tokens["repeat"] == 0) & (tokens["sequence"] == "0")]
    assert (first["time"] <= 0).sum() == NUM_BEFORE
    assert first["gap"].isna().sum() == 1


def test_an_engine_without_room_names_the_stall():
    engines = SimpleNamespace(get=lambda arm: FakeEngine(num_blocks=20), on_progress=lambda line: None)
    with pytest.raises(ValueError, match=r"the stall \(stall=null: none\), under continuous: request 2, of 100 prompt"):
        measure_stall(STALL, ARMS, engines)


def test_whole_prompts_stop_the_decodes_and_chunks_of_32_do_not(tokens):
    """1.1 s, and a step for the next token, or three chunks of 0.42 s and one of 0.14."""
    summary = summarize_stall(tokens).set_index(["arm", "repeat"])
    assert summary.loc["continuous", 1].tolist() == pytest.approx([0.1, 1.2, 1.1, 2])
    assert summary.loc["mixed", 1].tolist() == pytest.approx([0.1, 0.42, 3 * 0.42 + 0.14, 2])


@pytest.mark.parametrize("num_steps_ahead", [0, 1])
def test_the_prompt_comes_with_the_sixteenth_token_however_steps_vary(num_steps_ahead):
    """Under a budget of 34 the second sequence begins a step after the first; the steps take 0.1 to 9 s."""
    times = cycle((0.1, 9.0, 0.3, 0.1, 2.0))
    engine = FakeEngine(lambda batch: next(times), num_steps_ahead=num_steps_ahead)
    engines = SimpleNamespace(get=lambda arm: engine, on_progress=lambda line: None)
    tokens = measure_stall(STALL, ARMS, engines)
    for arm, (first, second) in {"continuous": (16, 16), "mixed": (17, 16)}.items():
        rows = tokens[(tokens["arm"] == arm) & (tokens["repeat"] == 1) & (tokens["time"] <= 0)]
        assert rows["sequence"].value_counts().to_dict() == {"0": first, "1": second}
    assert summarize_stall(tokens).notna().all(axis=None)


def test_decodes_that_end_before_the_prompt_comes_are_told():
    """With 32 + 2 tokens a step and 20 decodes to begin, the first have ended when the last has 16 tokens."""
    stall = replace(STALL, arms=["mixed"], num_decodes=20, num_output_tokens=18, num_repeats=1)
    scheduler = partial(ARMS["mixed"].scheduler, max_num_seqs=32)
    engines = SimpleNamespace(get=lambda arm: FakeEngine(), on_progress=lambda line: None)
    tokens = measure_stall(stall, {"mixed": SimpleNamespace(scheduler=scheduler)}, engines)
    table = stall_table(tokens)
    assert table.notna().all(axis=None)
    [num_left] = table["decodes"]
    assert 0 < num_left < 20
    assert describe_stall(stall, table)[1] == (
        f"mixed: the gaps are of {num_left} of the 20 sequences; the others had ended when the prompt came: raise "
        "stall.num_output_tokens"
    )


def test_the_table_and_the_sentence_say_so(tokens):
    table = stall_table(tokens)
    assert table["longest ÷ before"].tolist() == pytest.approx([12, 4.2])
    [sentence] = describe_stall(STALL, table)
    assert sentence == (
        "continuous: while a prompt of 100 tokens is computed, the 2 sequences that decode wait up to 1,200 ms for a "
        "token (100 ms before it came); mixed up to 420 ms, and the prompt's first token takes 1.27× as long"
    )


def test_the_repeat_that_is_drawn_has_the_median_longest_gap():
    rows = [
        ("a", repeat, sequence, time, gap)
        for repeat, longest in enumerate((5.0, 1.0, 3.0))
        for sequence, time, gap in (("0", -0.1, 0.1), ("0", longest, longest), (PROMPT, longest + 0.1, None))
    ]
    tokens = pd.DataFrame(rows, columns=["arm", "repeat", "sequence", "time", "gap"])
    assert set(typical(tokens)["repeat"]) == {2}
