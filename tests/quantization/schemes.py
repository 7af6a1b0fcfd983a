"""Every scheme, and the bounds of its relative error of the logits."""

from functools import partial

import torch

from framework.quantization import fp8, int8_dynamic, int8_weight_only, none, zero_point

whole_int8 = partial(int8_weight_only.quantize, embeddings=True, head=True)
SCHEMES = {  # name: (function, bounds of the relative error of the logits)
    "none": (none.quantize, (0.0, 1e-5)),
    "zero_point": (zero_point.quantize, (1e-3, 0.1)),
    "int8_weight_only": (int8_weight_only.quantize, (1e-3, 0.03)),
    "int8_groups": (partial(int8_weight_only.quantize, group_size=32), (1e-3, 0.02)),
    "int8_whole": (whole_int8, (1e-3, 0.04)),
    "int8_dynamic": (partial(int8_dynamic.quantize, weight_only_rows=0), (1e-3, 0.06)),
    "fp8": (fp8.quantize, (1e-2, 0.2)),
}
TOKENS = torch.arange(12) * 7
