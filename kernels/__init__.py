"""Triton kernels of axnet, installed as axnet.kernels; importing axnet.kernels.ops brings Triton and registers them."""
