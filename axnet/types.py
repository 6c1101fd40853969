"""Types that several floors share."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

Fusion = Literal["mean", "concat"]


class MaskedPool(NamedTuple):
    """Descriptors of features X [N, C, H, W] under masks m [N, A, H, W]."""

    avg: Tensor
    """Average of X over the pixels [N, C]."""
    max: Tensor
    """Maximum of X over the pixels [N, C]."""
    masked_avg: Tensor
    """Average of m_a X over the pixels [N, A, C]."""
    masked_max: Tensor
    """Maximum of m_a X over the pixels [N, A, C]."""
