"""The masked attention of ThoraX-PriorNet, on axnet's kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from axnet.checks import MAX_ANATOMIES
from axnet.nn.calls import as_node, is_plain, is_traced
from axnet.nn.heads import normalised_averages
from axnet.nn.norm import check_channels, check_positive, gate_type, gated_norm, gated_norm_average
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
        weight = next(self.conv_list.parameters(), pool.avg)  # a quantised convolution has no parameters
        dtype = gate_type(pool.avg, weight)
        hidden = sum(
            block(entry.to(dtype)[..., None, None]) for block, entry in zip(self.conv_list, entries, strict=True)
        )
        gate: Tensor = self.final_block(hidden)
        return gate.flatten(1).unsqueeze(1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Z [N, C, H, W] of x [N, C, H, W] under one mask [N, 1, H', W']."""
        if is_traced(x):
            return as_node(self, x, mask)
        self._check(x, mask)
        return gated_norm(self.bn3, x, mask, self.gate, "mean", self.backend)

    def average(self, x: Tensor, mask: Tensor) -> Tensor:
        """Z averaged over the pixels [N, C]; in eval mode from one read of x, without Z. See average_heads for more."""
        if is_traced(x) or not is_plain(self, MaskedAttention):
            averaged: Tensor = self(x, mask).mean((2, 3))
            return averaged
        self._check(x, mask)
        return gated_norm_average(self.bn3, x, mask, self.gate, "mean", self.backend)

    def _check(self, x: Tensor, mask: Tensor) -> None:
        check_channels(x, self.channels)
        if isinstance(mask, Tensor) and mask.dim() == 4 and mask.shape[1] != 1:
            raise ValueError(f"mask has {mask.shape[1]} anatomies (shape {list(mask.shape)}), expected 1.")

    def extra_repr(self) -> str:
        """Arguments, for printing."""
        return f"{self.channels}, ratio={self.ratio}"


def average_heads(heads: Sequence[MaskedAttention], x: Tensor, masks: Tensor) -> Tensor:
    """Every head's Z averaged over the pixels, as ThoraX-PriorNet's 15 heads take it.

    heads: 1 to 16 MaskedAttention. x: features [N, C, H, W]. masks: one per head [N, len(heads), H', W'], as in
    AnatomyAwareAttention.
    All heads share one read of x in eval mode, and two while training, where the batch's statistics of every Z follow
    from moments of x; no Z is computed.

    Returns [N, len(heads), C] in x's type.
    Raises ValueError or TypeError in one sentence for arguments that do not fit.
    """
    if not 1 <= len(heads) <= MAX_ANATOMIES:
        raise ValueError(f"heads has {len(heads)} modules, expected 1 to {MAX_ANATOMIES}.")
    for head in heads:
        check_channels(x, head.channels)
    if isinstance(masks, Tensor) and masks.dim() == 4 and masks.shape[1] != len(heads):
        raise ValueError(
            f"masks has {masks.shape[1]} masks (shape {list(masks.shape)}), expected one per head, {len(heads)}."
        )

    def each_alone() -> Tensor:
        return torch.stack([head.average(x, masks[:, i : i + 1]) for i, head in enumerate(heads)], 1)

    if not all(is_plain(head, MaskedAttention) for head in heads) or len({head.backend for head in heads}) > 1:
        return each_alone()

    def gates(pool: MaskedPool) -> Tensor:
        one = [
            pool._replace(masked_avg=pool.masked_avg[:, i : i + 1], masked_max=pool.masked_max[:, i : i + 1])
            for i in range(len(heads))
        ]
        return torch.cat([head.gate(own) for head, own in zip(heads, one, strict=True)], 1)

    averages = normalised_averages(x, masks, gates, [head.bn3 for head in heads], heads[0].backend)
    return each_alone() if averages is None else averages
