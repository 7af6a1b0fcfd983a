"""Recorded traces: the order of the steps, where a file is looked for, and the shipped YAMLs."""

import hashlib
from functools import partial
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from framework.core import Request, Trace
from framework.paths import ROOT, locate
from framework.trace.arrivals import constant, of_trace, poisson
from framework.trace.files import read_azure, read_mooncake, read_table
from framework.trace.lengths import fixed, independent
from framework.trace.recorded import recorded
from framework.trace.synthetic import synthetic
from framework.trace.transforms import mean_rate

SAMPLE = "traces/sample.csv"
CONF = ROOT / "conf" / "trace"
PAIR = partial(independent, prompt=partial(fixed, length=8), output=partial(fixed, length=4))

sample = partial(recorded, reader=read_table, path=SAMPLE)


def hundred(path: Path) -> Trace:
    return Trace([Request(index, 1.0 + index, 10, 5) for index in range(100)], {"failed": 3})


def test_as_recorded() -> None:
    assert sample() == read_table(ROOT / SAMPLE)


def test_window_first_and_stretch_in_this_order() -> None:
    trace = recorded(reader=hundred, path=SAMPLE, window=[11, None], num_requests=5, rate=2.0)
    assert [request.arrival_time for request in trace.requests] == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert [request.request_id for request in trace.requests] == [0, 1, 2, 3, 4]
    assert trace.dropped == {"failed": 3}


def test_thinning_comes_before_first() -> None:
    thinned = partial(recorded, reader=hundred, path=SAMPLE, rescale="thin", rate=0.5)
    trace = thinned(num_requests=20, seed=1)
    assert len(trace.requests) == 20
    assert trace.requests[-1].arrival_time > 25
    assert trace.requests[0].arrival_time == 0.0
    assert trace == thinned(num_requests=20, seed=1)
    assert trace != thinned(num_requests=20, seed=2)


@pytest.mark.parametrize("rate", [0.5, 4.0, 64.0])
def test_stretching_reaches_any_rate_with_the_same_requests(rate: float) -> None:
    trace = sample(num_requests=100, rate=rate, seed=9)
    assert mean_rate(trace) == pytest.approx(rate, rel=1e-12)
    assert [r.num_prompt_tokens for r in trace.requests] == [r.num_prompt_tokens for r in sample().requests[:100]]


def test_clipping_shortens_prefixes() -> None:
    trace = recorded(reader=read_mooncake, path="traces/sample_mooncake.jsonl", max_prompt_tokens=513)
    assert {len(request.prefix_ids) for request in trace.requests} == {2}


def test_bad_choices() -> None:
    with pytest.raises(ValueError, match="rescale='slow' is not one of 'stretch', 'thin', 'all_at_once'"):
        sample(rescale="slow")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"window=\[1\] is not a pair \[start, end\] of seconds"):
        sample(window=[1])
    with pytest.raises(ValueError, match="thinning cannot raise the arrival rate to 9 requests/s: the trace has 4;"):
        sample(rescale="thin", rate=9.0)


def test_a_relative_path_is_looked_for_here_then_in_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert locate(SAMPLE) == ROOT / SAMPLE
    (tmp_path / "traces").mkdir()
    (tmp_path / SAMPLE).touch()
    assert locate(SAMPLE) == Path(SAMPLE)
    assert locate(tmp_path / "absent.csv") == tmp_path / "absent.csv"
    both = f"no trace file at {tmp_path}/absent.csv or {ROOT}/absent.csv: check"
    with pytest.raises(FileNotFoundError, match=both):
        recorded(reader=read_table, path="absent.csv")
    monkeypatch.chdir(ROOT)
    for path in ("absent.csv", f"{ROOT}/absent.csv"):
        with pytest.raises(FileNotFoundError, match=f"no trace file at {ROOT}/absent.csv: check"):
            recorded(reader=read_table, path=path)


def test_a_missing_file_is_downloaded_once(tmp_path: Path) -> None:
    source = ROOT / "traces" / "sample_azure_2023.csv"
    target = tmp_path / "azure.csv"
    load = partial(recorded, reader=read_azure, file=target)
    assert len(load(url=source.as_uri()).requests) == 40
    assert target.read_bytes() == source.read_bytes()
    assert len(load(url="http://127.0.0.1:9/never-asked").requests) == 40


