"""Triton kernels of axnet, installed as axnet.kernels."""
