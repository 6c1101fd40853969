"""Probability-weighted pooling: PWAP and PCAM's head."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from axnet import functional
from axnet.checks import MAX_MAPS
from axnet.nn.calls import as_node, is_traced
from axnet.nn.norm import check_channels, check_positive


class _ProbabilityMaps(nn.Module):
    """The 1x1 convolution that makes the probability maps: weight [K, C], bias [K]."""

    def __init__(
        self,
        channels: int,
        maps: int,
        name: str,
        bias: bool,
        backend: str | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        check_positive("channels", channels)
        check_positive(name, maps, MAX_MAPS)
        self.channels = channels
        self.backend = backend
        self.weight = nn.Parameter(torch.empty(maps, channels, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(maps, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights as nn.Conv2d does."""
        bound = 1 / math.sqrt(self.channels)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *args: object) -> None:
        weight = state.get(f"{prefix}weight")
        if isinstance(weight, Tensor) and weight.dim() == 4:  # a 1x1 convolution's, as the peers publish them
            state[f"{prefix}weight"] = weight.flatten(1)
        super()._load_from_state_dict(state, prefix, *args)


class PWAP(_ProbabilityMaps):
    """Probabilistic weighted average pooling: p = sigmoid(1x1 conv X); pooled = sum p X / sum p, per map.

    Normalised in the log domain: finite logits never give NaN. Definition: docs/method.md, "PWAP", after the abstract
    of arXiv 2106.05915 and PCAM (arXiv 2005.14480).

    channels: C. num_maps: K, 1 to 64 (1: one shared map; the number of classes: one map per class).
    bias: whether the convolution has one. backend: see axnet.functional.

    Shapes: x [N, C, H, W] of any floating type and strides; returns pooled [N, K, C] and the probability (localisation)
    maps [N, K, H, W], in x's type. A 1x1 convolution's weight [K, C, 1, 1] is accepted by load_state_dict.
    Raises ValueError or TypeError in one sentence for arguments that do not fit.
    """

    def __init__(
        self,
        channels: int,
        num_maps: int = 1,
        bias: bool = True,
        *,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Create the parameters; the class describes the arguments."""
        super().__init__(channels, num_maps, "num_maps", bias, backend, device, dtype)
        self.num_maps = num_maps

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled [N, K, C] and probability maps [N, K, H, W] of x [N, C, H, W]."""
        if is_traced(x):
            return as_node(self, x)
        check_channels(x, self.channels)
        return functional.pwap(x, self.weight, self.bias, backend=self.backend)

    def extra_repr(self) -> str:
        """Arguments, for printing."""
        return f"{self.channels}, num_maps={self.num_maps}, bias={self.bias is not None}"


class PCAMHead(_ProbabilityMaps):
    """PCAM's head (arXiv 2005.14480): one 1x1 convolution makes the maps and classifies the pooled vectors.

    channels: C. num_classes: K, 1 to 64. bias, backend: as in PWAP.

    Shapes: x [N, C, H, W]; returns logits [N, K] and probability maps [N, K, H, W], in x's type.
    Raises ValueError or TypeError in one sentence for arguments that do not fit.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        bias: bool = True,
        *,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Create the parameters; the class describes the arguments."""
        super().__init__(channels, num_classes, "num_classes", bias, backend, device, dtype)
        self.num_classes = num_classes

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [N, K] and probability maps [N, K, H, W] of x [N, C, H, W]."""
        if is_traced(x):
            return as_node(self, x)
        check_channels(x, self.channels)
        return functional.pcam(x, self.weight, self.bias, backend=self.backend)

    def extra_repr(self) -> str:
        """Arguments, for printing."""
        return f"{self.channels}, num_classes={self.num_classes}, bias={self.bias is not None}"