def test_a_file_put_there_by_hand_has_to_be_the_published_one_and_a_path_is_read_as_it_is(tmp_path: Path) -> None:
    source = ROOT / "traces" / "sample_azure_2023.csv"
    target = tmp_path / "azure.csv"
    lines = source.read_bytes().splitlines(keepends=True)
    sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
    load = partial(recorded, reader=read_azure, file=target, url=source.as_uri(), sha256=sha256)
    target.write_bytes(b"".join(lines[:21]))  # cut short
    with pytest.raises(ValueError, match=r"azure.csv is not the published file: its SHA-256 is"):
        load()
    assert len(load(path=target).requests) == 20
    target.write_bytes(b"".join(lines))
    assert len(load().requests) == 40


def test_a_trace_needs_a_file() -> None:
    with pytest.raises(ValueError, match="name your own trace file, as path"):
        recorded(reader=read_table)


def test_a_recorded_trace_can_be_sent_all_at_once() -> None:
    trace = recorded(reader=hundred, path=SAMPLE, window=[11, None], num_requests=5, rescale="all_at_once")
    assert [request.arrival_time for request in trace.requests] == [0.0] * 5
    with pytest.raises(ValueError, match=r"rate=2.0: .* set rates=\[null\]"):
        sample(rescale="all_at_once", rate=2.0)


def test_a_rate_whose_span_the_clock_cannot_resolve_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rate=1e-18: 100 requests at this rate last 9.9e\+19 s"):
        recorded(reader=hundred, path=SAMPLE, rate=1e-18)
    with pytest.raises(ValueError, match=r"rate=1e-18: 5 requests at this rate last 4e\+18 s"):
        synthetic(arrivals=constant, lengths=PAIR, num_requests=5, rate=1e-18)
    assert recorded(reader=hundred, path=SAMPLE, rate=1e-7).requests[-1].arrival_time == pytest.approx(99e7)


def test_yaml_files_say_what_the_readme_says() -> None:
    readme = (ROOT / "traces" / "README.md").read_text()
    configs = {path.stem: OmegaConf.load(path) for path in CONF.glob("*.yaml")}
    downloads = {name: config for name, config in configs.items() if "url" in config}
    assert len(downloads) == 9
    for name, config in downloads.items():
        assert f"| `{name}` | `{Path(config['file']).name}`" in readme
        assert f"| <{config['url']}> | `{config['sha256']}` |" in readme
        assert Path(config["file"]).parent == Path("traces")


def test_a_file_with_the_arrivals_of_a_law_or_of_another_file() -> None:
    trace = sample(num_requests=5, arrivals=constant, rate=2.0)
    assert [one.arrival_time for one in trace.requests] == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert [one.num_prompt_tokens for one in trace.requests] == [one.num_prompt_tokens for one in sample().requests[:5]]
    other = partial(recorded, reader=hundred, path=SAMPLE)
    trace = sample(num_requests=5, arrivals=partial(of_trace, trace=other))
    assert [one.arrival_time for one in trace.requests] == [0.0, 1.0, 2.0, 3.0, 4.0]
    drawn = [sample(num_requests=9, arrivals=poisson, rate=2.0, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    with pytest.raises(ValueError, match="rescale='thin' keeps or drops the file's times, and arrivals gives others"):
        sample(arrivals=constant, rescale="thin", rate=2.0)


def test_a_closed_loop_has_no_arrival_times_unless_it_has_a_rate() -> None:
    trace = sample(num_requests=5, max_concurrency=2)
    assert {one.arrival_time for one in trace.requests} == {0.0}
    assert trace.max_concurrency == 2
    assert mean_rate(sample(max_concurrency=2, rate=3.0)) == pytest.approx(3.0)
    loop = synthetic(arrivals=constant, lengths=PAIR, num_requests=4, max_concurrency=2)
    assert {one.arrival_time for one in loop.requests} == {0.0}
    with pytest.raises(ValueError, match="max_concurrency=0 is not a whole number of at least 1"):
        sample(max_concurrency=0)
