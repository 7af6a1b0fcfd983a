"""Order, sharing and reuse of points, with fake models and engines."""

import errno
import hashlib
import json
from functools import partial
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from framework.core import StudyError
from framework.lora.none import serve_base
from framework.measure.rates import MAX_GROWTH, aggregate, saturation
from framework.quantization.none import quantize
from framework.report.finish import limits
from framework.report.plots import save
from framework.report.sweep_plots import latency_rate, throughput_latency
from framework.scheduler.continuous import ContinuousScheduler
from framework.scheduler.static import StaticScheduler
from framework.study.arms import point_order, resolve_arms
from framework.study.engine_cache import EngineCache
from framework.study.points import Point, arm_digest, write_point
from framework.study.sweep import run_study, table_saved_at_end
from framework.trace.arrivals import poisson
from framework.trace.files import read_table
from framework.trace.lengths import fixed, independent
from framework.trace.recorded import recorded
from framework.trace.synthetic import synthetic
from tests.fake_engine import FakeEngine

LOADED: list[str] = []


def load_fake_model(*, name: str, device: torch.device) -> str:
    LOADED.append(name)
    return name


def build_fake_engine(*, model: str, step_time: float = 0.01, num_blocks: int = 1000) -> FakeEngine:
    return FakeEngine(lambda batch: step_time, num_blocks=num_blocks)


LENGTHS = partial(independent, prompt=partial(fixed, length=8), output=partial(fixed, length=4))
DEFAULTS = {
    "model": partial(load_fake_model, name="a"),
    "quantization": partial(quantize),
    "lora": partial(serve_base),
    "engine": partial(build_fake_engine),
    "trace": partial(synthetic, arrivals=partial(poisson), lengths=LENGTHS, num_requests=48),
    "scheduler": partial(ContinuousScheduler),
    "clock": "virtual",
}


@pytest.fixture
def study(tmp_path):
    LOADED.clear()

    def run(arms, rates, seeds=(0,), slo=None, defaults=DEFAULTS):
        options = {"slo": slo or {}, "device": "cpu", "output_dir": str(tmp_path), "fresh": False}
        return run_study(arms=arms, defaults=defaults, rates=list(rates), seeds=list(seeds), **options)

    return run


def test_arms_that_share_a_model_load_it_once_wherever_they_stand(study):
    other = partial(load_fake_model, name="b")
    arms = {"first": {}, "second": {"model": other}, "third": {"scheduler": {"max_num_seqs": 2}}}
    study(arms, [1.0])
    assert LOADED == ["a", "b"]


def test_a_seed_is_served_by_all_arms_before_the_next_which_begins_with_the_model_at_hand():
    other = partial(load_fake_model, name="b")
    arms = {"first": {}, "second": {"model": other}, "third": {"scheduler": {"max_num_seqs": 2}}}
    assert point_order(resolve_arms(arms, DEFAULTS), [1.0, 2.0], [0, 1]) == [
        *(("first", 1.0, 0), ("third", 1.0, 0), ("third", 2.0, 0), ("first", 2.0, 0)),
        *(("second", 1.0, 0), ("second", 2.0, 0)),
        *(("second", 1.0, 1), ("second", 2.0, 1)),
        *(("first", 1.0, 1), ("third", 1.0, 1), ("third", 2.0, 1), ("first", 2.0, 1)),
    ]


@pytest.mark.parametrize(
    ("fresh", "message"), [(False, "the same command goes on"), (True, "the same command, without fresh=true, goes on")]
)
def test_an_interruption_says_which_command_goes_on(study, fresh, message):
    finished = study({"only": {}}, [1.0])
    with pytest.raises(KeyboardInterrupt, match=message), table_saved_at_end(finished, fresh):
        raise KeyboardInterrupt


def test_a_rate_is_the_same_point_however_it_is_written(study):
    study({"only": {}}, [50])
    table = study({"only": {}}, [50.0]).table()
    assert table[["rate", "seed"]].to_numpy().tolist() == [[50.0, 0.0]]


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


def test_a_dataset_that_is_downloaded_on_the_way_keeps_its_points(study, tmp_path, capsys):
    source = tmp_path / "source.csv"
    source.write_text("arrival_time,num_prompt_tokens,num_output_tokens\n0.0,4,2\n1.0,4,2\n")
    trace = partial(recorded, reader=partial(read_table), path=str(tmp_path / "copy.csv"), url=source.as_uri())
    for is_reused in (False, True):
        result = study({"only": {"trace": trace}}, [None])
        assert ("1 of 1 points reused" in capsys.readouterr().out) == is_reused
    [point] = result.table()["point"]
    record = json.loads((result.folder(point) / "point.json").read_text())
    assert record["files"] == {str(tmp_path / "copy.csv"): hashlib.sha256(source.read_bytes()).hexdigest()}
    (tmp_path / "copy.csv").write_text(source.read_text() + "2.0,4,2\n")
    assert study({"only": {"trace": trace}}, [None]).table()["num_requests"].tolist() == [3]


