"""The ops of axnet as torch.library sees them: schema (compiled), shape inference, autograd.

Private floor: arguments are checked above, in axnet.functional. Every op is torch.ops.axnet.*; the backward passes are
ops of their own and cannot be differentiated again (use the reference backend for that).
"""

from __future__ import annotations

from axnet.ops.library import unavailable

if unavailable() is None:
    # imported to register shape inference and autograd
    from axnet.ops import attention, pooling  # noqa: F401

__all__ = ["unavailable"]
