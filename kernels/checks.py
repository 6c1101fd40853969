"""Checks of every argument of every Triton op, as csrc/checks.h has them for the compiled ones: one sentence each.

A kernel reads what it is given as what it expects, so that a wrong type, size, stride or device would be a wrong number
or a crash.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from axnet.ops import rows
from axnet.ops.layouts import accumulator

FEATURE_TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
MAX_ANATOMIES, MAX_MAPS, MAX_PIXELS = 16, 64, 1 << 31


class _Call:
    """The checks of one call: the op's name and the features that the other arguments have to fit."""

    def __init__(self, op: str, x: Tensor) -> None:
        self.op, self.x, self.acc = op, x, accumulator(x.dtype)
        self.true(x.dtype in FEATURE_TYPES, f"x is {x.dtype}, expected float32, float64, bfloat16 or float16")
        filled = x.dim() == 4 and x.shape[1] > 0 and x.shape[2] > 0 and x.shape[3] > 0
        self.true(filled, f"x has shape {list(x.shape)}, expected [N, C, H, W] with a channel and a pixel at least")
        self.true(x.shape[2] * x.shape[3] < MAX_PIXELS, f"x has shape {list(x.shape)}, expected less than 2^31 pixels")

    def true(self, condition: bool, sentence: str) -> None:
        if not condition:
            raise RuntimeError(f"{self.op}: {sentence}.")

    def fits(
        self, name: str, t: Tensor | None, dtype: torch.dtype | None, shape: Sequence[int], dense: bool = True
    ) -> None:
        """One argument; dtype None stands for any floating type."""
        if t is None:
            return
        self.true(t.device == self.x.device, f"{name} is on {t.device}, expected the device of x, {self.x.device}")
        typed = t.dtype in FEATURE_TYPES if dtype is None else t.dtype == dtype
        self.true(typed, f"{name} is {t.dtype}, expected {dtype or 'a floating type'}")
        self.true(tuple(t.shape) == tuple(shape), f"{name} has shape {list(t.shape)}, expected {list(shape)}")
        self.true(not dense or t.is_contiguous(), f"{name} has gaps or another order, expected it contiguous")

    def mask(self, mask: Tensor) -> int:
        """The number of anatomies."""
        counted = mask.dim() == 4 and 1 <= mask.shape[1] <= MAX_ANATOMIES
        self.true(counted, f"mask has shape {list(mask.shape)}, expected [N, A, H, W] with 1 to 16 anatomies")
        n, _, h, w = self.x.shape
        self.fits("mask", mask, self.acc, (n, mask.shape[1], h, w))
        return mask.shape[1]

    def maps(self, weight: Tensor, bias: Tensor | None) -> int:
        """The number of maps."""
        counted = weight.dim() == 2 and 1 <= weight.shape[0] <= MAX_MAPS
        self.true(counted, f"weight has shape {list(weight.shape)}, expected [K, C] with 1 to 64 maps")
        self.fits("weight", weight, self.acc, (weight.shape[0], self.x.shape[1]))
        self.fits("bias", bias, self.acc, (weight.shape[0],))
        return weight.shape[0]


def _images(t: Tensor, images: int) -> int:
    return 0 if t.dim() and t.shape[0] == 0 else images


def masked_moments(x: Tensor, mask: Tensor, second: bool, positions: bool, blocks: int) -> None:
    """Arguments of masked_moments."""
    check = _Call("masked_moments", x)
    anatomies = check.mask(mask)
    check.true(blocks in (0, 1, anatomies), f"blocks is {blocks}, expected 0, 1 or the number of anatomies")


def masked_moments_backward(
    x: Tensor,
    mask: Tensor,
    argmax: Tensor,
    grad_descriptors: Tensor,
    grad_z: Tensor | None,
    coef: Tensor | None,
    input_grad: bool,
    mask_grad: bool,
) -> None:
    """Arguments of masked_moments_backward."""
    check = _Call("masked_moments_backward", x)
    a, (n, c, h, w) = check.mask(mask), x.shape
    check.fits("argmax", argmax, torch.int32, (n, 1 + a, c))
    check.fits("grad_descriptors", grad_descriptors, check.acc, (n, rows.descriptor_rows(a), c), dense=False)
    check.true((grad_z is None) == (coef is None), "grad_z and coef come together or not at all")
    if grad_z is not None:
        blocks = a if grad_z.dim() == 4 and grad_z.shape[1] != c else 1
        check.fits("grad_z", grad_z, x.dtype, (n, blocks * c, h, w), dense=False)
        check.fits("coef", coef, check.acc, (n, blocks, rows.coef_rows(1 if blocks > 1 else a), c), dense=False)