def test_dropped_requests_leave_the_rate_as_it_was_asked_for(tmp_path):
    path = tmp_path / "mixed.csv"
    rows = [f"{0.5 * index},{4 if index % 2 else 400},2" for index in range(100)]
    path.write_text("\n".join(["arrival_time,num_prompt_tokens,num_output_tokens", *rows]))
    trace = recorded(reader=read_table, path=path, num_requests=20, rate=8.0, max_model_len=100)
    times = [request.arrival_time for request in trace.requests]
    assert len(times) == 20
    assert (len(times) - 1) / (times[-1] - times[0]) == pytest.approx(8.0)
    assert sum(trace.dropped.values()) == 50
    lengths = partial(independent, prompt=partial(fixed, length=8), output=partial(fixed, length=4))
    with pytest.raises(ValueError, match="longer than the model's context"):
        synthetic(arrivals=poisson, lengths=lengths, num_requests=5, rate=1.0, max_model_len=11)


def test_failures_are_named_and_the_rest_is_kept(study, capsys):
    result = study({"good": {}, "tight": {"engine": {"num_blocks": 1}}}, [1.0, 2.0])
    assert result.table()["arm"].tolist() == ["good", "good"]
    with pytest.raises(StudyError, match=r"request 0 needs 3 KV blocks.*\(2 points of tight\)"):
        result.raise_failures()
    assert capsys.readouterr().out.count("needs 3 KV blocks") == 1
    with pytest.raises(StudyError, match=r"\(tight, 3 req/s, seed 0\)"):
        study({"tight": {"engine": {"num_blocks": 1}}}, [3.0])


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


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ({"a": 5}, "arms.a is 5"),
        ({"a": {"engin": {}}}, "unknown component 'engin' in arms.a; did you mean 'engine'"),
        ({"a": {"engine": {"steptime": 1.0}}}, "unknown key 'steptime' in arms.a.engine"),
        ({"a": {"engine": {"num_blocks": "many"}}}, "arms.a.engine.num_blocks is 'many'"),
        ({"a": {"clock": "atomic"}}, "arms.a.clock is 'atomic': input should be 'virtual' or 'wall'"),
        ({"a": {"scheduler": "fifo"}}, "arms.a.scheduler is 'fifo': give another scheduler"),
        ({"a/b": {}}, "arm name 'a/b'"),
    ],
)
def test_bad_arms_are_named(arms, message):
    with pytest.raises(ValueError, match=message):
        resolve_arms(arms, DEFAULTS)


def test_an_arm_without_a_scheduler_is_named():
    with pytest.raises(ValueError, match=r"arms.a has no scheduler"):
        resolve_arms({"a": {}}, {name: value for name, value in DEFAULTS.items() if name != "scheduler"})


def test_warm_up_ends_one_sequence_per_step():
    engines = EngineCache(torch.device("cpu"), lambda message: None)
    engine = engines.get(DEFAULTS)
    requests = synthetic(arrivals=poisson, lengths=LENGTHS, num_requests=48, rate=1.0).requests
    engines.warm_up(DEFAULTS | {"scheduler": partial(StaticScheduler, max_num_seqs=4)}, engine, requests)
    assert engine.batches == [("prefill", [0, 1, 2, 3]), *[("decode", [0, 1, 2, 3])] * 3]
    engines.warm_up(DEFAULTS | {"scheduler": partial(ContinuousScheduler, max_num_seqs=3)}, engine, requests)
    assert engine.batches == [("prefill", [0, 1, 2]), ("decode", [1, 2]), ("decode", [2])]


