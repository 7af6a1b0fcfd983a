"""What a metric is: its columns, its title and unit, and how its values and intervals come of a window."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from framework.measure.intervals import Bounds, Values
from framework.measure.window import Window


@dataclass(frozen=True, slots=True)
class Unit:
    """How values are shown: times `scale`, with `name` behind."""

    name: str
    scale: float = 1.0


COUNT, SECONDS, MILLISECONDS = Unit(""), Unit("s"), Unit("ms", 1e3)
REQUESTS_PER_SECOND, TOKENS_PER_SECOND = Unit("req/s"), Unit("tok/s")
SHARE = Unit("%", 100.0)  # between 0 and 1
HOURS = Unit("h")


@dataclass(frozen=True)
class Metric:
    """A number of a window or, with `statistics`, one for each of them.

    `name` is its column, or begins its columns. `label` is what people read, `short` what a narrow table has in its
    place, and `definition` says what the label means. `bootstrap` gives the bounds of its 95% interval over the
    window's requests. A metric that `is_of_run` is of the whole run only: it has no `steady_…` column.
    """

    name: str
    label: str
    unit: Unit
    definition: str
    compute: Callable[[Window], float | Values]
    bootstrap: Callable[[Window], Bounds] | None = None
    statistics: tuple[str, ...] = ()  # the first of STATISTICS
    short: str = ""
    is_of_run: bool = False

    @property
    def columns(self) -> list[str]:
        return [f"{self.name}_{statistic}" for statistic in self.statistics] or [self.name]

    def header(self, column: str, is_narrow: bool = False) -> str:
        """The column's title in a table, with the unit."""
        statistic = column.removeprefix(self.name).strip("_")
        title = self.short if is_narrow and self.short else self.label
        title += {"": "", "mean": ", mean"}.get(statistic, f" {statistic.upper()}")
        separator = "\n" if is_narrow else " "
        return f"{title}{separator}({self.unit.name})" if self.unit.name else title

    def values(self, window: Window) -> dict[str, float]:
        """Column → value; NaN where all requests arrive at once, which leaves no steady window."""
        if not window.duration > 0 and not self.is_of_run:
            return dict.fromkeys(self.columns, float("nan"))
        computed = self.compute(window)
        return dict(zip(self.columns, computed if isinstance(computed, np.ndarray) else [computed], strict=False))

    def interval(self, window: Window) -> dict[str, float]:
        """`…_low` and `…_high` of each column; none of a metric without an interval."""
        if self.bootstrap is None:
            return {}
        bounds: dict[str, float] = {}
        for column, low, high in zip(self.columns, *self.bootstrap(window), strict=False):
            bounds |= {f"{column}_low": float(low), f"{column}_high": float(high)}
        return bounds
