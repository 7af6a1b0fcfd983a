"""VTC with the length of every output known: it is charged at the admission (OSDI 2024)."""

from framework.core import Sequence
from framework.scheduler.orders.vtc import TokenCounters


class OracleCounters(TokenCounters):
    """What a stop token saves is given back when it comes."""

    def cost_of_admission(self, sequence: Sequence) -> float:
        if sequence.num_preemptions:
            return 0.0
        return super().cost_of_admission(sequence) + self.output_weight * sequence.request.num_output_tokens

    def served(self, sequences: list[Sequence], num_tokens: int = 1) -> None:
        for sequence in sequences:
            num_saved = sequence.request.num_output_tokens - len(sequence.output_token_ids)
            if sequence.is_finished and num_saved:
                client = sequence.request.client_id
                self.counters[client] -= self.output_weight * num_saved
                if client in self.queues:
                    self.place(client)
