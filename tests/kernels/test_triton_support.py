"""Doing without Triton, and what kernels are told of a device."""

import sys

import pytest
import torch

from framework.kernels import triton_support
from framework.kernels.linear import fused_linear
from framework.kernels.triton_support import MAX_COUNTERS, check_triton, counters, device_facts


def test_without_triton_says_what_to_do(monkeypatch):
    """As on macOS, where there is none."""
    monkeypatch.delitem(sys.modules, "framework.kernels.linear_triton", raising=False)
    monkeypatch.delattr("framework.kernels.linear_triton", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ImportError, match="plain_linear"):
        fused_linear(torch.zeros(1, 2), torch.zeros(2, 2))


@pytest.mark.parametrize("name", ["rope_store", "lora_delta"])
def test_a_kernel_without_triton_names_its_reference(monkeypatch, name):
    monkeypatch.setattr(triton_support, "triton", None)
    with pytest.raises(RuntimeError, match=f"call plain_{name} instead"):
        check_triton(name)


def test_the_interpreter_is_one_multiprocessor_without_overlap():
    assert device_facts(torch.device("cpu")) == (1, False)


def test_counters_are_zero_and_the_same_for_every_launch():
    first = counters(torch.device("cpu"))
    assert (first.shape, first.dtype, int(first.sum())) == ((MAX_COUNTERS,), torch.int32, 0)
    assert counters(torch.device("cpu")) is first
