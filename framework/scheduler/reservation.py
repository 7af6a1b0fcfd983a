"""How many slots of the KV cache a sequence is promised when it is admitted (Orca, OSDI 2022; vLLM, SOSP 2023).

The names are vLLM's for its baselines: what is promised is taken at once, so that nobody has to give it back.
"""

from typing import Literal, get_args

from framework.core import Request, Sequence
from framework.scheduler.block_manager import BlockManager

Reservation = Literal["paged", "max", "pow2", "oracle", "pow2_buddy", "oracle_buddy"]


class Promises:
    """What `reservation` promises; `max_model_len` is the model's context, None where nobody has told it.

    `paged` promises nothing: blocks are taken as they are needed. `oracle` promises the slots of the prompt and the
    output, however long it will be. With `pow2` the output is rounded up to the next power of two, and the sum cut at
    the context. `max` promises the context. With `oracle_buddy` and `pow2_buddy` what these promise is rounded up to a
    power of two: a chunk of contiguous memory, as a buddy allocator hands them out. Any free blocks make one.
    """

    def __init__(self, reservation: Reservation, max_model_len: int | None) -> None:
        if reservation not in get_args(Reservation):
            raise ValueError(f"scheduler.reservation={reservation!r} is not one of {', '.join(get_args(Reservation))}")
        self.reservation, self.max_model_len = reservation, max_model_len

    def num_slots(self, request: Request) -> int:
        """0 with `paged`, else at least as many as the request needs."""
        if self.reservation == "paged":
            return 0
        needed = request.num_prompt_tokens + request.num_output_tokens
        context = needed if self.max_model_len is None else max(self.max_model_len, needed)
        if self.reservation == "max":
            return context
        if self.reservation.startswith("oracle"):
            promised = needed
        else:
            rounded = request.num_prompt_tokens + next_power_of_two(request.num_output_tokens)
            promised = rounded if self.max_model_len is None else min(rounded, context)
        return next_power_of_two(promised) if self.reservation.endswith("buddy") else promised

    def num_blocks_beyond(self, sequence: Sequence, blocks: BlockManager) -> int:
        """How many blocks the sequence is promised beyond those of its tokens."""
        num_for = blocks.num_blocks_for
        return max(num_for(self.num_slots(sequence.request)) - num_for(sequence.num_tokens), 0)

    def check(self, request: Request, blocks: BlockManager, num_adapter_blocks: int = 0) -> None:
        """ValueError for a promise that an empty cache could not keep beside the adapter, or of an unknown context."""
        if self.reservation == "max" and self.max_model_len is None:
            raise ValueError("scheduler.reservation=max needs max_model_len, which a scheduler is told of its engine")
        if blocks.num_blocks_for(self.num_slots(request)) + num_adapter_blocks > blocks.num_blocks:
            context = f" ({self.max_model_len} tokens, the model's context)" if self.reservation == "max" else ""
            raise ValueError(
                f"scheduler.reservation={self.reservation} promises it more{context} than the KV cache, which has "
                f"{blocks.describe(num_adapter_blocks)} (raise engine.num_blocks, or lower model.max_model_len)"
            )


def next_power_of_two(number: int) -> int:
    """The smallest one that is at least `number`, which is positive."""
    return 1 << (number - 1).bit_length()
