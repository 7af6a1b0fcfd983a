"""Order, sharing and reuse of points, with fake models and engines."""

import errno
from functools import partial

import pandas as pd
import pytest

from framework.errors import StudyError
from framework.measure.rates import MAX_GROWTH, aggregate
from framework.study.points import write_point
from framework.study.sweep import table_saved_at_end
from framework.trace.files import read_table
from framework.trace.recorded import recorded


@pytest.mark.parametrize(
    ("fresh", "message"), [(False, "the same command goes on"), (True, "the same command, without fresh=true, goes on")]
)
def test_an_interruption_says_which_command_goes_on(study, fresh, message):
    finished = study({"only": {}}, [1.0])
    with pytest.raises(KeyboardInterrupt, match=message), table_saved_at_end(finished, fresh):
        raise KeyboardInterrupt


def test_the_recorded_rate_asked_for_as_a_number_is_one_row(study, tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("arrival_time,num_prompt_tokens,num_output_tokens\n0.0,4,2\n0.5,4,2\n1.0,4,2\n")
    trace = partial(recorded, reader=partial(read_table), path=str(path))
    table = study({"only": {"trace": trace}}, [None, 2.0]).table()
    assert table["rate"].tolist() == [2.0]
    assert aggregate(table)["rate"].tolist() == [2.0]


def test_a_deterministic_engine_gives_exact_metrics(study):
    table = study({"only": {}}, [0.01]).table()  # so slow that no request meets another
    assert table["ttft_p99"][0] == pytest.approx(0.01)
    assert table["tpot_p99"][0] == pytest.approx(0.01)
    assert table["e2e_p50"][0] == pytest.approx(0.04)


def test_what_every_rate_served_is_not_saturated(study):
    arms = {"quick": {}, "slow": {"engine": {"step_time": 0.2}, "scheduler": {"max_num_seqs": 1}}}
    table = study(arms, [0.25, 20.0]).table().set_index(["arm", "rate"])
    too_much = table["waiting_growth"] > MAX_GROWTH
    assert too_much.to_dict() == {
        ("quick", 0.25): False, ("quick", 20.0): False, ("slow", 0.25): False, ("slow", 20.0): True,
    }  # fmt: skip
    assert table.loc[("slow", 20.0), "sustained_throughput"] == pytest.approx(1 / 0.8, rel=0.05)


def test_failures_are_named_and_the_rest_is_kept(study, capsys):
    result = study({"good": {}, "tight": {"engine": {"num_blocks": 1}}}, [1.0, 2.0])
    assert result.table()["arm"].tolist() == ["good", "good"]
    with pytest.raises(StudyError, match=r"none of 48 requests can be served: .* 1 KV blocks.*\(2 points of tight\)"):
        result.raise_failures()
    assert capsys.readouterr().out.count("none of 48 requests can be served") == 1
    with pytest.raises(StudyError, match=r"\(tight, 3 req/s, seed 0\)"):
        study({"tight": {"engine": {"num_blocks": 1}}}, [3.0])


def test_a_failure_that_is_no_points_names_none(study):
    result = study({"only": {}}, [1.0])
    result.failures["thrash: no arm serves"] = []
    with pytest.raises(StudyError, match=r"^thrash: no arm serves$"):
        result.raise_failures()


def test_requests_that_no_arm_can_have_are_told_once_and_nothing_is_replayed(study, tmp_path, capsys):
    trace = partial(recorded, reader=partial(read_table), path=str(tmp_path / "none.csv"))
    for rates in ([1.0, 2.0], "auto"):
        with pytest.raises(ValueError, match=r"^no trace file at .*none\.csv: check `path`$"):
            study({"a": {"trace": trace}, "b": {"trace": trace}}, rates)
    assert "failed" not in capsys.readouterr().out
    result = study({"lacking": {"trace": trace}, "good": {}}, [1.0])
    assert result.table()["arm"].tolist() == ["good"]
    with pytest.raises(StudyError, match=r"none\.csv: check `path` \(lacking, 1 req/s, seed 0\)"):
        result.raise_failures()


def test_a_full_disk_ends_the_study(study, tmp_path, monkeypatch):
    written = []

    def write_until_full(folder, *arguments):
        if written:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(folder)
        write_point(folder, *arguments)

    monkeypatch.setattr("framework.study.sweep.write_point", write_until_full)
    with pytest.raises(OSError, match="No space left"):
        study({"a": {}}, [1.0, 2.0, 3.0])
    assert pd.read_csv(tmp_path / "points.csv")["rate"].tolist() == [1.0]


def test_closed_loops_of_users_take_the_place_of_rates(study, tmp_path):
    """One user is answered in 0.04 s and asks again; the rate is what comes of it, and arms share their number."""
    arms = {"quick": {}, "slow": {"engine": {"step_time": 0.02}}}
    points = study(arms, "auto", users=[1, 4]).table()
    assert points[["arm", "rate", "users"]].values.tolist() == [
        ["quick", 1, 1], ["quick", 4, 4], ["slow", 1, 1], ["slow", 4, 4],
    ]  # fmt: skip
    quick = points[points["arm"] == "quick"]
    assert quick["request_throughput"].tolist() == pytest.approx([25.0, 100.0], rel=0.01)
    assert quick["offered_rate"].iloc[0] == pytest.approx(25.0)
    assert quick["mean_batch_size"].tolist() == pytest.approx([1.0, 4.0])
    assert aggregate(points)["users"].tolist() == [1, 4, 1, 4]
    assert {path.name.split("-")[1] for path in (tmp_path / "points").iterdir()} == {"users1", "users4"}
    open_points = study(arms, [4.0]).table()
    assert open_points["rate"].tolist() == [4.0, 4.0]
    assert "users" not in open_points
