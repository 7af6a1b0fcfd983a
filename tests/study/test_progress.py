"""How far a sweep has come, on a terminal and in a file."""

import io

import pytest
from rich.console import Console

from framework.core import Step
from framework.study.progress import EscapingConsole, Heartbeat, SweepProgress, say

STEP = Step(0.0, 0.1, "decode", 8, 0, 8, 80, 10, 0, 5, 0, 0, 0, 0.1, num_output_tokens=8)
METRICS = {"output_throughput": 1234.5, "ttft_p50": 0.0123, "tpot_p50": 0.00456}


def sweep(is_terminal: bool) -> str:
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=100)
    with SweepProgress(console, num_points=4) as progress:
        progress.begin_point("a, 1 req/s", 16)
        progress.refreshed = -1.0  # long ago
        progress.advance(STEP)
        progress.end_point("a, 1 req/s", METRICS, reused=False)
        progress.end_point("a, 2 req/s", METRICS, reused=True)
        progress.fail_point("a, 4 req/s", "no [room] left")
        progress.fail_point("a, 8 req/s", None)
    return console.file.getvalue()


@pytest.mark.parametrize("is_terminal", [True, False])
def test_every_point_has_its_line(is_terminal):
    output = sweep(is_terminal)
    assert "a, 1 req/s: 1,234 tok/s, TTFT P50 12.3 ms, TPOT P50 4.56 ms" in output
    assert "s left)" in output
    assert "(reused)" in output
    assert "no [room] left" in output
    assert "8 req/s" not in output


def test_a_terminal_has_a_bar_with_speed_and_point():
    output = sweep(is_terminal=True)
    assert "[1/4] a, 1 req/s" in output
    assert "tok/s" in output
    assert "━" in output
    assert "━" not in sweep(is_terminal=False)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_what_would_steer_the_terminal_is_escaped(is_terminal):
    console = EscapingConsole(
        file=io.StringIO(), force_terminal=is_terminal, width=100, color_system="standard" if is_terminal else None
    )
    with SweepProgress(console, num_points=2) as progress:
        progress.begin_point("a\x1b[2J", 16)
        progress.tell("refused", {"adapter \x1b]0;owned\x07": 3})
        progress.end_point("a\x1b[2J", METRICS, reused=False)
        progress.fail_point("b\x9b", "no \x1b[31mroom")
    say(console, "\x1b[1A line\r")
    output = console.file.getvalue()
    for char in ("\x1b[2J", "\x1b]", "\x07", "\x9b", "\x1b[31mroom", "\x1b[1A line"):
        assert char not in output
    for text in (r"a\x1b[2J: 1,234 tok/s", r"adapter \x1b]0;owned", r"no \x1b[31mroom", r"\x1b[1A line"):
        assert text in output
    assert ("\x1b[31mfailed" in output) == is_terminal  # its own colours stay


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_file_has_a_line_now_and_then_while_something_takes_long(is_terminal):
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=100)
    heartbeat = Heartbeat(console)
    heartbeat.tell("loading")
    heartbeat.last_time -= 60
    heartbeat.tell("compiling")
    heartbeat.tell("capturing")
    assert console.file.getvalue() == ("" if is_terminal else "compiling\n")
