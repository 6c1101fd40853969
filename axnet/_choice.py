"""Which backend is the faster one on a GPU: written by benchmarks/choose_backend.py, not by hand.

native and triton measured: NVIDIA H200 (132 multiprocessors, L2 60 MB), driver 580.159.04, torch 2.11.0+cu130, Triton
3.6.0, nvcc 13.0; commit e58de9aa53e5 (plus the one-line shim for torch 2.11's headers).
By work, layout and type: the backend and, outside of torch.compile, the least elements of X for which it is
taken; beside it the milliseconds of all passes of the work at 151 million elements.
"""

FASTER: dict[tuple[str, str, str], tuple[str, int]] = {
    ("descriptors", "NCHW", "bfloat16"): ("native", 0),  # native 0.314, triton 0.326
    ("attention", "NCHW", "bfloat16"): ("triton", 175112192),  # native 0.885, triton 0.540
    ("attention, training", "NCHW", "bfloat16"): ("triton", 61865984),  # native 3.181, triton 1.222
    ("pwap, few maps", "NCHW", "bfloat16"): ("triton", 110100480),  # native 0.609, triton 0.334
    ("pwap, few maps, training", "NCHW", "bfloat16"): ("triton", 59768832),  # native 1.866, triton 0.862
    ("pwap, many maps", "NCHW", "bfloat16"): ("triton", 686817280),  # native 0.267, triton 0.223
    ("pwap, many maps, training", "NCHW", "bfloat16"): ("triton", 195035136),  # native 0.989, triton 0.680
    ("descriptors", "channels_last", "bfloat16"): ("native", 0),  # native 0.349, triton 0.356
    ("attention", "channels_last", "bfloat16"): ("triton", 1233125376),  # native 0.655, triton 0.606
    ("attention, training", "channels_last", "bfloat16"): ("triton", 115343360),  # native 2.703, triton 1.653
    ("pwap, few maps", "channels_last", "bfloat16"): ("native", 0),  # native 0.387, triton 0.916
    ("pwap, few maps, training", "channels_last", "bfloat16"): ("native", 0),  # native 1.261, triton 1.966
    ("pwap, many maps", "channels_last", "bfloat16"): ("native", 0),  # native 0.251, triton 0.401
    ("pwap, many maps, training", "channels_last", "bfloat16"): ("native", 0),  # native 0.835, triton 1.005
    ("descriptors", "NCHW", "float32"): ("triton", 191889408),  # native 0.481, triton 0.324
    ("attention", "NCHW", "float32"): ("triton", 246415360),  # native 0.900, triton 0.655
    ("attention, training", "NCHW", "float32"): ("triton", 111149056),  # native 2.709, triton 1.621
    ("pwap, few maps", "NCHW", "float32"): ("triton", 96468992),  # native 0.691, triton 0.379
    ("pwap, few maps, training", "NCHW", "float32"): ("triton", 51380224),  # native 2.156, triton 0.991
    ("pwap, many maps", "NCHW", "float32"): ("triton", 78643200),  # native 1.907, triton 1.521
    ("pwap, many maps, training", "NCHW", "float32"): ("triton", 36700160),  # native 5.319, triton 3.686
    ("descriptors", "channels_last", "float32"): ("triton", 201326592),  # native 0.526, triton 0.376
    ("attention", "channels_last", "float32"): ("triton", 434110464),  # native 0.865, triton 0.726
    ("attention, training", "channels_last", "float32"): ("triton", 130023424),  # native 2.787, triton 1.860
    ("pwap, few maps", "channels_last", "float32"): ("native", 0),  # native 0.432, triton 1.632
    ("pwap, few maps, training", "channels_last", "float32"): ("native", 0),  # native 1.632, triton 3.475
    ("pwap, many maps", "channels_last", "float32"): ("triton", 49283072),  # native 1.641, triton 1.026
    ("pwap, many maps, training", "channels_last", "float32"): ("triton", 27262976),  # native 4.830, triton 2.599
}
