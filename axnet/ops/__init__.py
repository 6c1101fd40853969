"""The ops of axnet as torch.library sees them: schema (compiled, or of axnet.kernels), shape inference, autograd.

Private floor: arguments are checked above, in axnet.functional. Every op is torch.ops.axnet.* or, with the same
contract, torch.ops.axnet_triton.*; the backward passes are ops of their own and cannot be differentiated again (use the
reference backend for that).
"""

from __future__ import annotations

from axnet.ops import attention, linear, pooling
from axnet.ops.library import (
    fused_ops,
    has_attention_gate,
    has_gated_pwap,
    has_matrix_gate,
    triton_unavailable,
    unavailable,
)

if unavailable() is None:
    attention.register("axnet", "native")
    pooling.register("axnet", "native")
    linear.register()

__all__ = ["fused_ops", "has_attention_gate", "has_gated_pwap", "has_matrix_gate", "triton_unavailable", "unavailable"]
