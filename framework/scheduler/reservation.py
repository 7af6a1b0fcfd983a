"""How many slots of the KV cache a sequence is promised when it is admitted (Orca, OSDI 2022; vLLM, SOSP 2023).

The names are vLLM's for its baselines: what is promised is taken at once, so that nobody has to give it back.
"""

from typing import Literal, get_args

from framework.core import Request

Reservation = Literal["paged", "max", "pow2", "oracle"]


def check_reservation(reservation: Reservation, max_model_len: int | None) -> None:
    """ValueError for an unknown one, and for one of the model's context where nobody says how long that is."""
    if reservation not in get_args(Reservation):
        raise ValueError(f"scheduler.reservation={reservation!r} is not one of {', '.join(get_args(Reservation))}")
    if reservation == "max" and max_model_len is None:
        raise ValueError("scheduler.reservation=max needs max_model_len, which a scheduler is told by its engine")


def promised_slots(request: Request, reservation: Reservation, max_model_len: int | None) -> int:
    """Slots that an admission takes blocks for; `paged` promises none, and blocks are taken as they are needed.

    `oracle`: those of the prompt and the output, however long it will be; `pow2`: the output is rounded up to the next
    power of two, and the sum cut at the model's context; `max`: the model's context.
    """
    num_slots = request.num_prompt_tokens + request.num_output_tokens
    if reservation == "paged":
        return 0
    if reservation == "oracle":
        return num_slots
    context = max(num_slots, num_slots if max_model_len is None else max_model_len)
    if reservation == "max":
        return context
    num_output_slots: int = 1 << (request.num_output_tokens - 1).bit_length()
    rounded = request.num_prompt_tokens + num_output_slots
    return rounded if max_model_len is None else min(rounded, context)
