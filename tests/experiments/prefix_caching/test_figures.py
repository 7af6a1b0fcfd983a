"""What the figure of the study draws, number by number."""

import pytest

from experiments.prefix_caching.figures import over_sizes
from tests.experiments.prefix_caching.test_sizes import HITS


def test_shares_and_latencies_over_the_size_of_the_cache():
    shares, latency = over_sizes(HITS).axes
    found, one_at_a_time, infinite = shares.get_lines()
    assert list(found.get_xdata()) == [16, 32]
    assert list(found.get_ydata()) == pytest.approx([25, 45])
    assert list(one_at_a_time.get_ydata()) == pytest.approx([30, 50])
    assert set(infinite.get_ydata()) == {50}
    assert [list(bars.lines[0].get_ydata()) for bars in latency.containers] == [
        pytest.approx([200, 100]),
        pytest.approx([600, 400]),
    ]
    assert [set(line.get_ydata()) for line in latency.get_lines()[-2:]] == [{400}, {900}]
