"""A batch and the row that its step leaves in a log have the same features."""

from framework.build import replay_trace
from framework.core import Batch, Request, Sequence
from framework.cost.features import Features, awaited_slots, features_in, features_of, kind_of
from framework.cost.step_log import from_steps
from framework.measure.replay_tables import step_table
from framework.scheduler.continuous import ContinuousScheduler
from tests.fake_engine import FakeEngine, requests_at


class Recorder(FakeEngine):
    def launch(self, batch):
        self.seen = [*getattr(self, "seen", []), (kind_of(batch), features_of(batch, False, True, 0))]
        super().launch(batch)


def test_a_batch_and_its_row_have_the_same_features():
    engine = Recorder()
    engine.num_adapter_slots = 2
    requests = requests_at((0.0, 9, 6), (0.1, 5, 3), (0.3, 12, 2))
    options = {"steps": "mixed", "whole_prompts": False, "max_num_batched_tokens": 6, "max_num_seqs": 3}
    scheduler = ContinuousScheduler(1000, 4, num_adapter_slots=2, **options)
    steps = replay_trace(requests, scheduler, engine)[1]
    table = features_in(from_steps(step_table(steps), 0))
    rows = [(row.kind, Features(*row[2:])) for row in table[["kind", *Features._fields]].itertuples()]
    assert rows == engine.seen
    assert {kind for kind, _ in rows} == {"decode", "prompt"}
    assert rows[0] == ("prompt", Features(6, 1, 6, 6, 21, 3.5, 0, 0, 0, 0))


def test_a_step_waits_for_the_loads_that_its_sequences_use_or_for_all():
    sequence = Sequence(Request(0, 0.0, 4, 2, adapter_id="a"))
    sequence.adapter_slot = 2
    batch = Batch([sequence], [0], [4], 4, 0, adapter_loads={1: "b", 2: "a"})
    assert awaited_slots(batch, are_loads_beside=True) == {2}
    assert awaited_slots(batch, are_loads_beside=False) == {1, 2}
