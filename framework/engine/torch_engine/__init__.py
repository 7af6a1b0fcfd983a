"""The measured engine: really executes every step with PyTorch on the device at hand."""

from framework.engine.torch_engine.engine import TorchEngine

__all__ = ["TorchEngine"]
