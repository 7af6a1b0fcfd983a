"""A record of another shape is refused, with what is missing or wrong in it."""

import pytest
from pydantic import TypeAdapter

from framework.study.records import POINT_RECORD, check_record, read_known

RECORD = {
    "arm": "a",
    "rate": None,
    "seed": 0,
    "arm_digest": "0123",
    "slo": {"ttft": 1.0},
    "metrics": {"ttft_mean": 0.5, "tpot_mean": None},
    "trace": {"num_requests": 3, "dropped": {}, "offered_rate": 2.0},
    "engine": {
        "num_blocks": 5,
        "block_size": 16,
        "max_model_len": 64,
        "num_adapter_slots": 0,
        "num_adapter_bytes": 0,
        "num_cache_bytes": 7,
    },
}


def test_more_than_is_read_again_is_no_fault():
    check_record(POINT_RECORD, RECORD)
    check_record(POINT_RECORD, RECORD | {"config": {}, "environment": {"device": "cpu"}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": "0"}, "seed: "),
        ({"arm": ["a"]}, "arm: "),
        ({"trace": None}, "trace: "),
        ({"trace": {"dropped": {}}}, "no trace.num_requests, trace.offered_rate"),
        ({"metrics": {"ttft_mean": "fast"}}, "metrics.ttft_mean: "),
        ({"engine": RECORD["engine"] | {"num_cache_bytes": 7.5}}, "engine.num_cache_bytes: "),
    ],
)
def test_what_is_wrong_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        check_record(POINT_RECORD, RECORD | changes)


def test_no_object_at_all():
    with pytest.raises(ValueError, match="the whole: "):
        check_record(POINT_RECORD, [])


def test_a_damaged_file_holds_nothing_and_a_warning_says_what_happens_instead(tmp_path):
    path, shape = tmp_path / "rates.json", TypeAdapter(dict[str, float])
    assert read_known(path, shape, "") == {}
    path.write_text('{"a": 2.5}')
    assert read_known(path, shape, "") == {"a": 2.5}
    for content in ('{"a": "x"}', '{"a"', "[]"):
        path.write_text(content)
        with pytest.warns(UserWarning, match=r"rates\.json is damaged: .*; all is measured again"):
            assert read_known(path, shape, "all is measured again") == {}
