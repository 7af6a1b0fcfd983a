"""The definitions on a page are those of the terms that occur on it, as whole words in any case."""

from framework.measure.definitions import defined_in
from framework.measure.metrics import METRICS


def test_only_whole_terms_in_any_case_are_defined():
    assert [*defined_in(["ttft P50 (ms)", "[low, high]"])] == ["TTFT", "P50", "[low, high]"]
    assert defined_in(["MFUs", "unsaturated", "floored"]) == {}


def test_every_metric_is_defined_under_its_label():
    for metric in METRICS:
        assert metric.definition in defined_in([f"the {metric.label}"]).values()
