"""What all tests share: the marks, the command line, and a model so small that a whole study takes seconds."""

import gc
import os
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers would fight for two cores

import pytest
import torch
from matplotlib.figure import Figure

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read where a kernel is decorated: before anything imports one
elif "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    NUM_WORKERS = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    memory_of_all = torch.cuda.mem_get_info
    # An engine takes most of the memory that it finds free: each worker finds its share
    torch.cuda.mem_get_info = lambda *device: tuple(size // NUM_WORKERS for size in memory_of_all(*device))

import run as run_module
from framework.command_line import prepare
from framework.measure import ceilings
from tests.study.fake_study import LOADED, run_fake_study

if "TRITON_INTERPRET" in os.environ and find_spec("triton") is not None:
    from tests.interpreter import compute_no_overflows, patch_language_once

    patch_language_once()
    compute_no_overflows()
FROZEN = [0]  # so many modules had been imported when garbage collection was last told to leave alone what there is


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What goes through the command line is `slow`; what needs a CUDA device is skipped where there is none."""
    for item in items:
        if "cli" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_runtest_setup() -> None:
    """Studies collect garbage before every engine: not among all that was imported, some of it by earlier tests."""
    if len(sys.modules) > FROZEN[0] + 50:
        gc.collect()
        gc.freeze()
        FROZEN[0] = len(sys.modules)


def pytest_unconfigure() -> None:
    gc.unfreeze()


@pytest.fixture
def smallest() -> list[str]:
    """Overrides that make a study quick: two layers of 32 channels, few and short requests."""
    return [
        "model.config={model_type: llama, vocab_size: 256, hidden_size: 32, intermediate_size: 64, "
        "num_hidden_layers: 2, num_attention_heads: 2, num_key_value_heads: 1, head_dim: 16, "
        "max_position_embeddings: 512, tie_word_embeddings: true}",
        "model.weights=random",
        "engine.kv_cache_bytes=1000000",
        "trace.num_requests=6",
        "trace.max_prompt_tokens=16",
        "trace.max_output_tokens=4",
        "tracking=none",
    ]


@pytest.fixture
def placeholders(monkeypatch) -> None:
    """An empty figure is written in the place of each."""

    def write(figure: Figure, path: Path, **options: object) -> None:
        path.write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9pt" height="9pt" viewBox="0 0 9 9"></svg>')

    monkeypatch.setattr(Figure, "savefig", write)


@pytest.fixture
def drawn() -> None:
    """With `cli`: figures are really drawn, not `placeholders`, which take a fiftieth of the time."""


@pytest.fixture
def cli(request, monkeypatch, tmp_path, capsys):
    """Runs a command line in this process; (exit code, everything it printed)."""
    if "drawn" not in request.fixturenames:
        request.getfixturevalue("placeholders")
    monkeypatch.setattr(ceilings, "_bandwidths", lambda *_: (2e10, 1e10))  # measuring them takes seconds
    monkeypatch.setattr(ceilings, "_matmul_rate", lambda *_: 1e11)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def call(*overrides: str) -> tuple[int, str]:
        code, message = 0, ""
        try:
            monkeypatch.setattr(sys, "argv", ["run.py", *prepare(list(overrides))])
            run_module.main()
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
            message = exit_.code if isinstance(exit_.code, str) else ""
        captured = capsys.readouterr()
        return code, captured.out + captured.err + message

    return call


@pytest.fixture
def study(tmp_path):
    """Runs a study of fake engines, in whose folder its points stay."""
    LOADED.clear()
    return partial(run_fake_study, tmp_path)
