"""Which backend is the faster one on a GPU: written by benchmarks/choose_backend.py, not by hand.

native and triton measured: NVIDIA H200; commit fa4bc372bb04.
By work, layout and type: the backend and, outside of torch.compile, the least elements of X for which it is
taken; beside it the milliseconds of all passes of the work at 151 million elements.
"""

FASTER: dict[tuple[str, str, str], tuple[str, int]] = {
    ("descriptors", "NCHW", "bfloat16"): ("native", 0),  # native 0.081, triton 0.124
    ("attention", "NCHW", "bfloat16"): ("native", 0),  # native 0.252, triton 0.327
    ("attention, training", "NCHW", "bfloat16"): ("native", 0),  # native 0.715, triton 0.823
    ("pwap, few maps", "NCHW", "bfloat16"): ("native", 0),  # native 0.092, triton 0.263
    ("pwap, few maps, training", "NCHW", "bfloat16"): ("native", 0),  # native 0.293, triton 1.008
    ("pwap, many maps", "NCHW", "bfloat16"): ("native", 0),  # native 0.125, triton 0.222
    ("pwap, many maps, training", "NCHW", "bfloat16"): ("native", 0),  # native 0.395, triton 0.675
    ("descriptors", "channels_last", "bfloat16"): ("native", 0),  # native 0.082, triton 0.129
    ("attention", "channels_last", "bfloat16"): ("native", 0),  # native 0.265, triton 0.340
    ("attention, training", "channels_last", "bfloat16"): ("native", 0),  # native 0.756, triton 0.918
    ("pwap, few maps", "channels_last", "bfloat16"): ("native", 0),  # native 0.085, triton 0.335
    ("pwap, few maps, training", "channels_last", "bfloat16"): ("native", 0),  # native 0.261, triton 0.690
    ("pwap, many maps", "channels_last", "bfloat16"): ("native", 0),  # native 0.118, triton 0.405
    ("pwap, many maps, training", "channels_last", "bfloat16"): ("native", 0),  # native 0.365, triton 1.020
    ("descriptors", "NCHW", "float32"): ("native", 0),  # native 0.173, triton 0.226
    ("attention", "NCHW", "float32"): ("native", 0),  # native 0.510, triton 0.595
    ("attention, training", "NCHW", "float32"): ("native", 0),  # native 1.381, triton 1.533
    ("pwap, few maps", "NCHW", "float32"): ("native", 0),  # native 0.165, triton 0.364
    ("pwap, few maps, training", "NCHW", "float32"): ("native", 0),  # native 0.549, triton 2.152
    ("pwap, many maps", "NCHW", "float32"): ("native", 0),  # native 0.303, triton 0.388
    ("pwap, many maps, training", "NCHW", "float32"): ("triton", 525336576),  # native 1.412, triton 1.297
    ("descriptors", "channels_last", "float32"): ("native", 0),  # native 0.144, triton 0.218
    ("attention", "channels_last", "float32"): ("native", 0),  # native 0.497, triton 0.604
    ("attention, training", "channels_last", "float32"): ("native", 0),  # native 1.419, triton 1.579
    ("pwap, few maps", "channels_last", "float32"): ("native", 0),  # native 0.153, triton 0.303
    ("pwap, few maps, training", "channels_last", "float32"): ("native", 0),  # native 0.485, triton 0.683
    ("pwap, many maps", "channels_last", "float32"): ("native", 0),  # native 0.317, triton 0.596
    ("pwap, many maps, training", "channels_last", "float32"): ("native", 0),  # native 1.302, triton 1.772
}
