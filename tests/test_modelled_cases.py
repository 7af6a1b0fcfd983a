"""The loop against event logs that were recorded before it was rewritten: with one server nothing may differ."""

import json
from pathlib import Path

import pytest

from framework.build import replay_trace
from tests.modelled_cases import NUM_CASES, digest, event_log, make_case
from tests.thinning import every_nth

RECORDED = json.loads((Path(__file__).parent / "modelled_cases.json").read_text())  # steps, tokens, digest of the log
NUM_PARTS = 10


@pytest.mark.parametrize("part", every_nth(5, range(NUM_PARTS)))
def test_random_replays_equal_the_recorded_ones(part):
    for seed in range(part, NUM_CASES, NUM_PARTS):
        case = make_case(seed)
        sequences, steps = replay_trace(case.requests, case.scheduler, case.engine)
        num_tokens = sum(len(sequence.output_token_ids) for sequence in sequences)
        got = [len(steps), num_tokens, digest(event_log(case, sequences, steps))]
        assert got == RECORDED[str(seed)], f"case {seed}"
