"""experiment=quantization as a user calls it: every part on disk, equal memory, failures kept apart, the course's."""

import json

import pandas as pd
import pytest

from framework.measure.definitions import DEFINITIONS
from tests.report.html_page import Page, check_page

ARMS = ["none", "bfloat16", "int8", "int8_kv"]
MEMORY_BYTES = 400_000
QUICK = [
    *("experiment=quantization", "device=cpu", "batch_sizes=[1,2]", "context=32", "num_steps=4", "num_output_tokens=3"),
    *("text=text.txt", "text_window=32", "num_text_tokens=200", "rates=[50,2000]", f"memory_bytes={MEMORY_BYTES}"),
    "serving=[none,int8]",
]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "text.txt").write_text("def one():\n    return 1\n" * 20)
    return tmp_path / "outputs/quantization"


@pytest.mark.nightly
@pytest.mark.usefixtures("drawn")
def test_every_part_is_on_disk(cli, smallest, folder):
    code, output = cli(*smallest, *QUICK, f"only=[{','.join(ARMS)}]")
    assert code == 0, output
    models = pd.read_csv(folder / "models.csv").set_index("arm")
    assert models.index.tolist() == ARMS
    assert (models["num_scored_tokens"] == 199).all()
    assert models.loc["none", ["kl", "weight_error", "logit_error", "top1_agreement"]].tolist() == [0, 0, 0, 1]
    assert models.loc["none", ["perplexity", "perplexity_change"]].tolist() == [
        models["reference_perplexity"].iloc[0],
        0,
    ]
    assert (models.loc[ARMS[1:], ["kl", "weight_error", "logit_error"]] > 0).all(axis=None)
    assert (models["perplexity_low"] < models["perplexity"]).all()
    assert models.loc["int8", "total"] < models.loc["none", "total"]
    assert (models.loc["int8_kv", ["total", "weight_error"]] == models.loc["int8", ["total", "weight_error"]]).all()
    assert models.loc["int8_kv", "kl"] != models.loc["int8", "kl"]  # its keys and values are rounded too
    weights = pd.read_csv(folder / "weights.csv").set_index(["arm", "module"])["relative_error"]
    assert (
        weights["int8", "embed_tokens"] == weights["bfloat16", "embed_tokens"] < weights["int8", "layers.1.down_proj"]
    )
    decode = pd.read_csv(folder / "decode.csv")
    assert decode[["arm", "num_seqs"]].to_numpy().tolist() == [[arm, size] for arm in ARMS for size in (1, 2)]
    assert (decode["floor"] > 0).all()
    assert pd.read_csv(folder / "engines.csv")["arm"].tolist() == ARMS
    figures = {path.name for path in (folder / "figures").iterdir()}
    names = [
        "quality_bytes",
        "decode_steps",
        "batch_and_cache",
        "throughput_latency",
        "latency_rate",
        "pareto",
        "attainment_rate",
    ]
    assert figures == {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    for name in ("models", "weights", "decode", "engines", "points"):
        assert f"{name}.csv" in output
    check_the_page(folder, names, output)


def check_the_page(folder, figures, output):
    """Figures with captions, the tables that the console shows too, and what their terms mean."""
    page = Page(folder / "report.html")
    check_page(page, folder)
    record = json.loads((folder / "report.json").read_text())
    assert sorted(record["figures"]) == sorted(figures)
    assert page.count("svg") == len(figures)
    assert all(caption.endswith(".") for caption in record["figures"].values())
    captions = [table["caption"] for table in record["tables"]]
    starts = ["Every arm at every rate", "Held and served: 0.4 MB for weights and KV cache", "Bytes of the model"]
    starts += ["Quality: text.txt, 200 tokens in windows of 32", "Memory: 0.4 MB for", "Decode steps", "Greedy text"]
    assert [caption[: len(start)] for caption, start in zip(captions, starts, strict=True)] == starts
    printed = " ".join(output.split())
    assert all(caption.split(":")[0] in printed for caption in captions[1:])
    for term in ("KL", "Top-1 agreement", "Perplexity", "Weight error", "Logit error", "KV tokens"):
        assert DEFINITIONS[term] in page.text
    agreement = next(row for row in page.rows if row[:1] == ["none"] and row[4:5] == ["100[100, 100]"])
    assert agreement[:4] == ["none", "0", "0", "0[0, 0]"]


@pytest.mark.nightly
def test_what_serves_has_equal_memory(cli, smallest, folder):
    """The budget is weights and KV cache, to within a block: of 2 layers, k and v, 16 tokens, 16 channels.

    These are of 4 bytes, and of 2 in the arms whose floats are bfloat16; float32 alone may be too much for any cache.
    """
    parts = ["text=null", "prompt=null", "batch_sizes=[]", "only=[int8,none]", "serving=[int8,none]"]
    code, output = cli(*smallest, *QUICK, *parts, "slo={ttft: 100.0}", "rates=[2]", "trace.num_requests=48")
    assert code == 0, output
    block_bytes = pd.Series({"int8": 2 * 2 * 16 * 16 * 2, "none": 2 * 2 * 16 * 16 * 4})
    engines = pd.read_csv(folder / "engines.csv").set_index("arm")
    used = engines["weight_bytes"] + engines["kv_bytes"]
    assert ((MEMORY_BYTES - block_bytes < used) & (used <= MEMORY_BYTES)).all()
    assert (engines["kv_bytes"] == engines["num_blocks"] * block_bytes).all()
    assert engines.loc["int8", "num_blocks"] > engines.loc["none", "num_blocks"]
    for path in (folder / "points").glob("*/point.json"):
        point = json.loads(path.read_text())
        assert point["engine"]["num_blocks"] == engines.loc[point["arm"], "num_blocks"]
    slots = 16 * engines["num_blocks"]
    [room] = [table for table in tables_of(folder) if table["caption"].startswith("Held and served")]
    assert [row[:3] for row in room["rows"]] == [["int8", slots["int8"], 2.0], ["none", slots["none"], 2.0]]
    assert [row[4:6] for row in room["rows"]] == [[1.0, 1.0], [slots["none"] / slots["int8"], 1.0]]
    assert not (folder / "decode.csv").exists()


def tables_of(folder):
    return json.loads((folder / "report.json").read_text())["tables"]


@pytest.mark.gpu
def test_a_gpus_allocator_agrees_with_the_storages(cli, folder):
    """Each tensor is rounded up to 512 bytes."""
    shape = ["model=tiny", "model.weights=random", "model.dtype=bfloat16", "only=[none,int8,int8_kv,fp8]"]
    short = ["trace.num_requests=6", "trace.max_output_tokens=4", "tracking=none", "memory_bytes=16777216"]
    code, output = cli(*QUICK, *shape, *short, "device=cuda")
    assert code == 0, output
    models, engines = (pd.read_csv(folder / f"{name}.csv") for name in ("models", "engines"))
    for measured, stored in ((models["allocated"], models["total"]), (engines["kv_allocated"], engines["kv_bytes"])):
        assert (measured >= stored).all()
        assert (measured < stored + 512 * 100).all()


@pytest.mark.nightly
def test_a_failing_arm_is_named_and_the_others_stay(cli, smallest, folder):
    wrong = [
        "arms.int8_group128.quantization.group_size=100",
        "only=[none,int8_group128]",
        "serving=[]",
        "batch_sizes=[]",
    ]
    code, output = cli(*smallest, *QUICK, *wrong)
    assert code == 1
    assert "error: int8_group128: group_size 100 must be null or a power of two" in output
    assert output.count("failed: int8_group128") == 1
    assert "Traceback" not in output
    for name in ("models", "engines"):
        assert pd.read_csv(folder / f"{name}.csv")["arm"].tolist() == ["none"]
    assert "Failed: int8_group128: group_size 100" in Page(folder / "report.html").text
    code, output = cli(*smallest, *QUICK, wrong[0], "only=[int8_group128]", "serving=[]")
    assert code == 1
    assert "error: int8_group128: group_size 100" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("serving=[nonee]", "serving has 'nonee', which is no arm; did you mean 'none'"),
        ("only=[all]", "only has 'all', which is no arm; allowed: none, int8, int8_kv"),
        ("only=[int8]", "serving has 'none'"),
        ("text=nowhere.txt", "text=nowhere.txt is no file"),
        ("slo.ttft=0", "the SLO for ttft must be a positive number"),
        ("rates=[]", "rates is empty"),
        ("num_steps=0", "num_steps 0 must be at least 1"),
        ("memory_bytes=100000", "bytes; engine.memory_bytes is 100,000 for them and the KV cache"),
    ],
)
def test_bad_input_is_one_clear_message(cli, smallest, folder, override, message):
    few = [] if override.startswith("only") else ["only=[none]", "serving=[none]"]
    code, output = cli(*smallest, *QUICK, "batch_sizes=[]", "prompt=null", *few, override)
    assert code == 1
    assert message in output
    assert "Traceback" not in output