def gate_norm(
    x: Tensor,
    mask: Tensor,
    gate: Tensor,
    moments: Tensor | None,
    mass: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    eps: float,
    concat: bool,
    save: bool,
    link: Tensor,
    coef_link: Tensor,
) -> None:
    """Arguments of gate_norm."""
    check = _Call("gate_norm", x)
    a, (n, c) = check.mask(mask), x.shape[:2]
    check.fits("gate", gate, check.acc, (n, a, c), dense=False)
    if moments is not None:
        check.fits("moments", moments, check.acc, (_images(moments, n), rows.moment_rows(a), c))
    check.fits("mass", mass, torch.float64, (n, rows.mass_rows(a)))
    named = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}
    for name, t in named.items():
        check.fits(name, t, check.acc, ((a if concat else 1) * c,))
    for name, t in {"link": link, "coef_link": coef_link}.items():
        check.true(t.device == x.device, f"{name} is on {t.device}, expected the device of x, {x.device}")
    both = (running_mean is None) == (running_var is None)
    check.true(both, "running_mean and running_var come together or not at all")
    if n > 0 and (save or running_mean is None):
        given = moments is not None and moments.shape[0] > 0
        check.true(given, "moments are needed for batch statistics and for saved rows")


def gate_norm_backward(
    grad_z: Tensor,
    x: Tensor,
    mask: Tensor,
    gate: Tensor,
    mass: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    var: Tensor,
    saved: Tensor,
    eps: float,
    batch_statistics: bool,
    concat: bool,
) -> None:
    """Arguments of gate_norm_backward."""
    check = _Call("gate_norm_backward", x)
    a, (n, c, h, w) = check.mask(mask), x.shape
    blocks = a if concat else 1
    check.fits("grad_z", grad_z, x.dtype, (n, blocks * c, h, w), dense=False)
    check.fits("gate", gate, check.acc, (n, a, c), dense=False)
    check.fits("mass", mass, torch.float64, (n, rows.mass_rows(a)))
    for name, t in {"weight": weight, "mean": mean, "var": var}.items():
        check.fits(name, t, check.acc, (blocks * c,))
    check.fits("saved", saved, check.acc, (_images(saved, n), blocks, rows.saved_rows(a // blocks), c))


def pwap(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Arguments of pwap."""
    _Call("pwap", x).maps(weight, bias)


def gated_pwap(
    x: Tensor,
    mask: Tensor,
    gate: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor | None,
) -> None:
    """Arguments of gated_pwap."""
    check = _Call("gated_pwap", x)
    check.fits("gate", gate, check.acc, (x.shape[0], check.mask(mask), x.shape[1]), dense=False)
    named = {"norm_weight": norm_weight, "norm_bias": norm_bias, "mean": mean, "var": var}
    for name, t in named.items():
        check.fits(name, t, check.acc, (x.shape[1],))
    check.maps(weight, bias)


def pwap_backward(
    grad_pooled: Tensor,
    grad_prob: Tensor | None,
    x: Tensor,
    weight: Tensor,
    logits: Tensor,
    norm: Tensor,
    pooled: Tensor,
    input_grad: bool,
) -> None:
    """Arguments of pwap_backward."""
    check = _Call("pwap_backward", x)
    k, (n, c, h, w) = check.maps(weight, None), x.shape
    check.fits("grad_pooled", grad_pooled, None, (n, k, c), dense=False)
    check.fits("grad_prob", grad_prob, None, (n, k, h, w), dense=False)
    check.fits("logits", logits, check.acc, (n, k, h, w))
    check.fits("norm", norm, check.acc, (n, 2, k))
    check.fits("pooled", pooled, None, (n, k, c))
