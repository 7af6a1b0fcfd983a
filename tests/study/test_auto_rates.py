"""`rates: auto`: from idle to overload for every arm, measured once in a folder, the same for all its jobs."""

import json
import math
from functools import partial
from threading import Thread

import pytest

from framework.errors import StudyError
from framework.measure.rates import MAX_GROWTH
from framework.study import auto_rates
from framework.study.auto_rates import rates_to_try, spread
from framework.trace.arrivals import all_at_once
from framework.trace.synthetic import synthetic
from tests.study.fake_study import DEFAULTS, LENGTHS, run_fake_study

ARMS = {
    "quick": {"scheduler": {"max_num_seqs": 1}},
    "slow": {"engine": {"step_time": 0.1}, "scheduler": {"max_num_seqs": 1}},
}  # of 25 and 2.5 requests/s: each takes four steps

AT_ONCE = partial(synthetic, arrivals=partial(all_at_once), lengths=LENGTHS, num_requests=8)


def run_auto(folder, arms=ARMS, seeds=(0,), **options):
    return run_fake_study(folder, arms, "auto", seeds, **options)


def test_six_rates_by_equal_factors_to_two_digits():
    assert spread({"slow": 4.0, "quick": 16.0}) == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
    assert spread({"only": 123.0}) == [31.0, 47.0, 71.0, 110.0, 160.0, 250.0]


def test_the_knee_of_every_arm_lies_between_the_rates(tmp_path, capsys):
    table = run_auto(tmp_path).table()
    [record] = json.loads((tmp_path / "rates.json").read_text()).values()
    assert record["served_at_most"] == pytest.approx({"quick": 25.0, "slow": 2.5}, rel=0.05)
    assert record["rates"] == pytest.approx([0.62, 1.5, 3.6, 8.6, 21, 50], rel=0.1)
    assert sorted(set(table["rate"])) == record["rates"]
    grows = (table.set_index(["arm", "rate"])["waiting_growth"] > MAX_GROWTH).groupby("arm").sum()
    assert 1 <= grows["quick"] < grows["slow"] < 6
    assert "served at most: slow 2." in capsys.readouterr().out


def test_multiples_are_of_what_one_arm_serves(tmp_path):
    rates = {"of": "slow", "multiples": [0.5, 3]}
    assert sorted(set(run_fake_study(tmp_path, ARMS, rates).table()["rate"])) == pytest.approx([1.25, 7.5], rel=0.05)
    with pytest.raises(ValueError, match=r"rates\.of='slw' is no arm; did you mean 'slow'"):
        run_fake_study(tmp_path, ARMS, {"of": "slw", "multiples": [1]})
    with pytest.raises(ValueError, match=r"rates\.multiples=\[0\]: give at least one, each a finite number above 0"):
        run_fake_study(tmp_path, ARMS, {"of": "slow", "multiples": [0]})


def test_rates_are_measured_once_for_equal_arms(tmp_path, monkeypatch, capsys):
    before = run_auto(tmp_path).table()["rate"].tolist()
    monkeypatch.setattr(auto_rates, "measure_arm", lambda *_: 1e3)
    assert run_auto(tmp_path).table()["rate"].tolist() == before
    assert "12 of 12 points reused" in capsys.readouterr().out
    assert max(run_auto(tmp_path, {"quick": ARMS["quick"]}).table()["rate"]) == 2000.0  # other arms
    assert len(json.loads((tmp_path / "rates.json").read_text())) == 2


@pytest.mark.nightly
def test_jobs_in_one_folder_agree(tmp_path, monkeypatch):
    served = iter(range(10, 1000))
    monkeypatch.setattr(auto_rates, "measure_arm", lambda *_: float(next(served)))
    tables = []

    def job(seed):
        tables.append(run_auto(tmp_path, seeds=(seed,)).table())

    jobs = [Thread(target=job, args=(seed,)) for seed in range(3)]
    for each in jobs:
        each.start()
    for each in jobs:
        each.join()
    assert len(tables) == 3
    assert len(set(run_auto(tmp_path).table()["rate"])) == 6


@pytest.mark.nightly
def test_a_damaged_file_is_measured_again(tmp_path):
    run_auto(tmp_path)
    (tmp_path / "rates.json").write_text('{"a": {"rates": "all"}}')
    with pytest.warns(UserWarning, match=r"rates\.json is damaged"):
        run_auto(tmp_path)


def test_an_arm_that_fails_is_told_by_its_points(tmp_path):
    tight = {"engine": {"num_blocks": 1}}
    study = run_auto(tmp_path, {"good": ARMS["quick"], "tight": tight})
    assert len(study.table()) == 6
    with pytest.raises(StudyError, match=r"\(6 points of tight\)"):
        study.raise_failures()
    with pytest.raises(StudyError, match=r"no rate can be chosen, since no arm serves: .*KV blocks"):
        run_auto(tmp_path, {"tight": tight})


def test_requests_that_arrive_all_at_once_are_replayed_as_they_are(tmp_path, capsys):
    table = run_auto(tmp_path, seeds=(0, 1), defaults=DEFAULTS | {"trace": AT_ONCE}).table()
    assert set(table["rate"]) == {math.inf}
    assert len(table) == 4  # two arms and two seeds
    output = capsys.readouterr().out
    assert "rates: null, since another rate would not change when the requests arrive" in output
    assert "[4/4]" in output
    assert not (tmp_path / "rates.json").exists()  # nothing was measured


def test_an_arm_without_a_rate_leaves_the_choice_to_the_others(tmp_path):
    study = run_auto(tmp_path, {"quick": ARMS["quick"], "at_once": ARMS["quick"] | {"trace": AT_ONCE}})
    assert set(study.table()["arm"]) == {"quick"}
    with pytest.raises(StudyError, match=r"no arrival rate; set rates=\[null\] \(at_once"):
        study.raise_failures()


def test_a_trace_is_tried_with_a_rate_that_it_can_have():
    assert rates_to_try([2.0, None], AT_ONCE, 0) == [2.0, None]
    assert rates_to_try("auto", AT_ONCE, 0) == [None]
    assert rates_to_try("auto", DEFAULTS["trace"], 0) == [1.0]
