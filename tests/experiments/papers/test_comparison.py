"""What a paper reports beside what was measured, by hand; and every file of what papers report."""

import math

import pytest

from experiments.papers import comparison
from experiments.papers.comparison import FILE, FOLDER, compare, read_paper, with_comparison
from framework.report.finish import Findings

TEXT = """
source: Some paper
setting: one GPU
carried_over: as it is
quantities:
  running:
    name: running requests
    unit: ""
    place: Fig. 1
    read: digitised
    base: max
    is_same: true
    why: another GPU
    values: { max: 7.0, paged: 28.0, swap: 35.0 }
  speedup:
    name: more throughput
    unit: ×
    place: abstract
    read: text
    is_same: false
    why: another engine
    values: { paged: [2.0, 8.0], swap: 4.0 }
"""


@pytest.fixture
def paper(tmp_path, monkeypatch):
    (tmp_path / "some.yaml").write_text(TEXT)
    monkeypatch.setattr(comparison, "FOLDER", tmp_path)
    return read_paper("some")


def test_ratios_to_the_base_are_compared(paper):
    table = compare(paper, {"running": {"max": 10.0, "paged": 60.0}}).set_index(["quantity", "of"])
    paged = table.loc[("running requests (÷ max)", "paged")]
    assert paged[["reported", "measured", "reported ratio", "measured ratio", "ratio of ratios"]].tolist() == [
        *(28.0, 60.0, 4.0, 6.0, 1.5)
    ]
    assert math.isnan(table.loc[("running requests (÷ max)", "swap"), "measured"])
    assert table["why they differ"].tolist() == ["another GPU", "", "", "another engine", ""]
    assert table["read"].iloc[0] == "Fig. 1, digitised"


@pytest.mark.parametrize(("measured", "ratio"), [(1.0, 0.5), (3.0, 1.0), (16.0, 2.0)])
def test_within_a_reported_range_the_ratio_is_one(paper, measured, ratio):
    table = compare(paper, {"speedup": {"paged": measured, "swap": 5.0}}).set_index(["quantity", "of"])
    assert table.loc[("more throughput (×)", "paged"), "ratio of ratios"] == ratio
    assert table.loc[("more throughput (×)", "paged"), "reported"] == "2–8"
    assert table.loc[("more throughput (×)", "swap"), "ratio of ratios"] == 1.25


def test_a_page_has_the_table_first_and_both_settings(paper):
    findings = with_comparison("some", {}, Findings(tables={"own": compare(paper, {})}, notes=["own"]))
    assert list(findings.tables) == ["Reported and measured: Some paper", "own"]
    assert findings.notes == ["Some paper: one GPU", "carried over: as it is", "own"]
    assert FILE in findings.files


def test_what_is_not_reported_or_not_known_is_refused(paper, tmp_path):
    with pytest.raises(ValueError, match="'runing' is no quantity that Some paper reports"):
        compare(paper, {"runing": {}})
    (tmp_path / "other.yaml").write_text(TEXT.replace("digitised", "guessed"))
    with pytest.raises(ValueError, match=r"other\.yaml: quantities\.running\.read: input should be 'raw', 'text'"):
        read_paper("other")


@pytest.mark.parametrize("name", [path.stem for path in sorted(FOLDER.glob("*.yaml"))])
def test_every_file_can_be_read_and_has_the_cases_it_is_compared_with(name):
    for quantity in read_paper(name)["quantities"].values():
        assert quantity.get("base", next(iter(quantity["values"]))) in quantity["values"]
        assert quantity["why"]
