"""run.py as a user meets it: studies on the smallest model, bad input, resuming, interruption, parallel jobs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from hydra.errors import InstantiationException

import run
from framework.catalog import groups
from framework.command_line import expand_preset
from framework.paths import ROOT
from tests.report.html_page import Page, check_page
from tests.thinning import every_nth

COLUMNS = (
    "arm,rate,seed,num_requests,num_completed,num_refused,duration_s,request_throughput,output_throughput,total_throughput,"
    "output_throughput_per_gpu,user_speed_mean,user_speed_p50,gpu_hours_per_million_tokens,"
    "ttft_mean,ttft_p50,ttft_p90,ttft_p95,ttft_p99,tpot_mean,tpot_p50,tpot_p90,tpot_p95,tpot_p99,"
    "itl_mean,itl_p50,itl_p90,itl_p95,itl_p99,"
    "scheduling_delay_mean,scheduling_delay_p50,scheduling_delay_p90,scheduling_delay_p95,scheduling_delay_p99,"
    "e2e_mean,e2e_p50,e2e_p90,e2e_p95,e2e_p99,"
    "normalized_latency_mean,normalized_latency_p50,slo_attainment,goodput,good_throughput,mean_batch_size,num_preemptions,num_swaps,prefix_hits"
)


@pytest.fixture
def smallest(smallest: list[str]) -> list[str]:
    """The sweep that is quickest; what is tested here is common to all."""
    return ["experiment=continuous_batching", *smallest]


def test_the_default_study_is_multi_lora(cli):
    code, output = cli("--cfg", "job")
    assert code == 0
    assert "_target_: experiments.lora.multi_lora.run" in output
    code, output = cli("--cfg", "job", "--package", "model")  # a group's name, which chooses none
    assert code == 0, output
    assert "_target_: framework.models." in output
    assert expand_preset(["preset=turns"]) == ["experiment=multi_lora/turns"]


def test_a_sweep_takes_the_presets_of_each_study():
    sweep = ["-m", "experiment=kv_cache,batching", "preset=course"]
    assert expand_preset(sweep) == ["experiment=kv_cache/course,batching/course", "-m"]
    assert expand_preset(["preset=turns,llama_8b"]) == ["experiment=multi_lora/turns,multi_lora/llama_8b"]
    sweep = ["experiment=papers/slora,papers/punica", "preset=llama_8b"]
    assert expand_preset(sweep) == ["experiment=papers/slora/llama_8b,papers/punica/llama_8b"]


@pytest.mark.usefixtures("drawn")
def test_a_study_writes_points_tables_and_figures(cli, smallest, tmp_path):
    code, output = cli(*smallest, "rates=[50,2000]", "seeds=[0,1]")
    assert code == 0, output
    folder = tmp_path / "outputs" / "continuous_batching"
    table = pd.read_csv(folder / "points.csv")
    assert list(table.columns[: COLUMNS.count(",") + 1]) == COLUMNS.split(",")
    assert table[["arm", "rate", "seed"]].apply(tuple, axis=1).tolist() == [
        (arm, rate, seed) for arm in ("static", "continuous") for rate in (50.0, 2000.0) for seed in (0, 1)
    ]
    assert (table["num_completed"] == 6).all()
    figures = {path.name for path in (folder / "figures").iterdir()}
    names = ("throughput_latency", "pareto", "latency_rate", "attainment_rate", "timeline", "batch_and_cache")
    assert figures == {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    assert "reproduce with: python run.py " in output
    assert "points.csv" in output
    page = Page(folder / "report.html")
    check_page(page, folder)
    assert page.count("svg") == 6
    assert "python run.py " in page.text
    assert len(page.rows) == 1 + 2 * 2  # the header, arms × rates
    for point in table["point"]:
        record = json.loads((folder / "points" / point / "point.json").read_text())
        assert record["config"]["scheduler"]["_target_"].startswith("framework.scheduler.")
        assert record["environment"]["packages"]["torch"]
        requests = pd.read_parquet(folder / "points" / point / "requests.parquet")
        steps = pd.read_parquet(folder / "points" / point / "steps.parquet")
        assert len(requests) == 6
        assert (requests["ttft"] > 0).all()
        assert steps["num_output_tokens"].sum() == requests["num_output_tokens"].sum()
        parts = steps[["schedule", "prepare", "device"]].sum(axis=1)
        assert (parts > 0).all()
        assert (parts <= steps["elapsed"] * 1.000001).all()


CHANGES = [  # overrides, how many of the two points are still of use
    (["rates=[50,60]"], 2),
    (["slo={ttft: 9.0}"], 2),  # only the metrics are computed again
    (["seeds=[1]"], 0),
    (["fresh=true"], 0),
]


@pytest.mark.parametrize("changes", [[], pytest.param(CHANGES, marks=pytest.mark.nightly)])
def test_finished_points_are_reused_until_something_changes(cli, smallest, changes):
    for overrides, expected in [([], 0), ([], 2), (["arms.static.scheduler.max_num_seqs=2"], 1), *changes]:
        code, output = cli(*smallest, "rates=[50]", *overrides)
        assert code == 0, output
        assert output.count("(reused)") == expected


@pytest.mark.nightly
def test_a_changed_trace_file_is_not_reused(cli, smallest, tmp_path):
    trace = tmp_path / "mine.csv"
    for num_output_tokens, expected in ((3, 0), (3, 2), (2, 0)):
        trace.write_text(f"arrival_time,num_prompt_tokens,num_output_tokens\n0.0,4,{num_output_tokens}\n0.5,4,2\n")
        overrides = [*smallest, "trace=csv", "trace.num_requests=null", f"trace.path={trace}", "rates=[null]"]
        code, output = cli(*overrides)
        assert code == 0, output
        assert output.count("(reused)") == expected


@pytest.mark.nightly
def test_an_slo_changes_attainment_without_a_new_replay(cli, smallest, tmp_path):
    for limit, attainment in ((100.0, 1.0), (1e-9, 0.0)):
        cli(*smallest, "rates=[50]", f"slo={{ttft: {limit}, tpot: 100.0}}")
        table = pd.read_csv(tmp_path / "outputs/continuous_batching/points.csv")
        assert (table["slo_attainment"] == attainment).all()


def test_one_failing_arm_does_not_lose_the_other(cli, smallest, tmp_path):
    tight = "{scheduler: ${arms.continuous.scheduler}, engine: {num_blocks: 1, block_size: 1, kv_cache_bytes: null}}"
    code, output = cli(*smallest, "rates=[50]", f"+arms.tight={tight}")
    assert code == 1
    assert "none of 6 requests can be served" in output
    assert "Traceback" not in output
    table = pd.read_csv(tmp_path / "outputs/continuous_batching/points.csv")
    assert table["arm"].tolist() == ["static", "continuous"]
    assert (tmp_path / "outputs/continuous_batching/figures/timeline.png").exists()
    assert "none of 6 requests can be served" in Page(tmp_path / "outputs/continuous_batching/report.html").text


@pytest.mark.nightly
def test_the_course_preset_prints_the_lessons_ratio(cli, smallest, tmp_path):
    kept = [override for override in smallest if not override.startswith("trace.")]
    code, output = cli("preset=course", *kept, "seeds=[0]")
    assert code == 0, output
    assert "reported: 3.4×" in output
    assert output.count(" req/s (middle 80% of completions)") == 2  # not those that the table counts as done
    assert "reported: 3.4×" in Page(tmp_path / "outputs/continuous_batching/course/report.html").text
    folder = tmp_path / "outputs/continuous_batching/course"
    table = pd.read_csv(folder / "points.csv")
    assert (table["num_requests"] == 32).all()
    num_steps = [len(pd.read_parquet(folder / "points" / point / "steps.parquet")) for point in table["point"]]
    assert num_steps[0] == 400  # four batches of 100 tokens
    assert num_steps[0] / num_steps[1] > 2.5


GOOD_TRACE = "arrival_time,num_prompt_tokens,num_output_tokens\n0.0,4,2\n1.0,4,2\n"


@pytest.mark.parametrize(
    ("overrides", "trace", "message"),
    every_nth(
        3,
        [
            (["rats=[1]"], None, "unknown key 'rats' in the study; did you mean 'rates'?; allowed: "),
            (["experimnt=generate"], None, "unknown key 'experimnt' in the study; did you mean 'experiment'?"),
            (["trace=csv", "trace.path=my träce.csv"], None, "quote the value, 'trace.path=\"my träce.csv\"'"),
            (["modle=gpt2"], None, "unknown key 'modle' in the study; did you mean 'model'?"),
            (["trace.num_requets=5"], None, "unknown key 'num_requets' in trace; did you mean 'num_requests'?"),
            (["model.dtpye=float32"], None, "unknown key 'dtpye' in model; did you mean 'dtype'?"),
            (
                ["arms.tight={}"],
                None,
                "unknown key 'tight' in arms; allowed: static, continuous (to add it: +arms.tight=…)",
            ),
            (["trace.num_requests.most=5"], None, "unknown key 'most' in trace.num_requests (to add it: "),
            (
                ["scheduler=x"],
                None,
                "scheduler=x: there is no such scheduler; allowed: chunk_only, continuous, hybrid_only",
            ),
            (["experiment=generat"], None, "there is no such experiment; did you mean 'generate'?"),
            (["arms.static.scheduler.max_wait=soon"], None, "arms.static.scheduler.max_wait is 'soon'"),
            (["+arms.static.scheduler.max_seats=3"], None, "unknown key 'max_seats' in arms.static.scheduler"),
            (["rates=[0]"], None, "rates must be positive finite numbers"),
            (["rates=[-1]"], None, "-1"),
            (["rates=[.nan]"], None, "nan"),
            (["rates=[inf]"], None, "set rates=[null] and trace=all_at_once"),
            (["rates=[1e-18]"], None, "rate=1e-18: 6 requests at this rate last 5e+18 s"),
            (["rates=[]"], None, "rates is empty"),
            (["rates=[1e300]"], None, "rates must be at most 1,000,000 requests/s, not 1e+300"),
            (["output_dir="], None, "output_dir is empty: name a folder"),
            (["engine.num_threads=100000"], None, "engine.num_threads 100000 must be from 1 to 1024"),
            (["rates=[null]"], None, "a synthetic trace has no recorded rate; set rates=[…]"),
            (["rates=[fast]"], None, r"rates[0] is 'fast'"),
            (["seeds=[-1]"], None, "seeds must be at least 0, not -1"),
            (["+slo={tbt: 1}"], None, "unknown SLO metric 'tbt'"),
            (["clock=atomic"], None, "clock is 'atomic': input should be 'virtual' or 'wall'"),
            (["device=cuda"], None, "torch sees no CUDA device"),
            (["device=tpu"], None, "device=tpu is not one of auto, cpu, cuda"),
            (["trace=csv", "trace.path=none.csv"], None, "none.csv"),
            (["trace=csv"], None, "trace.path"),
            ([], "", "bad.csv"),
            ([], GOOD_TRACE[: GOOD_TRACE.index("\n") + 1], "the trace is empty"),
            ([], GOOD_TRACE + "0.5,4,2\n", "row 3"),
            ([], GOOD_TRACE + "2.0,four,2\n", "column 'num_prompt_tokens'"),
            ([], GOOD_TRACE + "2.0,4,0\n", "column 'num_output_tokens'"),
            ([], GOOD_TRACE + "inf,4,2\n", "column 'arrival_time'"),
            ([], GOOD_TRACE + "1e18,4,2\n", "row 3 (line 4), column 'arrival_time': '1e+18' is not at most"),
            (["model=local", "model.path=."], None, "config.json"),
            (
                ["output_dir=bad.csv"],
                GOOD_TRACE,
                "error: output_dir=bad.csv: bad.csv is a file, where a folder belongs",
            ),
            (["output_dir=bad.csv/x"], GOOD_TRACE, "bad.csv is a file, where a folder belongs"),
            (["_target_=7"], None, "the config: _target_ is 7: name a class or a function"),
            (["_target_=framework.core.Request"], None, "framework.core.Request runs no study"),
            (["~_target_"], None, "has no _target_: name the function that runs the study"),
            (["trace._target_=os.sep"], None, "trace: os.sep is '/': name a class or a function"),
            (["hydra.run.dir=bad.csv/x"], GOOD_TRACE, "hydra.run.dir=bad.csv/x cannot be made"),
            (["engine.top_p=2"], None, "top_p"),
            (["engine.kv_dtype=int4"], None, "engine.kv_dtype is 'int4'"),
            (["engine.num_blocks=1", "engine.kv_cache_bytes=null"], None, "KV blocks"),
        ],
    ),
)
def test_bad_input_is_one_clear_message(cli, smallest, tmp_path, overrides, trace, message):
    if overrides and overrides[0].startswith(("trace=", "model=")):
        smallest = [override for override in smallest if override.startswith(("tracking", "experiment"))]
    if trace is not None:
        (tmp_path / "bad.csv").write_text(trace)
        smallest = [override for override in smallest if not override.startswith("trace.")]
        overrides = ["trace=csv", f"trace.path={tmp_path / 'bad.csv'}", "rates=[null]", *overrides]
    code, output = cli(*smallest, *overrides)
    assert code == 1
    assert message in output
    assert "Traceback" not in output
    assert not list(tmp_path.rglob("point.json"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rates=[0]"], "rates must be positive"),
        (["trace=csv"], "trace.path has no value: give it one"),
        (["rates=[${most}]"], "rates[0]: Interpolation key 'most' not found"),
        (["-m", "rates=[0]"], "rates must be positive"),
        (["trace.num_requets=3"], "did you mean 'num_requests'?"),
        (["-m", "trace.num_requets=3,4"], "unknown key 'num_requets' in trace; did you mean 'num_requests'?"),
        (["engine.blok_size=8", "-m", "rates=[1],[2]"], "did you mean 'block_size'?"),
        (["-m", "experiment=continuous_batching,kv_cache", "trace.num_requests=3"], "unknown key 'trace'"),
        (["-m", "experiment=continuous_batching,kv_cach"], "did you mean 'kv_cache'?"),
        (["experiment=continuous_batching,kv_cache"], "add --multirun"),
        (["hydra/launcher=jobli"], "did you mean 'joblib'?"),
        (["~arms.lop"], "'arms.lop' does not exist"),
        (["rates={"], "rates={ cannot be read: "),
        (["generate"], "'generate' is no override: key=value"),
        (["experiment=kv_cache", "tracking=wandb"], "experiment=kv_cache has no use for tracking=wandb: leave it out"),
        (["experiment=lora", "trace=sample"], "experiment=lora has no use for trace=sample: leave it out"),
        (["experiment=kv_cache", "+trace=sample"], "experiment=kv_cache has no use for trace=sample: leave it out"),
        (
            ["experiment=lorax", "lora=loop"],
            "experiment=lorax has no use for lora=loop: leave it out, or name the place",
        ),
        (["-m", "experiment=multi_lora,kv_cache", "lora=loop,merged"], "experiment=kv_cache has no use for lora=loop"),
        (["preset=turns", "preset=llama_8b"], "preset=turns preset=llama_8b: a study takes one preset"),
        (["preset=slora"], "experiment=multi_lora preset=slora has moved: experiment=papers/slora"),
        (
            ["experiment=multi_lora", "preset=punica_8b"],
            "multi_lora preset=punica_8b has moved: experiment=papers/punica preset=llama_8b",
        ),
        (["model=null"], "model=null: there is no such model"),
    ],
)
def test_an_error_is_one_line(cli, arguments, message):
    code, output = cli(*arguments)
    assert code == 1
    assert output.startswith("error: ")
    assert message in output
    assert len(output.splitlines()) == 1


@pytest.mark.nightly
def test_a_job_that_fails_does_not_stop_the_sweep(cli, smallest, tmp_path):
    code, output = cli(*smallest, "-m", "rates=[50],[0],[60]")
    assert code == 1
    [error] = [line for line in output.splitlines() if line.startswith("error: ")]
    assert "not 0 (python run.py " in error
    assert "'rates=[0]'" in error
    folder = tmp_path / "outputs" / "continuous_batching"
    assert sorted(pd.read_csv(folder / "points.csv")["rate"]) == [50.0, 50.0, 60.0, 60.0]
    assert (folder / "report.html").exists()


def test_help_lists_studies_and_overrides(cli):
    code, output = cli("--help")
    assert code == 0
    for text in ("Studies", "fidelity", "model=gpt2", "--cfg job", "preset=course"):
        assert text in output


@pytest.mark.parametrize("study", every_nth(6, groups()["experiment"]))
def test_every_study_shows_its_config(cli, study):
    code, output = cli(f"experiment={study}", "--cfg", "job")
    assert code == 0
    assert "_target_: experiments." in output


def test_the_report_gathers_the_studies_on_disk(cli, smallest, tmp_path):
    code, output = cli("experiment=report")
    assert code == 1
    assert "no study has ended in outputs" in output
    code, output = cli("experiment=generate", "num_output_tokens=2", *smallest[1:3])
    assert code == 0, output
    headers = Page(tmp_path / "outputs/generate/report.html").rows[0]
    assert headers == ["adapter", "prompt", "output", "TTFT (ms)", "tokens/s"]
    code, output = cli("experiment=report")
    assert code == 0, output
    check_page(Page(tmp_path / "outputs/index.html"), tmp_path / "outputs")


def test_full_errors_on_request(cli, smallest, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(InstantiationException) as raised:
        cli(*smallest, "rates=[0]")
    assert "rates must be positive" in str(raised.value.__cause__)
    with pytest.raises(ValueError, match="unknown key 'num_requets'"):
        cli(*smallest, "trace.num_requets=3")


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        ("+arms.short.model.max_model_len=64", "longer than the model's context of 64 tokens"),
        ("+arms.short.engine={num_blocks: 4, kv_cache_bytes: null}", "longer than the KV cache, which has 4 KV blocks"),
    ],
)
def test_refused_requests_are_offered_and_not_met(cli, smallest, tmp_path, limit, reason):
    """One arm refuses what the others serve: all are offered the same requests."""
    arm = "+arms.short.scheduler=${arms.continuous.scheduler}"
    code, output = cli(*smallest, "rates=[50]", "trace.max_prompt_tokens=500", arm, limit, "slo={ttft: 100, tpot: 100}")
    assert code == 0, output
    folder = tmp_path / "outputs/continuous_batching"
    table = pd.read_csv(folder / "points.csv").set_index("arm")
    assert table["num_requests"].to_dict() == {"static": 6, "continuous": 6, "short": 6}
    assert len(set(table["offered_rate"])) == 1
    num_refused = table["num_refused"]["short"]
    assert 0 < num_refused < 6
    assert table["num_completed"].to_dict() == {"static": 6, "continuous": 6, "short": 6 - num_refused}
    assert table["slo_attainment"].to_dict() == {"static": 1, "continuous": 1, "short": (6 - num_refused) / 6}
    record = json.loads((folder / "points" / table["point"]["short"] / "point.json").read_text())
    [[told, count]] = record["trace"]["refused"].items()
    assert told.startswith(reason)
    assert count == num_refused
    assert f"{num_refused} requests refused: {reason}" in output
    assert f"short: {num_refused} requests of each point were refused" in Page(folder / "report.html").text
    requests = pd.read_parquet(folder / "points" / table["point"]["short"] / "requests.parquet")
    refused = requests[requests["refused"] == told]
    assert len(refused) == num_refused
    assert refused[["scheduled_time", "first_token_time", "finish_time", "ttft", "e2e"]].isna().all(axis=None)


def test_a_tilde_in_output_dir_is_the_home_folder(cli, smallest, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    code, output = cli(*smallest, "rates=[50]", 'output_dir="~/x"')
    assert code == 0, output
    check_page(Page(tmp_path / "home/x/report.html"), tmp_path / "home/x")
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


@pytest.mark.nightly
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_that_lacks_characters_shows_others_and_files_are_utf_8(smallest, tmp_path, encoding):
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # of files, unless they are told
    process = spawn(*smallest, "rates=[50]", cwd=tmp_path, PYTHONIOENCODING=encoding, **locale)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "continuous: saturated ?" in output
    folder = tmp_path / "outputs/continuous_batching"
    assert "saturated –" in (folder / "report.html").read_text(encoding="utf-8")
    process = spawn("--help", cwd=tmp_path, PYTHONIOENCODING=encoding, **locale)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output


def spawn(*overrides: str, cwd: Path, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "run.py"), *overrides],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding=environment.get("PYTHONIOENCODING"),
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    )


def test_an_interruption_while_an_object_is_deleted_is_not_lost(monkeypatch):
    class Interrupted:
        def __del__(self):
            raise KeyboardInterrupt

    def work():
        Interrupted()
        time.sleep(10)

    monkeypatch.setattr(sys, "unraisablehook", run.interrupt_again)
    before = signal.signal(signal.SIGINT, run.stop)
    try:
        with pytest.raises(KeyboardInterrupt):
            work()
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.nightly
@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_an_interruption_keeps_finished_points(smallest, tmp_path, signal_number):
    process = spawn(*smallest, f"rates={list(range(50, 450))}", cwd=tmp_path)
    deadline = time.monotonic() + 240
    points = tmp_path / "outputs/continuous_batching/points"
    while not list(points.glob("[!.]*/point.json")) and time.monotonic() < deadline:  # unfinished folders come and go
        time.sleep(0.05)
    process.send_signal(signal_number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "finished points are on disk" in output
    assert "Traceback" not in output
    finished = list(tmp_path.rglob("point.json"))
    table = pd.read_csv(tmp_path / "outputs/continuous_batching/points.csv")
    assert 0 < len(table) == len(finished) < 800


@pytest.mark.slow
def test_an_interruption_of_the_imports_is_quiet(tmp_path):
    process = spawn("--help", cwd=tmp_path, PYTHONPROFILEIMPORTTIME="1")
    assert any("hydra" in line for line in process.stdout)  # its imports have begun
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "Traceback" not in output


def test_an_interruption_before_the_first_point_promises_none(cli, smallest, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("framework.study.sweep.compute_or_reuse", interrupt)
    with pytest.raises(KeyboardInterrupt) as raised:
        cli(*smallest, "rates=[50]")
    assert raised.value.args == ()


@pytest.mark.nightly
def test_a_process_that_is_interrupted_before_the_first_point_promises_none(smallest, tmp_path):
    process = spawn(*smallest, "rates=[1e-9]", "clock=wall", cwd=tmp_path)  # its second request is years away
    deadline = time.monotonic() + 60
    while not (tmp_path / "outputs/continuous_batching").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert output.endswith("interrupted\n")


@pytest.mark.nightly
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_jobs_share_a_folder_and_the_last_draws_the_whole_figure(smallest, tmp_path, launcher):
    options = ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else ["hydra.launcher.cpus_per_task=1"]
    sweep = ["rates=[50],[60]", f"hydra/launcher={launcher}", *options]
    process = spawn("-m", *smallest, *sweep, cwd=tmp_path)
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output
    folder = tmp_path / "outputs" / "continuous_batching"
    table = pd.read_csv(folder / "points.csv")
    assert table["rate"].tolist() == [50.0, 60.0] * 2
    svg = (folder / "figures" / "latency_rate.svg").read_text()
    assert all(f"<!-- {rate} -->" in svg for rate in (50, 60))
    assert len(Page(folder / "report.html").rows) == 1 + 2 * 2


def test_shell_completion_reaches_hydra(cli, monkeypatch):
    code, output = cli("-sc", "install=bash")
    assert code == 0
    assert "complete" in output
    monkeypatch.setenv("COMP_LINE", "python run.py engine.num_b")
    assert cli("-sc", "query=bash") == (0, "engine.num_blocks=\n")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("experiment=papers/pun", ["experiment=papers/punica", "experiment=papers/punica/llama_8b"]),
        ("preset=t", ["preset=turns"]),
        ("experiment=papers/punica preset=", ["preset=llama_8b"]),
        ("experiment=lorax +scheduler@arms.x.scheduler=st", ["+scheduler@arms.x.scheduler=static"]),
        ("trace=_", []),
        ("trace=azure_code", ["trace=azure_code", "trace=azure_code_2024"]),
    ],
)
def test_the_tab_key_completes_options_and_presets(cli, monkeypatch, line, words):
    monkeypatch.setenv("COMP_LINE", f"python run.py {line}")
    code, output = cli("-sc", "query=bash")
    assert code == 0
    assert output.split() == words


def test_online_tracking_without_a_key_fails_before_anything_runs(cli, smallest, tmp_path, monkeypatch):
    monkeypatch.setattr("framework.report.tracking.has_api_key", lambda: False)
    code, output = cli(*smallest[:-1], "tracking.mode=online")
    assert code == 1
    assert "error: tracking.mode=online needs an account" in output
    assert not (tmp_path / "outputs").exists()


def test_a_tracker_that_fails_costs_neither_points_nor_page(cli, smallest, tmp_path, monkeypatch):
    def fail(folder, **options):
        raise ValueError("no such project")

    monkeypatch.setattr("framework.report.tracking.start_run", fail)
    code, output = cli(*smallest[:-1], "rates=[50]")
    assert code == 1
    assert "error: no such project" in output
    folder = tmp_path / "outputs" / "continuous_batching"
    assert len(pd.read_csv(folder / "points.csv")) == 2
    check_page(Page(folder / "report.html"), folder)
