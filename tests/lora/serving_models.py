"""Small engines that serve adapters, and what they make of requests."""

from functools import partial

from framework.build import make_scheduler, replay_trace
from framework.engine.torch_engine import TorchEngine
from framework.lora.adapters import RandomAdapters
from framework.lora.loop import Loop
from framework.lora.pool import serve_adapters
from framework.scheduler.continuous import ContinuousScheduler
from tests.quantization.small_models import make_model

CONTINUOUS = partial(ContinuousScheduler, max_num_seqs=4)


def make_engine(
    family="llama", strategy=Loop, num_slots=2, quantize=lambda model: model, block_size=4, num_blocks=40, device="cpu",
    memory="split", targets=None, **options,
):  # fmt: skip
    model = serve_adapters(
        quantize(make_model(family)).to(device), strategy=strategy, num_slots=num_slots, max_rank=8,
        adapters=lambda: LargeAdapters(ranks=[2, 8]), memory=memory, targets=targets,
    )  # fmt: skip
    return TorchEngine(model, block_size=block_size, num_blocks=num_blocks, **options)


class LargeAdapters(RandomAdapters):
    """So large that they change most tokens."""

    def load(self, *arguments):
        return super().load(*arguments) * 10.0


def outputs(engine, requests, scheduler=CONTINUOUS):
    sequences, steps = replay_trace(requests, make_scheduler(scheduler, engine), engine)
    return [sequence.output_token_ids for sequence in sequences], sequences, steps
