"""The names by which the figure of the study of routers finds its curves are columns of its rows."""

from experiments.cluster.figures import CURVES, FOUND
from tests.experiments.cluster.test_tables import rows_of


def test_what_is_drawn_is_in_the_rows():
    assert {*FOUND, *(name for curve in CURVES for name in curve)} <= {*rows_of().columns}
