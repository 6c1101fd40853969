"""Radiographs with organ masks: the set that teaches the anatomy segmenter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset

from axnet.data.findings import ORGANS
from axnet.data.image import read_image, read_mask
from axnet.imaging import resize
from axnet.paths import StrPath

SPLITS = ("train", "val", "test", "all")

Item = dict[str, Any]


class OrganMaskSet(Dataset[Item]):
    """Radiographs with one mask per organ.

    root: holds index.csv (columns image, split, ctr; ctr, the cardiothoracic ratio, may be empty), images/NAME and
        masks/ORGAN/NAME for every organ, masks of the size of their image.
    split: "train", "val", "test" or "all".
    size: side in pixels to which images and masks are resized, None for the stored size.
    transform: called with the item, returns the item to use.
    organs: folders under masks/ to read, in the order of the mask channels.

    Items: image float32 [1,H,W] in [0,1]; mask float32 [A,H,W], 0 or 1 at the stored size and area coverage after
    a resize; id; ctr float (nan where unknown). Organs may overlap. Attributes: table, ids, ctr float32 [N].
    Raises FileNotFoundError for a missing index, image or mask (checked up front), ValueError for a missing column,
    an unknown split or a mask whose size is not that of its image.
    """

    def __init__(
        self,
        root: StrPath,
        split: str = "train",
        *,
        size: int | None = None,
        transform: Callable[[Item], Item] | None = None,
        organs: Sequence[str] = ORGANS,
    ) -> None:
        """Read the index and look for images and masks; the class describes the arguments."""
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}, expected one of {SPLITS}.")
        self.root = Path(root)
        self.split = split
        self.size = size
        self.transform = transform
        self.organs: tuple[str, ...] = tuple(organs)

        index = self.root / "index.csv"
        if not index.is_file():
            raise FileNotFoundError(f"root '{self.root}' holds no index.csv.")
        table = pd.read_csv(index, dtype={"image": str, "split": str})
        missing = [column for column in ("image", "split", "ctr") if column not in table.columns]
        if missing:
            raise ValueError(f"table '{index}' lacks column '{missing[0]}', expected image, split, ctr.")
        strange = sorted(set(table["split"]) - set(SPLITS[:3]), key=str)
        if strange:
            raise ValueError(f"table '{index}' has the unknown split {strange[0]!r}, expected one of {SPLITS[:3]}.")
        if split != "all":
            table = table[table["split"] == split]
        self.table: pd.DataFrame = table[["image", "split", "ctr"]].reset_index(drop=True)
        self.ids: list[str] = self.table["image"].tolist()
        self.ctr = self.table["ctr"].to_numpy(dtype=np.float32)
        for folder in ("images", *(f"masks/{organ}" for organ in self.organs)):
            _check_folder(self.root / folder, self.ids)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.ids)

    def __getitem__(self, index: int) -> Item:
        """One image with its organ masks."""
        name = self.ids[index]
        image = read_image(self.root / "images" / name)
        masks = [read_mask(self.root / "masks" / organ / name) for organ in self.organs]
        for organ, mask in zip(self.organs, masks, strict=True):
            if mask.shape != image.shape:
                raise ValueError(f"mask '{organ}/{name}' has shape {mask.shape}, its image has {image.shape}.")
        stack = np.stack(masks).astype(np.float32)
        if self.size is not None:
            image, stack = resize(image, self.size), resize(stack, self.size)
        item: Item = {
            "image": torch.from_numpy(image)[None],
            "mask": torch.from_numpy(stack),
            "id": name,
            "ctr": float(self.ctr[index]),
        }
        return item if self.transform is None else self.transform(item)


def _check_folder(folder: Path, names: Sequence[str]) -> None:
    present = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    missing = [name for name in names if name not in present]
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise FileNotFoundError(f"{len(missing)} of {len(names)} files are missing in '{folder}': {shown}.")
