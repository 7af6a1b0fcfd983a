"""What the figure of the study draws, number by number."""

import pytest

from experiments.sessions.figures import over_turns
from experiments.sessions.study import often_enough
from tests.experiments.sessions.test_study import make_turns


def test_latency_and_computed_tokens_over_turns():
    latency, tokens = over_turns(often_enough(make_turns())).axes
    values = [bars.lines[0].get_ydata().tolist() for bars in latency.containers]
    assert values == [pytest.approx(line) for line in ([100, 200], [200, 400], [100, 50], [200, 100])]
    assert [line.get_ydata().tolist() for line in tokens.lines] == [[100, 200], [100, 200], [100, 110]]
    assert [line.get_xdata().tolist() for line in tokens.lines] == [[1, 2]] * 3
