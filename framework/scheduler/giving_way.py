"""Who of the running makes room for the waiting, where an order lets those of a higher rank go first."""

from collections.abc import Callable

from framework.contracts import Order
from framework.core import Sequence

Needs = Callable[[Sequence], tuple[int, int] | None]


def giving_way(
    order: Order, running: list[Sequence], needs: Needs, *, num_seats: int, num_blocks: int, num_tokens: int
) -> list[Sequence]:
    """Those of the running whose seats and blocks the first of the waiting take in this step; none in vain.

    So many seats and blocks are free, and a step takes so many new tokens, of the first prompt as many as fit, of
    others all. `needs` says how many tokens and blocks a
    waiting sequence takes, None for one that could not run whoever gave way.
    """
    leaving: list[Sequence] = []
    staying = running
    for index, first in enumerate(order):
        needed = needs(first)
        if needed is None or (index and needed[0] > num_tokens):
            break
        num_lacking = needed[1] - num_blocks
        if num_seats < 1 or num_lacking > 0:
            behind = order.behind(first, staying)
            num_leaving = 0
            while num_leaving < len(behind) and (num_seats + num_leaving < 1 or num_lacking > 0):
                num_lacking -= len(behind[num_leaving].block_table)
                num_leaving += 1
            if num_seats + num_leaving < 1 or num_lacking > 0:
                break
            leaving += behind[:num_leaving]
            staying = [one for one in staying if one not in leaving]
            num_seats += num_leaving
        num_seats, num_blocks, num_tokens = num_seats - 1, -num_lacking, num_tokens - needed[0]
    return leaving
