"""Rope (arXiv:2104.09864): how far each pair of channels turns per position, and the scalings for longer contexts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field, StrictBool
from torch import Tensor

Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Context = Annotated[int, Field(strict=True, ge=1)]


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """All positions divided by `factor` (`rope_type: linear`)."""

    factor: Positive

    amplitude = 1.0

    def frequencies(self, theta: float, head_dim: int) -> Tensor:
        return plain_frequencies(theta, head_dim) / self.factor


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Llama 3.1's stretching of the slow frequencies (`rope_type: llama3`).

    Those whose wavelength is above the original context / low_freq_factor are divided by `factor`, those below
    context / high_freq_factor are kept, and between it interpolates.
    """

    factor: Positive
    low_freq_factor: Positive
    high_freq_factor: Positive
    original_max_position_embeddings: Context

    amplitude = 1.0

    def frequencies(self, theta: float, head_dim: int) -> Tensor:
        frequencies = plain_frequencies(theta, head_dim)
        turns = self.original_max_position_embeddings * frequencies / (2 * math.pi)
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = kept.clamp(0.0, 1.0)
        return frequencies * (kept + (1.0 - kept) / self.factor)


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """YaRN (arXiv:2309.00071, `rope_type: yarn`).

    Channels that turn more than `beta_fast` times within the original context are kept, those that turn less than
    `beta_slow` times are divided by `factor`; between it interpolates, by channel. `attention_factor` multiplies cos
    and sin (None: as the paper says, or as `mscale` and `mscale_all_dim` do).
    """

    factor: Positive
    original_max_position_embeddings: Context
    attention_factor: Positive | None = None
    beta_fast: Positive = 32.0
    beta_slow: Positive = 1.0
    mscale: Positive | None = None
    mscale_all_dim: Positive | None = None
    truncate: StrictBool = True

    @property
    def amplitude(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale is not None and self.mscale_all_dim is not None:
            return self._amplitude(self.mscale) / self._amplitude(self.mscale_all_dim)
        return self._amplitude(1.0)

    def frequencies(self, theta: float, head_dim: int) -> Tensor:
        low, high = (self._channel(turns, theta, head_dim) for turns in (self.beta_fast, self.beta_slow))
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        width = high - low or 0.001
        stretched = ((torch.arange(head_dim // 2, device="cpu").float() - low) / width).clamp(0.0, 1.0)
        frequencies = plain_frequencies(theta, head_dim)
        return frequencies * (1.0 - stretched) + frequencies / self.factor * stretched

    def _amplitude(self, mscale: float) -> float:
        return 1.0 if self.factor <= 1 else 0.1 * mscale * math.log(self.factor) + 1.0

    def _channel(self, turns: float, theta: float, head_dim: int) -> float:
        """The pair of channels that turns so often within the original context."""
        wavelength = self.original_max_position_embeddings / (turns * 2 * math.pi)
        return head_dim * math.log(wavelength) / (2 * math.log(theta))


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling
SCALINGS: dict[str, type[RopeScaling]] = {"linear": LinearScaling, "llama3": Llama3Scaling, "yarn": YarnScaling}


def plain_frequencies(theta: float, head_dim: int) -> Tensor:
    """Radians per position of each pair of channels, (head_dim / 2,), float32."""
    return 1.0 / theta ** (torch.arange(0, head_dim, 2, device="cpu").float() / head_dim)


def rope_table(theta: float, head_dim: int, scaling: RopeScaling | None, num_positions: int) -> Tensor:
    """(num_positions, 2, head_dim) float32: cos and sin of every position, the first half of sin negated."""
    frequencies = plain_frequencies(theta, head_dim) if scaling is None else scaling.frequencies(theta, head_dim)
    angles = torch.arange(num_positions, device="cpu")[:, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    table = torch.stack((torch.cat((cos, cos), dim=1), torch.cat((-sin, sin), dim=1)), dim=1)
    return table if scaling is None else table * scaling.amplitude
