"""KV caches for the kernels' tests: made of float tensors, moved, and compared."""

from dataclasses import replace

import torch

from framework.kernels.layer_cache import LayerCache, quantize_heads


def make_cache(k, v, is_int8):
    """Of float tensors (num_slots, num_kv_heads, head_dim); what is NaN reads as NaN from an int8 cache too."""
    if not is_int8:
        return LayerCache(k, v)
    quantized, scale = quantize_heads(torch.stack((k, v)))
    return LayerCache(*quantized, scale.transpose(1, 2).contiguous())


def copy_cache(cache, device, dtype):
    """A copy on `device`, in `dtype` unless it is int8."""
    if cache.scales is None:
        return LayerCache(*(part.to(device, dtype, copy=True) for part in (cache.k, cache.v)))
    offset = None if cache.key_offset is None else cache.key_offset.to(device)
    return LayerCache(*(part.to(device, copy=True) for part in (cache.k, cache.v, cache.scales)), offset)


def with_key_offset(cache):
    """An int8 cache that takes something large off channels 1 and 3 of the keys that come, and less off the others."""
    offset = torch.randn(cache.k.shape[1:])
    offset[:, 1:4:2] *= 100.0
    return replace(cache, key_offset=offset)


def contents(cache):
    """k and v of all slots, float64."""
    slots = torch.arange(len(cache.k), device=cache.k.device)
    return [part.double() for part in cache.read(slots, torch.float64)]


def step_of(*caches):
    """The largest step between two neighbouring int8 values of what the caches hold; 0 for other caches."""
    scales = [cache.scales[cache.scales.isfinite()] for cache in caches if cache.scales is not None]
    return max((float(part.max()) for part in scales), default=0.0)


def assert_close(got, want, tolerance, step=0.0):
    """Equal within `tolerance`; with a `step`, one value in a hundred may be rounded to its neighbour instead.

    In half precision more may: there `tolerance` itself is a good part of a step.
    """
    atol = tolerance + 1.01 * step
    torch.testing.assert_close(got.double(), want.double(), atol=atol, rtol=tolerance, equal_nan=True)
    if step > tolerance:
        is_far = (got.double() - want.double()).abs() > tolerance * (1 + want.double().abs())
        assert is_far.double().mean() < 0.01 + 10 * tolerance
