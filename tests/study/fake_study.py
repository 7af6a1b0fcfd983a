"""The parts of a study without a model: engines that are fake, and a Poisson trace."""

from functools import partial

import torch

from framework.lora.none import serve_base
from framework.quantization.none import quantize
from framework.scheduler.continuous import ContinuousScheduler
from framework.study.arms import resolve_arms
from framework.study.sweep import run_study
from framework.trace.arrivals import poisson
from framework.trace.lengths import fixed, independent
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


def run_fake_study(
    output_dir, arms, rates, seeds=(0,), slo=None, defaults=DEFAULTS, fresh=False, users=None, capacity=False
):
    options = {"slo": slo or {}, "device": "cpu", "output_dir": str(output_dir), "fresh": fresh, "capacity": capacity}
    options |= {} if users is None else {"users": users}
    sweep = {"rates": rates if isinstance(rates, str | dict) else list(rates), "seeds": list(seeds), **options}
    return run_study(resolve_arms(arms, defaults), sweep)
