"""Chest X-ray data: the readers (NIH ChestX-ray14, organ masks) and the procedural phantom.

Importing this package loads neither pandas nor Pillow: each name is imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from axnet.data.findings import ANATOMIES, NIH_FINDINGS, ORGANS, Box, organs_to_anatomies
    from axnet.data.folder import RadiographFolder, open_unlabelled
    from axnet.data.image import percentile_normalize, read_image, read_mask, resize
    from axnet.data.mask_table import MaskTable, MaskWriter
    from axnet.data.nih import NIHChestXray
    from axnet.data.organs import OrganMaskSet
    from axnet.data.phantom import PhantomSample, PhantomXray, render, write_nih

_HOME = {
    "ANATOMIES": "findings",
    "NIH_FINDINGS": "findings",
    "ORGANS": "findings",
    "Box": "findings",
    "organs_to_anatomies": "findings",
    "RadiographFolder": "folder",
    "open_unlabelled": "folder",
    "percentile_normalize": "image",
    "read_image": "image",
    "read_mask": "image",
    "resize": "image",
    "MaskTable": "mask_table",
    "MaskWriter": "mask_table",
    "NIHChestXray": "nih",
    "OrganMaskSet": "organs",
    "PhantomSample": "phantom",
    "PhantomXray": "phantom",
    "render": "phantom",
    "write_nih": "phantom",
}

__all__ = [
    "ANATOMIES",
    "NIH_FINDINGS",
    "ORGANS",
    "Box",
    "MaskTable",
    "MaskWriter",
    "NIHChestXray",
    "OrganMaskSet",
    "PhantomSample",
    "PhantomXray",
    "RadiographFolder",
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
        return getattr(importlib.import_module(f"axnet.data.{_HOME[name]}"), name)
    raise AttributeError(f"module 'axnet.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
