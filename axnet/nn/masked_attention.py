"""The masked attention of ThoraX-PriorNet, on axnet's kernels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from axnet.nn.norm import check_channels, check_positive, gate_type, gated_norm
from axnet.types import MaskedPool


class MaskedAttention(nn.Module):
    """MaskedAttention of ThoraX-PriorNet (IEEE Access 2024): A3 with one mask; loads that network's state_dict.

    State: conv_list.{0..3}.0 (1x1 convolutions of avg X, max X, max mX, avg mX), final_block.0, bn3.

    channels: C. ratio: hidden channels are int(C * ratio). dropout: of the gate while training.
    backend: see axnet.functional.

    Shapes: x [N, C, H, W]; mask [N, 1, H', W'] as in AnatomyAwareAttention; returns Z [N, C, H, W] in x's type.
    Raises ValueError or TypeError in one sentence for arguments that do not fit.
    """

    def __init__(
        self,
        channels: int,
        ratio: float = 1.0,
        dropout: float = 0.1,
        *,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Create the parameters; the class describes the arguments."""
        super().__init__()
        check_positive("channels", channels)
        if not ratio > 0:
            raise ValueError(f"ratio is {ratio!r}, expected a number above 0.")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout!r}, expected a probability in [0, 1).")
        hidden = max(1, int(channels * ratio))
        self.channels = channels
        self.ratio = ratio
        self.backend = backend
        self.conv_list = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, hidden, 1, device=device, dtype=dtype), nn.LeakyReLU(0.2))
            for _ in range(4)
        )
        self.final_block = nn.Sequential(
            nn.Conv2d(hidden, channels, 1, device=device, dtype=dtype), nn.Sigmoid(), nn.Dropout(dropout)
        )
        self.bn3 = nn.BatchNorm2d(channels, device=device, dtype=dtype)

    def gate(self, pool: MaskedPool) -> Tensor:
        """Channel gates [N, 1, C] from the descriptors of axnet.functional.masked_pool."""
        entries = (pool.avg, pool.max, pool.masked_max[:, 0], pool.masked_avg[:, 0])
        dtype = gate_type(pool.avg, self.bn3.weight)
        hidden = sum(
            block(entry.to(dtype)[..., None, None]) for block, entry in zip(self.conv_list, entries, strict=True)
        )
        gate: Tensor = self.final_block(hidden)
        return gate.flatten(1).unsqueeze(1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Z [N, C, H, W] of x [N, C, H, W] under one mask [N, 1, H', W']."""
        check_channels(x, self.channels)
        if isinstance(mask, Tensor) and mask.dim() == 4 and mask.shape[1] != 1:
            raise ValueError(f"mask has {mask.shape[1]} anatomies (shape {list(mask.shape)}), expected 1.")
        return gated_norm(self.bn3, x, mask, self.gate, "mean", self.backend)

    def extra_repr(self) -> str:
        """Arguments, for printing."""
        return f"{self.channels}, ratio={self.ratio}"
