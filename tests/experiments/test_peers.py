"""A peer runs in a process of its own, and what it raises there is raised here."""

import os

import pytest
import torch

from experiments.peers import PeerRun, run_peer
from framework.models.config import parse_config
from tests.quantization.small_models import LLAMA

RUN = PeerRun(parse_config(LLAMA), torch.float32, "cpu", [([1, 2, 3], 4)])


def process_id(run):
    if not run.prompts:
        raise ValueError("no prompts")
    return {"process_id": os.getpid(), "num_prompts": len(run.prompts)}


@pytest.mark.slow
def test_a_peer_runs_in_a_fresh_process():
    found = run_peer(process_id, RUN)
    assert found["num_prompts"] == 1
    assert found["process_id"] != os.getpid()


@pytest.mark.slow
def test_what_it_raises_is_raised_here():
    with pytest.raises(ValueError, match="no prompts"):
        run_peer(process_id, PeerRun(RUN.config, RUN.dtype, RUN.device, []))
