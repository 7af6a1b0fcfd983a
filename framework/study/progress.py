"""The console of a study, and how far a sweep has come."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.text import Text

from framework.checks import printable
from framework.core import Step
from framework.step_runs import StepRun

NUM_TOLD = 5  # reasons for which a point's requests are dropped or refused
QUIET = 5.0  # seconds after which a file gets a line on what goes on
REFRESH_INTERVAL = 0.5  # seconds of real time; drawn between steps, so never inside a measured window


class EscapingConsole(Console):
    """Prompts, names and paths are other people's: what in them would steer the terminal is escaped."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


def make_console() -> Console:
    """A terminal of its own width, or 140 columns where the output goes to a file."""
    console = EscapingConsole()
    return console if console.is_terminal else EscapingConsole(width=140)


def say(console: Console, line: str) -> None:
    """Print `line` as it is: nothing in it is markup, and no word of it is broken."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


class Heartbeat:
    """Where the output goes to a file, a line on what goes on, if nothing was said for some seconds."""

    def __init__(self, console: Console) -> None:
        self.console, self.last_time = console, time.monotonic()

    def tell(self, line: str) -> None:
        if not self.console.is_terminal and time.monotonic() - self.last_time > QUIET:
            say(self.console, line)
            self.last_time = time.monotonic()


@contextmanager
def status(console: Console, line: str) -> Iterator[Callable[[str], None]]:
    """What goes on, in one line that changes; call what is given for another. In a file, as Heartbeat has it."""
    if not console.is_terminal:
        yield Heartbeat(console).tell
        return
    with console.status(line) as shown:
        yield shown.update


class TokensPerSecond(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} tok/s" if task.speed else "- tok/s")


class SweepProgress:
    """A bar over the output tokens of all points; the tokens of points not yet begun are taken to be as many."""

    def __init__(self, console: Console, num_points: int) -> None:
        self.console, self.heartbeat = console, Heartbeat(console)
        self.num_points = num_points
        self.num_done = 0
        self.num_reused = 0
        self.num_new_tokens = 0  # that the bar does not have yet
        self.started = time.monotonic()
        self.refreshed = self.started
        columns = (TextColumn("{task.description}"), BarColumn(), TokensPerSecond(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=console, auto_refresh=False, transient=True, speed_estimate_period=10)
        self.task = self.bar.add_task("starting", total=None)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def say(self, label: str) -> None:
        line = f"[{self.num_done + 1}/{self.num_points}] {label}"
        self.bar.update(self.task, description=line)
        self.bar.refresh()
        self.heartbeat.tell(line)

    def begin_point(self, label: str, num_output_tokens: int) -> None:
        self.show_tokens()
        remaining = (self.num_points - self.num_done) * num_output_tokens
        completed = self.bar.tasks[0].completed
        self.bar.update(self.task, total=completed + remaining)
        self.say(label)

    def tell_line(self, line: str) -> None:
        say(self.console, line)

    def tell(self, what: str, counts: dict[str, int]) -> None:
        """How many requests were `what` (dropped or refused), by the most frequent reasons; the page has all."""
        reasons = sorted(counts.items(), key=lambda item: -item[1])
        for reason, count in reasons[:NUM_TOLD]:
            say(self.console, f"  {count} request{'s' * (count > 1)} {what}: {reason}")
        if len(reasons) > NUM_TOLD:
            num_others = sum(count for _, count in reasons[NUM_TOLD:])
            say(self.console, f"  {num_others} requests {what} for {len(reasons) - NUM_TOLD} other reasons")

    def advance(self, step: Step | StepRun) -> None:
        self.num_new_tokens += step.num_output_tokens
        if time.monotonic() - self.refreshed > REFRESH_INTERVAL:
            self.show_tokens()
            self.bar.refresh()
            self.refreshed = time.monotonic()

    def show_tokens(self) -> None:
        """Tell the bar, which takes longer than many a step that is modelled."""
        self.bar.advance(self.task, self.num_new_tokens)
        self.num_new_tokens = 0

    def end_point(self, label: str, metrics: dict[str, float], reused: bool) -> None:
        self.num_done += 1
        self.num_reused += reused
        line = (
            f"[{self.num_done}/{self.num_points}] {label}: {metrics['output_throughput']:,.0f} tok/s, "
            f"TTFT P50 {1e3 * metrics['ttft_p50']:.1f} ms, TPOT P50 {1e3 * metrics['tpot_p50']:.2f} ms"
        )
        self.console.print(line + (" [dim](reused)[/dim]" if reused else f"{self.eta()}"), highlight=False)

    def fail_point(self, label: str, message: str | None) -> None:
        """`message` None: the cause was told before."""
        self.num_done += 1
        if message is None:
            return
        self.console.print(f"[{self.num_done}/{self.num_points}] {label}: ", end="", highlight=False)
        self.console.print("failed", style="red", end=" ")
        say(self.console, message)

    def eta(self) -> str:
        num_computed = self.num_done - self.num_reused
        remaining = (time.monotonic() - self.started) / num_computed * (self.num_points - self.num_done)
        return f" [dim](about {remaining:.0f} s left)[/dim]" if self.num_done < self.num_points else ""
