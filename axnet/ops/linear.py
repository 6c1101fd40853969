"""Shape inference of grouped_linear and attention_gate, which A3's gate uses on a CPU, and matrix_gate, on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

# What matrix_gate takes (csrc/cuda/plans.h): images at most, and of what H and C must be multiples.
MATRIX_GATE_IMAGES, MATRIX_GATE_SIDE = 64, 128


def _fake_grouped_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return weight.new_empty((x.shape[0], x.shape[1], weight.shape[1]))


def _fake_attention_gate(
    descriptors: Tensor, hidden_weight: Tensor, hidden_bias: Tensor, gate_weight: Tensor, gate_bias: Tensor
) -> Tensor:
    return descriptors.new_empty((descriptors.shape[0], hidden_weight.shape[0], hidden_weight.shape[3]))


def register() -> None:
    """Give the ops their shape inference; grouped_linear's derivatives are those of axnet.nn.grouped."""
    torch.library.register_fake("axnet::grouped_linear", _fake_grouped_linear)
    torch.library.register_fake("axnet::attention_gate", _fake_attention_gate)
    torch.library.register_fake("axnet::matrix_gate", _fake_attention_gate)
