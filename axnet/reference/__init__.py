"""The plain-PyTorch definition of every op: the truth that tests and benchmarks compare with.

Each function is written op by op from docs/method.md, in the input's own type, with PyTorch's own autograd (double
backward included). Nothing here is fused, and nothing here is approximate.
"""

from __future__ import annotations

from axnet.reference.attention import GateFunction, anatomy_attention, blend, masked_pool
from axnet.reference.pooling import classify_pooled, pcam, pwap

__all__ = ["GateFunction", "anatomy_attention", "blend", "classify_pooled", "masked_pool", "pcam", "pwap"]
