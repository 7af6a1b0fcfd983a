"""What the simulation and the loop in real time have in common: checks before the first step, the record of a step."""

from collections.abc import Iterable

from framework.contracts import Engine, Scheduler, Source
from framework.core import Batch, Request, Step, StepResult

MAX_STEPS_WITHOUT_TOKEN = 100_000  # far above any prompt's number of chunks; beyond it a scheduler is going in circles


def get_ready(source: Source, scheduler: Scheduler, engine: Engine, *, are_checked: bool = False) -> None:
    """Check the requests, unless they are, and warm the engine up for them, outside of the measured time.

    Raises ValueError for a request that could never be scheduled, and for an engine that would be more than one step
    ahead.
    """
    if not are_checked:
        check_requests(source.requests, scheduler)
    engine.begin(source.requests, scheduler.max_num_seqs, scheduler.max_num_batched_tokens)
    check_steps_ahead(engine)


def check_requests(requests: Iterable[Request], scheduler: Scheduler) -> None:
    """Raise ValueError naming the first request that could never be scheduled."""
    for request in requests:
        try:
            scheduler.check(request)
        except ValueError as error:
            lengths = f"{request.num_prompt_tokens} prompt and {request.num_output_tokens} output tokens"
            raise ValueError(f"request {request.request_id}, of {lengths}: {error}") from error


def check_steps_ahead(engine: Engine) -> None:
    """Raise ValueError for more steps ahead than schedulers can count on: `begin` may have decided how many."""
    if engine.num_steps_ahead not in (0, 1):
        raise ValueError(f"{type(engine).__name__}.num_steps_ahead must be 0 or 1, not {engine.num_steps_ahead}")


def check_batch(batch: Batch, now: float, server: int = 0) -> None:
    """RuntimeError for a batch of nobody."""
    if not batch.sequences:
        raise RuntimeError(f"server {server} makes no progress: its batch at {now:.6f} s is empty")


def note_adapter_waits(batch: Batch, result: StepResult) -> None:
    """Tell each sequence how long its adapter kept the step waiting."""
    if result.adapter_waits:
        for sequence in batch.sequences:
            sequence.adapter_load_wait += result.adapter_waits.get(sequence.adapter_slot, 0.0)


def describe_step(
    start_time: float,
    elapsed: float,
    schedule: float,
    batch: Batch,
    result: StepResult,
    scheduler: Scheduler,
    engine: Engine,
    server: int = 0,
) -> Step:
    """The record of a step whose tokens have just come; times in seconds."""
    num_tokens, num_reserved, num_lost, num_free = scheduler.slot_use
    waits = result.adapter_waits
    return Step(
        start_time=start_time,
        elapsed=elapsed,
        phase=batch.phase,
        num_seqs=len(batch.sequences),
        num_prefill_tokens=batch.num_prefill_tokens,
        num_decode_tokens=batch.num_decode_tokens,
        num_context_tokens=batch.num_context_tokens,
        max_context_tokens=batch.max_context_tokens,
        num_prefill_pairs=batch.num_prefill_pairs if batch.num_prefill_tokens else 0,
        num_used_blocks=scheduler.num_used_blocks,
        num_waiting=len(scheduler.waiting),
        schedule=schedule,
        prepare=result.prepare,
        device=result.device,
        num_adapter_loads=len(batch.adapter_loads),
        adapter_wait=max(waits.values()) if waits else 0.0,
        server=server,
        num_cached_blocks=scheduler.num_cached_blocks,
        num_token_slots=num_tokens,
        num_reserved_slots=num_reserved,
        num_lost_slots=num_lost,
        num_free_slots=num_free,
        num_adapter_blocks=scheduler.num_adapter_blocks,
        num_swapped_out_blocks=len(batch.swap_out),
        num_swapped_in_blocks=len(batch.swap_in),
        swap_wait=result.swap_wait,
        num_adapters=batch.num_adapters if engine.num_adapter_slots else 0,
        adapter_waits=list(waits.items()) if waits else None,
        launch=result.launch,
    )


class Progress:
    """Refuses a server that goes in circles, rather than to let it replay without end."""

    def __init__(self, server: int = 0) -> None:
        self.server, self.num_steps_without_token = server, 0

    def note(self, step: Step, batch: Batch) -> None:
        """RuntimeError, naming a request, after too many steps that delivered no token, or one that computed none."""
        self.num_steps_without_token = 0 if step.num_output_tokens else self.num_steps_without_token + 1
        is_empty = not step.num_prefill_tokens + step.num_decode_tokens
        if self.num_steps_without_token > MAX_STEPS_WITHOUT_TOKEN or is_empty:
            raise RuntimeError(
                f"server {self.server} makes no progress on request {batch.sequences[0].request.request_id}: "
                f"{self.num_steps_without_token} steps without a token, the last of {step.num_prefill_tokens} prompt "
                f"and {step.num_decode_tokens} decode tokens"
            )
