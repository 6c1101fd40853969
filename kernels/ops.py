"""The ops of the namespace axnet_triton: importing this module registers them, with shape inference and autograd."""

from axnet.kernels import attention_ops, pooling_ops
from axnet.kernels.register import NAMESPACE

from axnet.ops import attention, pooling

__all__ = ["NAMESPACE", "attention_ops", "pooling_ops"]

attention.register(NAMESPACE, "triton")
pooling.register(NAMESPACE, "triton")
