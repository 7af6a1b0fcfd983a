"""What a page says of steps that were not executed."""

from types import SimpleNamespace

from framework.report.modelled import label, modelled_notes, recorded_notes

FOUND = {
    "name": "m",
    "device": "GPU",
    "git_commit": "0123456789",
    "is_older": False,
    "num_steps": 10,
    "num_outside": 0,
    "furthest": {},
    "notes": [],
}


def notes(*changes):
    return list(modelled_notes({"engine": {"modelled": FOUND | change}} for change in changes))


def test_the_cost_model_is_named_with_its_device_and_commit():
    assert notes({}) == ["no step was executed: they take what the cost model m says, of GPU at commit 0123456"]
    assert notes({"git_commit": None, "notes": ["noisy"]})[1] == "cost model m: noisy"
    assert list(modelled_notes([{"engine": {}}])) == []


def test_how_far_the_cost_model_is_from_steps_that_it_was_not_fitted_on_is_told():
    error = {"num_steps": 1234.0, "bias": -0.0084, "median": 0.012, "p99": 32.8, "coverage": 0.56}
    assert notes({"error": error})[1] == (
        "cost model m: on 1,234 steps that were not fitted it is off by -0.8% of all seconds (goal 0.3%), 1.2% of a "
        "step's at the median (goal 1%), 3,280% at the 99th percentile (goal 5%); 56% are within its 90% interval"
    )


def test_older_source_and_steps_outside_are_told():
    furthest = {"num_rows of decode steps": 2.5, "num_copied_blocks of decode steps": None}
    _, older, outside = notes({"is_older": True}, {"num_outside": 5, "furthest": furthest}, {"num_outside": 1})
    assert older.startswith("the source that computes steps has changed")
    assert outside == (
        "6 of 30 steps are outside of what was fitted: num_copied_blocks of decode steps none was, "
        "num_rows of decode steps 2.5 times as far"
    )


def test_captions_say_which_arms_are_modelled():
    arms = {name: SimpleNamespace(is_modelled=name != "x", is_recorded=False) for name in ("a", "b", "x")}
    assert label(arms) == " (modelled: a, b)"
    assert label({"a": arms["a"]}) == " (modelled)"
    assert label({"x": arms["x"]}) == ""
    repeated = SimpleNamespace(is_modelled=True, is_recorded=True)
    assert label({"r": repeated}) == " (recorded)"
    assert label(arms | {"r": repeated}) == " (modelled: a, b; recorded: r)"


def recorded(*changes):
    record = {"name": "runs", "device": "GPU", "git_commit": None, "is_older": False, "has_outputs": True}
    record |= {"num_steps": 200, "num_replayed": 200, "num_seen": 0, "num_outside": 0, "furthest": {}}
    return list(recorded_notes({"engine": {"recorded": record | change}} for change in changes))


def test_shares_of_recorded_steps_are_told():
    assert recorded({}) == [
        "no step was executed: they take what was recorded in runs, on GPU",
        "of 200 steps 100.0% replayed",
    ]
    assert list(recorded_notes([{"engine": {}}])) == []
    others = {"num_replayed": 0, "num_seen": 100, "num_outside": 20, "furthest": {"num_pairs of prompt steps": 1.5}}
    told = recorded({"is_older": True}, others | {"has_outputs": False})
    assert told[1] == "the source that a replay runs through has changed since runs was recorded"
    assert told[2] == (
        "of 400 steps 50.0% replayed, 25.0% as steps that were seen, 20.0% interpolated, 5.0% outside of what was "
        "recorded (num_pairs of prompt steps 1.5 times as far)"
    )
    assert told[3].startswith("1 of 2 points have requests that were not recorded")