def test_jobs_that_write_the_same_point_leave_one_whole(tmp_path):
    point = Point("a", 1.0, 0, "digest")
    folder = tmp_path / "points" / point.name
    errors = []

    def write():
        try:
            for _ in range(20):
                write_point(folder, point, pd.DataFrame({"x": [1]}), pd.DataFrame({"y": [2]}), {"slo": {}})
        except OSError as error:
            errors.append(error)

    threads = [Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sorted(path.name for path in folder.iterdir()) == ["point.json", "requests.parquet", "steps.parquet"]
    assert [path.name for path in folder.parent.iterdir()] == [point.name]


def test_a_path_is_a_file_only_where_the_config_names_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    environment = {"code_version": "1", "device": "cpu", "packages": {"torch": "2"}}
    before = arm_digest({"trace": {"path": None}}, environment)
    Path("None").write_text("a file of that name")
    assert arm_digest({"trace": {"path": None}}, environment) == before


def test_figures_take_any_number_of_arms(study):
    arms = {f"arm{index}": {"scheduler": {"max_num_seqs": index + 1}} for index in range(12)}
    result = study(arms, [1.0, 100.0])
    summary, rates = aggregate(result.table()), saturation(result.table())
    figure = throughput_latency(summary)
    FigureCanvasAgg(figure).draw()
    [axes], [legend] = figure.axes, figure.legends
    assert legend.get_window_extent().y0 > axes.get_window_extent().y1  # no curve runs through it
    assert axes.get_window_extent().height > figure.bbox.height / 3
    curves = latency_rate(summary, rates).axes[0].containers
    assert len(curves) == 12
    line = curves[0].lines[0]
    assert line.get_xdata().tolist() == [1.0, 100.0]
    shown = summary[summary["arm"] == "arm0"]["normalized_latency_mean"] * 1e3
    assert line.get_ydata().tolist() == pytest.approx(shown.tolist())


MISSHAPEN = {
    "no metrics": {"metrics": {}},
    "null metrics": {"metrics": None},
    "null trace": {"trace": None},
    "empty trace": {"trace": {}},
    "null engine": {"engine": None},
    "a seed that is text": {"seed": "0"},
    "an arm that is a list": {"arm": ["only"]},
}


@pytest.mark.parametrize(
    "damage", ["truncated", "foreign", "list", "without requests", "empty steps", "cut requests", *MISSHAPEN]
)
def test_a_damaged_point_is_computed_again(study, damage):
    result = study({"only": {}}, [1.0])
    folder = result.folder(result.table()["point"][0])
    if damage == "without requests":
        (folder / "requests.parquet").unlink()
    elif damage == "empty steps":
        (folder / "steps.parquet").write_bytes(b"")
    elif damage == "cut requests":
        (folder / "requests.parquet").write_bytes((folder / "requests.parquet").read_bytes()[:-100])
    elif damage in MISSHAPEN:
        record = json.loads((folder / "point.json").read_text())
        (folder / "point.json").write_text(json.dumps(record | MISSHAPEN[damage]))
    else:
        (folder / "point.json").write_text({"truncated": "{", "foreign": "{}", "list": "[]"}[damage])
    with pytest.warns(UserWarning, match=f"{folder.name} is no finished point"):
        assert study({"only": {}}, [2.0]).table()["rate"].tolist() == [2.0]  # it stops no other
    with pytest.warns(UserWarning, match="is no finished point"):
        assert len(study({"only": {}}, [1.0]).table()) == 2


def test_a_ring_marks_the_last_rate_below_saturation(study):
    arms = {"quick": {}, "slow": {"engine": {"step_time": 0.2}, "scheduler": {"max_num_seqs": 1}}}
    summary = aggregate(study(arms, [0.125, 0.25, 20.0]).table())
    axes = throughput_latency(summary).axes[0]
    rings = [line.get_xydata().tolist() for line in axes.lines if line.get_markerfacecolor() == "none"]
    slow = summary[(summary["arm"] == "slow") & (summary["rate"] == 0.25)].iloc[0]
    assert rings == [[[slow["output_throughput"], 1e3 * slow["normalized_latency_mean"]]], []]  # and the legend's


def test_outputs_of_one_token_have_figures_too(study):
    lengths = partial(independent, prompt=partial(fixed, length=8), output=partial(fixed, length=1))
    trace = partial(synthetic, arrivals=partial(poisson), lengths=lengths, num_requests=20)
    for _ in ("computed", "reused"):
        result = study({"only": {"trace": trace}}, [1.0, 5.0], seeds=[0, 1])
    summary, rates = aggregate(result.table()), saturation(result.table())
    for figure in (latency_rate(summary, rates), throughput_latency(summary)):
        save({"figure": figure}, result.output_dir)


def test_a_capacity_above_what_the_arm_served_is_said_to_be_of_a_short_replay():
    columns = ["arm", "rate", "slo_attainment", "waiting_growth", "sustained_throughput", "num_requests"]
    points = pd.DataFrame(
        [
            ("short", 48.0, 0.95, 0.05, 30.0, 64),
            ("short", 96.0, 0.5, 1.0, 42.0, 64),
            ("long", 24.0, 1.0, 0.0, 24.0, 640),
            ("long", 96.0, 0.5, 1.0, 42.0, 640),
        ],
        columns=columns,
    )
    short, long = limits(SimpleNamespace(slo={"ttft": 0.5}), points)
    assert "served at most 42 req/s" in short
    assert "48 req/s; above what it served" in short
    assert long.endswith("within TTFT ≤ 500 ms: 24 req/s")
