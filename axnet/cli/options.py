"""Options that several commands share."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Optional

import typer


class DataName(str, Enum):
    """Data sets that the commands know."""

    phantom = "phantom"
    nih = "nih"


Data = Annotated[DataName, typer.Option(help="The built-in phantom, or NIH ChestX-ray14 in --root.")]
Root = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="Folder of the NIH download (Data_Entry_2017*.csv, images*/, the split lists)."),
]
SegmenterFile = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--segmenter", help="Weights of a segmenter (axnet segment fit) that draws the anatomy masks."),
]
OrganRoot = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        help="Organ mask set (index.csv, images/, masks/) to train a segmenter on when --segmenter is absent."
    ),
]
Cache = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="Folder for memory-mapped images and masks, for sets larger than the memory."),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that read or render images; 0 for none.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]
