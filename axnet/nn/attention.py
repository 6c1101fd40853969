"""Anatomy Aware Attention (A3)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from axnet import functional
from axnet.checks import MAX_ANATOMIES
from axnet.nn.calls import as_node, is_plain, is_traced
from axnet.nn.grouped import FEW, grouped_linear, known
from axnet.nn.norm import check_channels, check_positive, gate_type, gated_norm, gated_norm_average, given_statistics
from axnet.nn.pooling import PWAP
from axnet.ops import has_attention_gate, has_matrix_gate
from axnet.ops.linear import MATRIX_GATE_IMAGES, MATRIX_GATE_SIDE
from axnet.reference import GateFunction
from axnet.types import DescriptorGate, Fusion, MaskedPool


class _Gate(DescriptorGate):
    """The gate of one AnatomyAwareAttention."""

    def __init__(self, module: AnatomyAwareAttention) -> None:
        self.module = module

    def __call__(self, pool: MaskedPool) -> Tensor:
        return self.module.gate(pool)

    def of_descriptors(self, descriptors: Tensor, backend: str) -> Tensor:
        return self.module._gate_of(descriptors, backend)


class AnatomyAwareAttention(nn.Module):
    """A3: a channel gate per anatomy blends the masked and the unmasked features, then batch normalisation.

    g_a = Dropout(sigmoid(V_a sum_j LeakyReLU_0.2(U_a,j d_j + u_a,j) + v_a)), j in (avg, max, mmax_a, mavg_a);
    Y_a = g_a (m_a X) + (1 - g_a) X; Z = BN(mean_a Y_a), or concat_a BN_a(Y_a). Definition: docs/method.md, "A3", after
    the abstract of arXiv 2106.05915 and the public code of ThoraX-PriorNet; with one anatomy it is that network's
    MaskedAttention.

    channels: C of the features. num_anatomies: A, 1 to 16. reduction: hidden channels are round(C * reduction), at
    least 1. fusion: "mean" or "concat". dropout: probability with which a gate is dropped while training.
    eps, momentum: of the batch normalisation. backend: see axnet.functional.

    Shapes: x [N, C, H, W] of any floating type and strides; mask [N, A, H', W'] floating in [0, 1], bool or uint8
    (255 = 1), any resolution; Z [N, out_channels, H, W] in x's type and layout.
    Raises ValueError or TypeError in one sentence for arguments that do not fit.
    """

    def __init__(
        self,
        channels: int,
        num_anatomies: int = 2,
        reduction: float = 1.0,
        fusion: Fusion = "mean",
        dropout: float = 0.1,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Create the parameters; the class describes the arguments."""
        super().__init__()
        check_positive("channels", channels)
        check_positive("num_anatomies", num_anatomies, MAX_ANATOMIES)
        if not 0 < reduction <= 16:
            raise ValueError(f"reduction is {reduction!r}, expected a number above 0, at most 16.")
        if fusion not in ("mean", "concat"):
            raise ValueError(f"fusion is {fusion!r}, expected 'mean' or 'concat'.")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout!r}, expected a probability in [0, 1).")
        self.channels = channels
        self.num_anatomies = num_anatomies
        self.hidden_channels = max(1, round(channels * reduction))
        self.fusion: Fusion = fusion
        self.dropout = dropout
        self.backend = backend
        self.out_channels = channels * (num_anatomies if fusion == "concat" else 1)
        a, hidden = num_anatomies, self.hidden_channels
        new = {"device": device, "dtype": dtype}
        self.hidden_weight = nn.Parameter(torch.empty(a, 4, hidden, channels, **new))  # type: ignore[arg-type]
        self.hidden_bias = nn.Parameter(torch.empty(a, 4, hidden, **new))  # type: ignore[arg-type]
        self.gate_weight = nn.Parameter(torch.empty(a, channels, hidden, **new))  # type: ignore[arg-type]
        self.gate_bias = nn.Parameter(torch.empty(a, channels, **new))  # type: ignore[arg-type]
        self.norm = nn.BatchNorm2d(self.out_channels, eps=eps, momentum=momentum, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights as nn.Conv2d does (uniform within 1/sqrt(inputs)) and reset the normalisation."""
        for weight, bias in ((self.hidden_weight, self.hidden_bias), (self.gate_weight, self.gate_bias)):
            bound = 1 / math.sqrt(weight.shape[-1])
            nn.init.uniform_(weight, -bound, bound)
            nn.init.uniform_(bias, -bound, bound)
        self.norm.reset_parameters()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AnatomyAwareAttention:
        super()._apply(fn, recurse)
        # to(memory_format=channels_last) takes these matrices for maps: every call would copy them back
        if not self.hidden_weight.is_contiguous():
            self.hidden_weight.data = self.hidden_weight.data.contiguous()
        return self

    def gate(self, pool: MaskedPool) -> Tensor:
        """Channel gates [N, A, C] from the descriptors of axnet.functional.masked_pool."""
        masked = zip(pool.masked_max.unbind(1), pool.masked_avg.unbind(1), strict=True)
        # one product for the A*4 first layers: at small N their weights are the floor
        flat = torch.stack([entry for pair in masked for entry in (pool.avg, pool.max, *pair)])  # [A*4, N, C]
        return self._gate_of_rows(flat.to(gate_type(flat, self.hidden_weight)), self.backend)

    def _gate_of_rows(self, flat: Tensor, backend: str | None) -> Tensor:
        a = self.num_anatomies
        weight, bias = self.hidden_weight.flatten(0, 1), self.hidden_bias.flatten(0, 1)
        first = grouped_linear(flat, weight, bias, backend)
        summed = F.leaky_relu(first, 0.2).unflatten(0, (a, 4)).sum(1)  # [A, N, hidden]
        second = grouped_linear(summed, self.gate_weight, self.gate_bias, backend)
        return F.dropout(second.sigmoid(), self.dropout, self.training).transpose(0, 1)

    def _gate_of(self, descriptors: Tensor, backend: str) -> Tensor:
        """gate without gradients, from the kernels' descriptors [N, 2+2A, C]: in one op where there is one.

        Its weights are read in the type that they have.
        """
        op = self._gate_op(descriptors) if backend == "native" else None
        if op is not None and self.hidden_weight.is_contiguous() and self.gate_weight.is_contiguous():
            second: Tensor = op(
                descriptors,
                self.hidden_weight,
                self.hidden_bias,
                self.gate_weight,
                self.gate_bias,
            )
            return F.dropout(second, self.dropout) if self.training and self.dropout else second
        a = self.num_anatomies
        rows = descriptors.unbind(1)
        order = [row for k in range(a) for row in (0, 1, 2 + a + k, 2 + k)]
        # not by an index: its copy to a GPU would wait for the kernels before it
        flat = torch.stack([rows[row] for row in order]).to(gate_type(descriptors, self.hidden_weight))  # [A*4, N, C]
        return self._gate_of_rows(flat, backend)

    def _gate_op(self, descriptors: Tensor) -> Callable[..., Tensor] | None:
        """The op that is the gate as a whole on this device, for so many images and weights of this type and size."""
        images, device, weight = descriptors.shape[0], descriptors.device.type, self.hidden_weight
        fits = weight.shape[2] % MATRIX_GATE_SIDE == 0 and weight.shape[3] % MATRIX_GATE_SIDE == 0
        if fits and weight.dtype in (torch.bfloat16, torch.float16) and has_matrix_gate(device):
            return torch.ops.axnet.matrix_gate.default if known(images <= MATRIX_GATE_IMAGES) else None
        few = device == "cpu" and has_attention_gate and images <= FEW
        return torch.ops.axnet.attention_gate.default if few else None

    def _gate_function(self) -> GateFunction:
        """What functional calls: the method itself where it was overridden or patched."""
        own = type(self).gate is AnatomyAwareAttention.gate and "gate" not in self.__dict__
        return _Gate(self) if own else self.gate

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Z [N, out_channels, H, W] of x [N, C, H, W] under mask [N, A, H', W']."""
        if is_traced(x):
            return as_node(self, x, mask)
        self._check(x, mask)
        return gated_norm(self.norm, x, mask, self._gate_function(), self.fusion, self.backend)

    def average(self, x: Tensor, mask: Tensor) -> Tensor:
        """Z averaged over the pixels [N, out_channels]; in eval mode from one read of x, without Z."""
        if is_traced(x) or not is_plain(self, AnatomyAwareAttention):
            averaged: Tensor = self(x, mask).mean((2, 3))
            return averaged
        self._check(x, mask)
        return gated_norm_average(self.norm, x, mask, self._gate_function(), self.fusion, self.backend)

    def pool(self, x: Tensor, mask: Tensor, pooling: nn.Module) -> tuple[Tensor, Tensor]:
        """pooling(self(x, mask)); in inference by kernels that never write Z, where the backend has them.

        Modules that are hooked, wrapped, sharded or of another type than this one, PWAP and a batch normalisation are
        called as while training.
        """
        norm = self.norm
        alone = self.fusion == "mean" and not torch.is_grad_enabled() and isinstance(x, Tensor)
        statistics = given_statistics(norm) if alone else None
        if statistics is None or not is_plain(self, AnatomyAwareAttention) or not is_plain(pooling, PWAP):
            pooled, prob = pooling(self(x, mask))
            return pooled, prob
        pwap = cast(PWAP, pooling)
        self._check(x, mask)
        check_channels(x, pwap.channels)
        return functional.attention_pwap(
            x,
            mask,
            self._gate_function(),
            norm.weight,
            norm.bias,
            *statistics,
            pwap.weight,
            pwap.bias,
            eps=norm.eps,
            backend=self.backend,
        )

    def _check(self, x: Tensor, mask: Tensor) -> None:
        check_channels(x, self.channels)
        if isinstance(mask, Tensor) and mask.dim() == 4 and mask.shape[1] != self.num_anatomies:
            raise ValueError(
                f"mask has {mask.shape[1]} anatomies (shape {list(mask.shape)}), expected {self.num_anatomies}."
            )

    def extra_repr(self) -> str:
        """Arguments, for printing."""
        return (
            f"{self.channels}, num_anatomies={self.num_anatomies}, hidden_channels={self.hidden_channels}, "
            f"fusion={self.fusion!r}, dropout={self.dropout}"
        )
