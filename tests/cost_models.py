"""Cost models that a test can reckon with, and what they are of."""

from functools import partial

from framework.config import describe
from framework.cost.features import BESIDE_TERMS, HOST_TERMS, TERMS
from framework.cost.fit import RANGED
from framework.cost.model import VERSION, Calibrated, CostModel, KindCost, write_cost_model
from framework.cost.subject import Target, read_target
from framework.lora.none import serve_base
from framework.models.loading import load_model
from framework.quantization.none import quantize
from tests.quantization.small_models import LLAMA

MODEL = partial(load_model, path=None, weights="random", config=LLAMA, dtype="float32", seed=0, max_model_len=None)
PARTS = {"model": MODEL, "quantization": partial(quantize), "lora": partial(serve_base)}


def target(**parts: object) -> Target:
    return read_target({name: describe(part) for name, part in {**PARTS, **parts}.items()})


def kind_cost(
    kind, seconds=0.01, per_row=0.0, per_context=0.0, ratios=(1.0, 1.0), beside=0.0, host=0.0, most=1e9, **device
):
    """`seconds` and `per_row` more for each row beyond the first, on the device; `beside` seconds and `host` ones."""
    return KindCost(
        rows=[(1, seconds), (11, seconds + 10 * per_row)],
        context=[(1, per_context)],
        device=dict.fromkeys(TERMS[kind], 0.0) | device,
        beside=dict.fromkeys(("constant", *BESIDE_TERMS), 0.0) | {"constant": beside},
        host=dict.fromkeys(("constant", *HOST_TERMS), 0.0) | {"constant": host},
        ranges=dict.fromkeys(RANGED, (0.0, most)) | {"num_rows": (1.0, most)},
        ratios=list(ratios),
        num_steps=100,
    )


def cost_model(name="test", device="A device", num_blocks=1000, num_steps_ahead=0, subject=None, **changes):
    kinds = {"decode": kind_cost("decode"), "prompt": kind_cost("prompt", 0.02)}
    engine = Calibrated(
        num_blocks=num_blocks,
        block_size=4,
        num_cache_bytes=num_blocks * 1000,
        slot_bytes=100,
        kv_dtype="float32",
        num_steps_ahead=num_steps_ahead,
        are_loads_beside=num_steps_ahead > 0,
        switches={"overlap": num_steps_ahead > 0},
    )
    given = {
        "kinds": kinds,
        "sizes": {},
        "error": {},
        "environment": {"git_commit": "abcdef123"},
        "compute_version": "1",
    }
    subject = subject or target().subject
    return CostModel(version=VERSION, name=name, device=device, subject=subject, engine=engine, **given | changes)


def write_model(folder, **changes):
    """The path of such a model on disk."""
    model = cost_model(**changes)
    path = folder / f"{model.name}.json"
    write_cost_model(path, model)
    return path
