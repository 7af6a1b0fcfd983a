"""Records of replays that a test has just made."""

from framework.build import replay_trace
from framework.cost.model import Calibrated
from framework.cost.record import Record, Run
from framework.measure.replay_tables import request_table, step_table
from framework.scheduler.continuous import ContinuousScheduler
from tests.cost_models import target
from tests.fake_engine import FakeEngine, requests_at


def record_run(folder, requests, engine, scheduler=None, key="a", **changes):
    """The run of these requests, in the folder, and its sequences and steps."""
    scheduler = scheduler or ContinuousScheduler(engine.num_blocks, engine.block_size)
    sequences, steps = replay_trace(requests, scheduler, engine)
    folder.mkdir(exist_ok=True)
    request_table(sequences).to_parquet(folder / "requests.parquet")
    step_table(steps).to_parquet(folder / "steps.parquet")
    given = {"arm": "a", "rate": None, "key": key, "num_steps_ahead": engine.num_steps_ahead, "sizes": {}}
    return Run(folder=folder, **given | changes), sequences, steps


def make_record(runs, num_blocks=1000, block_size=4, **changes):
    engine = Calibrated(
        num_blocks=num_blocks,
        block_size=block_size,
        num_cache_bytes=num_blocks * 1000,
        slot_bytes=100,
        kv_dtype="float32",
        num_steps_ahead=0,
        are_loads_beside=False,
        switches={},
    )
    given = {"name": "runs", "device": "A device", "git_commit": None, "is_older": False, "target": target()}
    given |= {"engine": engine, "num_recorded_slots": 0, "num_recorded_bytes": 0, "blocks_per_adapter": 0}
    return Record(**given | {"num_swap_blocks": 0, "refused": {}, "runs": list(runs), "sha256": "0"} | changes)


def some_record(folder, **changes):
    """Of a replay with prompts and decodes."""
    requests = requests_at((0.0, 8, 6), (0.01, 20, 3), (0.03, 5, 9), (0.2, 16, 2))
    engine = FakeEngine(lambda batch: 0.02 if batch.num_prefill_tokens else 0.01)
    return make_record([record_run(folder, requests, engine)[0]], **changes)
