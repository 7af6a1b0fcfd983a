"""What the figure of the study of scaling draws, number by number."""

from experiments.scaling.figures import over_servers
from experiments.scaling.tables import scaling_rows
from tests.experiments.scaling.test_tables import CAPACITIES, SERVERS


def test_a_curve_per_router_beside_as_many_times_one_server():
    capacity, efficiency = over_servers(scaling_rows(CAPACITIES, SERVERS, "one")).axes
    assert [bars.lines[0].get_ydata().tolist()[:2] for bars in capacity.containers] == [[10, 15], [10, 20]]
    assert [bars.lines[0].get_ydata().tolist()[:2] for bars in efficiency.containers] == [[100, 75], [100, 100]]
    assert capacity.lines[-1].get_ydata().tolist() == [10, 20, 40]
