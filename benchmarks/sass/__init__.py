"""Executes the machine code of CUDA kernels (SASS, sm_80 and sm_90) without a GPU, and counts it."""
