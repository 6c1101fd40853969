"""Radiographs without labels: every image file below a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from axnet.data.dicom import SUFFIXES
from axnet.data.image import StrPath, read_image
from axnet.data.nih import NIHChestXray

EXTENSIONS = (".png", ".jpg", ".jpeg", *SUFFIXES)


class RadiographFolder(Dataset[dict[str, Any]]):
    """The PNG, JPEG and DICOM files below a folder, in the order of their paths.

    Items: image float32 [1, H, W] in [0, 1] and id, the path below root. Attributes: root, ids.
    Raises FileNotFoundError when there is no such folder or it holds no image.
    """

    def __init__(self, root: StrPath) -> None:
        """Look for the files."""
        self.root = Path(root)
        self.ids = sorted(
            str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.suffix.lower() in EXTENSIONS
        )
        if not self.ids:
            raise FileNotFoundError(f"folder '{self.root}' does not exist or holds no PNG, JPEG or DICOM files.")

    def __len__(self) -> int:
        """Number of images."""
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One image."""
        return {"image": torch.from_numpy(read_image(self.root / self.ids[index]))[None], "id": self.ids[index]}


def open_unlabelled(root: StrPath) -> RadiographFolder | NIHChestXray:
    """Images to learn from without their labels: train_val of an NIH ChestX-ray14 download, else all files of a folder.

    The official test images are left out, so that results on them stay untouched. Raises as the readers do.
    """
    return NIHChestXray(root, "train_val") if any(Path(root).glob("Data_Entry_2017*.csv")) else RadiographFolder(root)
