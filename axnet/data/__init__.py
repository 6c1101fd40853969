"""Chest X-ray data: the readers (NIH ChestX-ray14, organ masks) and the procedural phantom.

Importing this package loads neither pandas nor Pillow: each name is imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from axnet.data.cardiothoracic import cardiothoracic_ratio
    from axnet.data.findings import (
        ANATOMIES,
        CHEXPERT_FINDINGS,
        NIH_FINDINGS,
        ORGANS,
        Box,
        canonical,
        organs_to_anatomies,
    )
    from axnet.data.folder import RadiographFolder, open_unlabelled
    from axnet.data.image import read_image, read_mask
    from axnet.data.joined import Joined
    from axnet.data.mask_table import MaskTable, MaskWriter
    from axnet.data.nih import NIHChestXray
    from axnet.data.organs import OrganMaskSet
    from axnet.data.packed.films import PackedFilms
    from axnet.data.phantom import PhantomSample, PhantomXray, render, write_nih
    from axnet.data.sets.chexpert import CheXpert
    from axnet.data.sets.csv import CSVDataset
    from axnet.data.sets.mimic import MIMICCXR
    from axnet.imaging import percentile_normalize, resize

_HOME = {
    "ANATOMIES": "axnet.data.findings",
    "CHEXPERT_FINDINGS": "axnet.data.findings",
    "NIH_FINDINGS": "axnet.data.findings",
    "ORGANS": "axnet.data.findings",
    "Box": "axnet.data.findings",
    "CSVDataset": "axnet.data.sets.csv",
    "CheXpert": "axnet.data.sets.chexpert",
    "MIMICCXR": "axnet.data.sets.mimic",
    "canonical": "axnet.data.findings",
    "cardiothoracic_ratio": "axnet.data.cardiothoracic",
    "organs_to_anatomies": "axnet.data.findings",
    "RadiographFolder": "axnet.data.folder",
    "open_unlabelled": "axnet.data.folder",
    "percentile_normalize": "axnet.imaging",
    "read_image": "axnet.data.image",
    "read_mask": "axnet.data.image",
    "resize": "axnet.imaging",
    "Joined": "axnet.data.joined",
    "MaskTable": "axnet.data.mask_table",
    "MaskWriter": "axnet.data.mask_table",
    "NIHChestXray": "axnet.data.nih",
    "OrganMaskSet": "axnet.data.organs",
    "PackedFilms": "axnet.data.packed.films",
    "PhantomSample": "axnet.data.phantom",
    "PhantomXray": "axnet.data.phantom",
    "render": "axnet.data.phantom",
    "write_nih": "axnet.data.phantom",
}

__all__ = [
    "ANATOMIES",
    "CHEXPERT_FINDINGS",
    "MIMICCXR",
    "NIH_FINDINGS",
    "ORGANS",
    "Box",
    "CSVDataset",
    "CheXpert",
    "Joined",
    "MaskTable",
    "MaskWriter",
    "NIHChestXray",
    "OrganMaskSet",
    "PackedFilms",
    "PhantomSample",
    "PhantomXray",
    "RadiographFolder",
    "canonical",
    "cardiothoracic_ratio",
    "open_unlabelled",
    "organs_to_anatomies",
    "percentile_normalize",
    "read_image",
    "read_mask",
    "render",
    "resize",
    "write_nih",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'axnet.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
