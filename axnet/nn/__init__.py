"""Modules: A3, PWAP and the two peers' modules that they contain as special cases."""

from __future__ import annotations

from axnet.nn.attention import AnatomyAwareAttention
from axnet.nn.masked_attention import MaskedAttention, average_heads
from axnet.nn.pooling import PWAP, PCAMHead

__all__ = ["PWAP", "AnatomyAwareAttention", "MaskedAttention", "PCAMHead", "average_heads"]
