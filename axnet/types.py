"""Types that several floors share."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor
from torch.utils._pytree import _register_namedtuple

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


_register_namedtuple(MaskedPool, serialized_type_name="axnet.types.MaskedPool")  # torch.export.save writes its name


class DescriptorGate:
    """A gate function that can do without MaskedPool's views and their type, where no gradient is recorded."""

    def __call__(self, pool: MaskedPool) -> Tensor:
        """Channel gates [N, A, C], as any gate function."""
        raise NotImplementedError

    def of_descriptors(self, descriptors: Tensor, backend: str) -> Tensor:
        """The same from [N, 2+2A, C] (avg, max, masked_avg_a, masked_max_a) in the accumulation type."""
        raise NotImplementedError
