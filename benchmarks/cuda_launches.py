"""What the judge of the CUDA kernels (benchmarks/cuda_model.py) looks at: passes, shapes, and budgets.

A kernel needs nothing here: its launches are recorded from the host code of the ops that start it. What a new op or a
new shape needs is an entry below.
"""

from __future__ import annotations

from typing import Any

import torch

# The shape of the device's record, which decides the budgets, and the smaller ones that must keep up with it.
SHAPE = (64, 1024, 48, 48)
SHAPES = (SHAPE, (64, 1024, 32, 32), (64, 1024, 16, 16), (64, 2048, 16, 16), (256, 1024, 7, 7))
LAYOUTS = ("NCHW", "channels_last")
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}

COPY = 4.23e12  # bytes a second of a copy, measured on an H200

# X-sized maps that a pass reads and writes: its floor of bytes.
MAPS = {
    **{"descriptors": 1, "moments": 1, "gate + norm": 2, "backward sums": 2, "backward input": 3},
    **{"pwap, 1": 1, "pwap backward, 1": 2, "pwap, 14": 1, "pwap backward, 14": 2},
}

# Executed thread instructions an element at most (7 x 7: twice that), and the least predicted share of a copy's
# bandwidth in percent, bfloat16 then float32.
BUDGETS: dict[str, tuple[tuple[float, float], tuple[float, float]]] = {
    "descriptors": ((5, 14), (85, 85)),
    "moments": ((9, 18), (80, 85)),
    "gate + norm": ((8, 8), (88, 88)),
    "backward sums": ((6, 14), (85, 85)),
    "backward input": ((16, 16), (85, 85)),
    "pwap, 1": ((10, 10), (75, 75)),
    "pwap backward, 1": ((16, 16), (75, 75)),
    "pwap, 14": ((12, float("inf")), (65, 40)),
    "pwap backward, 14": ((20, float("inf")), (60, 35)),
}

# Passes whose instructions are within their budget at SHAPE, which a test holds; and their predicted share where it is,
# else what it was when it was recorded (benchmarks/results/cuda_model.json).
HELD = (
    *(
        (name, "bfloat16", "NCHW")
        for name in (
            *("descriptors", "moments", "gate + norm", "backward sums", "backward input", "pwap, 1"),
            *("pwap backward, 1", "pwap, 14", "pwap backward, 14"),
        )
    ),
    ("moments", "bfloat16", "channels_last"),
    ("backward sums", "bfloat16", "channels_last"),
    ("backward input", "bfloat16", "channels_last"),
    ("pwap backward, 14", "bfloat16", "channels_last"),
    ("moments", "float32", "NCHW"),
    ("moments", "float32", "channels_last"),
    ("backward sums", "float32", "NCHW"),
    ("pwap, 1", "float32", "channels_last"),
)

# The same at smaller shapes, where a kernel's beginning and end weigh more: instructions alone.
HELD_SMALL = (
    *(("descriptors", "bfloat16", "channels_last", shape) for shape in ((64, 1024, 16, 16), (256, 1024, 7, 7))),
    ("descriptors", "float32", "NCHW", (256, 1024, 7, 7)),
    *(
        ("backward sums", dtype, layout, shape)
        for dtype in ("bfloat16", "float32")
        for layout in LAYOUTS
        for shape in SHAPES[1:]
    ),
    *(
        ("backward input", "bfloat16", layout, shape)
        for layout in LAYOUTS
        for shape in ((64, 1024, 16, 16), (256, 1024, 7, 7))
    ),
    *(("gate + norm", "bfloat16", layout, (64, 1024, 16, 16)) for layout in LAYOUTS),
    *(("gate + norm", "bfloat16", layout, (256, 1024, 7, 7)) for layout in LAYOUTS),
    *(
        ("pwap backward, 14", "bfloat16", layout, shape)
        for layout in LAYOUTS
        for shape in ((64, 1024, 16, 16), (64, 2048, 16, 16))
    ),
    *(("pwap, 1", "bfloat16", "NCHW", shape) for shape in ((64, 1024, 16, 16), (256, 1024, 7, 7))),
    *(("pwap, 1", "float32", "NCHW", shape) for shape in SHAPES[2:]),
    *(("pwap, 1", "float32", "channels_last", shape) for shape in ((64, 1024, 16, 16), (64, 2048, 16, 16))),
    *(("pwap backward, 1", "float32", "NCHW", shape) for shape in ((64, 1024, 16, 16), (256, 1024, 7, 7))),
    ("pwap backward, 1", "bfloat16", "NCHW", (256, 1024, 7, 7)),
    *(("pwap, 14", "bfloat16", layout, (64, 1024, 16, 16)) for layout in LAYOUTS),
    ("pwap, 14", "bfloat16", "NCHW", (256, 1024, 7, 7)),
    ("pwap backward, 14", "bfloat16", "NCHW", (256, 1024, 7, 7)),
    *((name, "bfloat16", "NCHW", shape) for name in ("moments", "descriptors") for shape in SHAPES[1:]),
    *(("moments", "float32", layout, shape) for layout in LAYOUTS for shape in SHAPES[1:]),
    *(("moments", "bfloat16", "channels_last", shape) for shape in SHAPES[1:]),
)


def calls(shape: tuple[int, int, int, int], layout: str, dtype: torch.dtype) -> dict[str, Any]:
    """The ops by pass, as the device's record times them (axnet.bench.measure.passes)."""
    from axnet.bench.measure import passes

    made: dict[str, Any] = {name: call for name, (_, call) in passes(shape, layout, dtype, "cpu", "native").items()}
    inputs = made["backward input"]

    def with_maxima() -> Any:
        _, x, mask = inputs.args
        place_maxima(x, mask, inputs.keywords["argmax"])
        return inputs()

    return made | {"backward input": with_maxima}


def place_maxima(x: torch.Tensor, mask: torch.Tensor, argmax: torch.Tensor) -> None:
    """Write what masked_moments finds: a recorded launch computes nothing, and the places decide a kernel's work."""
    for image, masks, places in zip(x, mask, argmax, strict=True):
        rows = image.flatten(1).float()
        places[0] = rows.argmax(1)
        for k, weights in enumerate(masks.flatten(1), 1):
            places[k] = (rows * weights).argmax(1)
