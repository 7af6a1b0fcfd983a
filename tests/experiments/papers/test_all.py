"""experiment=papers/all reads what is on disk."""

import pandas as pd
import pytest

from experiments.papers.all import run
from experiments.papers.comparison import compare, read_paper
from framework.report.pages import write_record


@pytest.mark.usefixtures("placeholders")
def test_every_comparison_on_disk_is_shown(tmp_path, capsys):
    with pytest.raises(ValueError, match="no paper's study has ended in"):
        run(papers_dir=str(tmp_path), device="cpu", output_dir=str(tmp_path / "all"))
    table = compare(read_paper("vllm_memory"), {"running_sharegpt": {"max": 7.0, "paged": 28.0}})
    for place in ("vllm_memory", "vllm_memory/llama_8b"):
        folder = tmp_path / place
        folder.mkdir()
        table.to_csv(folder / "comparison.csv", index=False)
        write_record(folder, title="on a GPU", environment={}, figures={}, tables={})
    run(papers_dir=str(tmp_path), device="cpu", output_dir=str(tmp_path / "all"))
    every = pd.read_csv(tmp_path / "all/papers.csv")
    assert every["paper"].unique().tolist() == ["vllm_memory, on a GPU", "vllm_memory/llama_8b, on a GPU"]
    assert len(every) == 2 * len(table)
    assert "Reported and measured: vllm_memory/llama_8b, on a GPU" in capsys.readouterr().out
