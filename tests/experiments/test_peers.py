"""A peer has the model's shape and runs in a process of its own; what it raises there is raised here."""

import os

import pytest
import torch

from experiments.peers import PeerRun, hf_config, run_peer
from framework.models.config import parse_config
from framework.models.loading import build_model
from tests.models.checkpoints import MODEL_NAMES, make_hf_model
from tests.quantization.small_models import LLAMA

RUN = PeerRun(parse_config(LLAMA), torch.float32, "cpu", [([1, 2, 3], 4)])


def process_id(run):
    if not run.prompts:
        raise ValueError("no prompts")
    return {"process_id": os.getpid(), "num_prompts": len(run.prompts)}


@pytest.mark.nightly
def test_a_peer_runs_in_a_fresh_process():
    found = run_peer(process_id, RUN)
    assert found["num_prompts"] == 1
    assert found["process_id"] != os.getpid()


@pytest.mark.nightly
def test_what_it_raises_is_raised_here():
    with pytest.raises(ValueError, match="no prompts"):
        run_peer(process_id, PeerRun(RUN.config, RUN.dtype, RUN.device, []))


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_a_peer_has_the_models_shape(name):
    import transformers

    theirs = make_hf_model(name).config
    config = parse_config(theirs.to_dict())
    with torch.device("meta"):
        peer = transformers.AutoModelForCausalLM.from_config(hf_config(config))
    again = parse_config(peer.config.to_dict())
    assert (again.rope_theta, again.rope_scaling) == (config.rope_theta, config.rope_scaling)
    assert again.windows == config.windows
    assert peer.num_parameters() == sum(one.numel() for one in build_model(config, torch.float32, "meta").parameters())