def test_the_course_preset_shows_the_lessons_bytes(cli, smallest, folder):
    code, output = cli("experiment=quantization", "preset=course", "model=tiny", *smallest)
    assert code == 0, output
    assert "reported: 510.3 MB → 137.0 MB = 3.72×" in output
    assert pd.read_csv(folder / "course/engines.csv")["arm"].tolist() == ["none", "zero_point"]
    page = Page(folder / "course/report.html")
    check_page(page, folder / "course")
    assert "510.3 MB" in page.text
    assert [table["caption"] for table in tables_of(folder / "course")] == [
        "Bytes of the model; other: norms and position tables",
        "Quality: models/tiny/heldout.txt, 2,049 tokens in windows of 256, against the same model in float32",
        "Greedy text after 'The quick brown fox jumped over the'",
    ]
    assert page.count("svg") == 1
    assert DEFINITIONS["KL"] in page.text
    assert DEFINITIONS["TTFT"] not in page.text


def test_an_arm_that_does_not_serve_may_be_larger_than_the_memory(cli, smallest, folder):
    parts = ["text=null", "prompt=null", "batch_sizes=[]", "only=[none]", "serving=[]", "memory_bytes=1000"]
    code, output = cli(*smallest, *QUICK, *parts)
    assert code == 0, output
    assert pd.read_csv(folder / "engines.csv")[["num_blocks", "kv_bytes"]].to_numpy().tolist() == [[0, 0]]
