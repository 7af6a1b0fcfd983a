"""One kind of step or kernel as it was measured, beside the least time that it can take."""

import math
from dataclasses import dataclass

import pandas as pd

from framework.measure.ceilings import Ceilings
from framework.measure.floors import Work


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of step or kernel; times are medians in seconds."""

    kind: str  # decode, prefill or attention
    num_seqs: int
    num_tokens: int  # of context, or of each prompt
    work: Work
    device: float
    elapsed: float  # from one step's tokens to the next one's, by the host's clock; NaN for a kernel alone

    @property
    def name(self) -> str:
        return case_name(self.kind, self.num_seqs, self.num_tokens)

    def line(self, ceilings: Ceilings) -> str:
        floor, bound = self.floor(ceilings)
        elapsed = "" if math.isnan(self.elapsed) else f", from step to step {1e3 * self.elapsed:.3f} ms"
        return (
            f"{self.name}: floor {1e3 * floor:.3f} ms, device {1e3 * self.device:.3f} ms{elapsed}, "
            f"{bound} {floor / self.device:.1%}"
        )

    def floor(self, ceilings: Ceilings) -> tuple[float, str]:
        """The least seconds that the case can take, and which ceiling binds: of reading (MBU) or of computing (MFU)."""
        limits = ceilings.read_bandwidth, ceilings.matmul_rate
        return self.work.floor(*limits), "MBU" if self.work.is_bandwidth_bound(*limits) else "MFU"

    def row(self, ceilings: Ceilings) -> dict[str, str | float]:
        """Everything of the case as one row of a table; `utilisation` is of the ceiling that binds (`bound`)."""
        floor, bound = self.floor(ceilings)
        return {
            "case": self.name,
            "kind": self.kind,
            "num_seqs": self.num_seqs,
            "num_tokens": self.num_tokens,
            "num_bytes": self.work.num_bytes,
            "num_flops": self.work.num_flops,
            "floor": floor,
            "device": self.device,
            "elapsed": self.elapsed,
            "bound": bound,
            "utilisation": floor / self.device,
        }


def case_name(kind: str, num_seqs: int, num_tokens: int) -> str:
    return f"{kind} {num_seqs} × {num_tokens}"


def cases_table(cases: pd.DataFrame) -> pd.DataFrame:
    """One row per case: its floor, its times (ms), and its share (%) of the ceiling that binds."""
    shown = {"floor": "floor (ms)", "device": "device (ms)", "elapsed": "step to step (ms)"}
    table = cases[["case"]].join(1e3 * cases[list(shown)].rename(columns=shown))
    for bound in ("MBU", "MFU"):
        table[f"{bound} (%)"] = 100 * cases["utilisation"].where(cases["bound"] == bound)
    return table
