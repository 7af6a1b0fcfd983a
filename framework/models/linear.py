"""A linear layer with what surrounds it: the norm before, the activation and the residual addition after.

Few rows on a GPU take one fused kernel; everything else is plain PyTorch, which torch.compile fuses.
"""

from __future__ import annotations

from torch import Tensor, nn

from framework.kernels.linear import fused_linear, plain_linear

Norm = nn.RMSNorm | nn.LayerNorm


class Linear(nn.Linear):
    """nn.Linear whose calls of up to `max_fused_rows` rows take the fused kernel (0: none do)."""

    max_fused_rows = 0

    def forward(
        self, x: Tensor, *, norm: Norm | None = None, activation: str | None = None, residual: Tensor | None = None
    ) -> Tensor:
        """residual + activation(norm(x) @ weight.T + bias), each part where it is given; x is (rows, in_features).

        `silu_gate` halves the columns: silu of the first half times the second. `gelu` is the tanh approximation.
        """
        linear = fused_linear if 0 < x.shape[0] <= self.max_fused_rows else plain_linear
        return linear(
            x,
            self.weight,
            self.bias,
            norm_weight=None if norm is None else norm.weight,
            norm_bias=norm.bias if isinstance(norm, nn.LayerNorm) else None,
            norm_eps=0.0 if norm is None or norm.eps is None else norm.eps,
            activation=activation,
            residual=residual,
        )
