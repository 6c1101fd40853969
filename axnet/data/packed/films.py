"""The reader of packed films."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from axnet.data.findings import Box
from axnet.data.labelled import Films, Item, LabelledFilms
from axnet.data.packed.manifest import FILMS, Manifest, Place, sha256
from axnet.data.packed.shards import Film, Shards
from axnet.data.sets import DataSet, Request, load, names
from axnet.data.splits import listed
from axnet.data.uncertainty import Policy
from axnet.imaging import grey_values
from axnet.paths import StrPath

LABEL = "label: "
"""Stands before a finding in the columns of films.parquet."""

FACTS = pa.schema(
    [
        ("sex", pa.string()),
        ("age", pa.float64()),
        ("boxes", pa.list_(pa.struct([("finding", pa.string()), *((side, pa.float64()) for side in "xywh")]))),
    ]
)
"""Columns of films.parquet that packs of earlier versions lack: "F" or "M", years, and boxes around findings in shares
of the film's width and height; null where the set does not know."""


class PackedFilms(LabelledFilms):
    """Films that `axnet prepare` has packed.

    root: the folder, or a URL (s3://, gs://, https:// ... as fsspec's packages serve them), whose files are fetched
        once when they are needed, to cache or to the system's folder for temporary files.
    split: one of the manifest's, "train" or "test" for the part that the original set trains or is measured on, "all",
        or a .txt file that lists ids.
    views: of those that were packed. uncertain: what -1 becomes; blank: None for what the original set takes it for.
    masks: what gives other masks than the packed ones. The rest, items and attributes as
    axnet.data.labelled.LabelledFilms describes; items have mask float32 [3,H,W] (axnet.data.ORGANS) where masks were
    packed. Attributes: manifest; table has sex and age (years), too; lacking: what an older axnet did not keep, as a
    sentence, "" otherwise.
    Raises ValueError for files that are damaged, or content that contradicts itself.
    """

    def __init__(
        self,
        root: StrPath,
        split: str = "all",
        *,
        cache: str | None = None,
        findings: Sequence[str] | None = None,
        allow_absent: bool = False,
        views: str | Sequence[str] = "all",
        uncertain: Policy = "ignore",
        blank: str | None = None,
        size: int | None = None,
        masks: Callable[[str], npt.NDArray[Any]] | None = None,
        transform: Callable[[Item], Item] | None = None,
    ) -> None:
        """Read manifest and labels; the class describes the arguments."""
        place = Place(str(root), cache)
        if not place.exists():
            raise FileNotFoundError(f"root '{root}' holds no manifest.json, expected a folder of axnet prepare.")
        self.manifest: Manifest = place.manifest()
        own = listed(split) is not None
        reported = {said["name"]: name for name, said in self.manifest.splits.items()}
        name = split
        if not own and split not in self.manifest.splits:
            name = self.manifest.roles.get(split, reported.get(split, split))
        there = (*self.manifest.splits, "all")
        if not own and name not in there:
            raise ValueError(f"split is {split!r}, expected one of {there}, which '{root}' holds.")
        table = _table(place)
        if not own and name != "all":
            table = table[table["split"] == name].reset_index(drop=True)
        facts = [column for column in FACTS.names if column in table.columns]
        rows = table[["image", "patient", "view", *facts, "shard", "row"]].assign(path=table["image"])
        raw = table[[LABEL + finding for finding in self.manifest.findings]].to_numpy(dtype=np.float64)
        super().__init__(
            Films(Path(f"{root}/{FILMS}"), rows, raw, self.manifest.findings),
            root=Path(str(root)),
            split=split if own else name,
            findings=findings,
            allow_absent=allow_absent,
            views=views,
            uncertain=uncertain,
            blank=self.manifest.blank if blank is None else blank,
            size=size,
            masks=masks,
            transform=transform,
        )
        named = self.manifest.splits.get(name, {}).get("name")
        self.split_name = named or f"{self.manifest.data}-{Path(split).stem if own else name}"
        self.shards = Shards(place.locate, [shard["file"] for shard in self.manifest.shards])
        self._shard: npt.NDArray[np.int64] = self.table.pop("shard").to_numpy(dtype=np.int64)
        self._row: npt.NDArray[np.int64] = self.table.pop("row").to_numpy(dtype=np.int64)
        self.lacking = ""
        if len(facts) < len(FACTS):
            self.lacking = (
                f"packed films '{root}' keep no sex, age and boxes, since an older axnet packed them: the same axnet "
                "prepare adds them, and packs no film again."
            )
        self._boxes: dict[str, Any] = {}
        if "boxes" in facts:
            boxes = self.table.pop("boxes")
            self._boxes = dict(zip(self.table["image"][boxes.notna()], boxes[boxes.notna()], strict=True))

    def _check_files(self) -> None:
        """The manifest has named what there is; a shard is checked when it is opened."""

    @property
    def plain(self) -> bool:
        """Whether items hold what is stored, and nothing is made of it."""
        return self.size is None and self.masks is None and self.transform is None

    def film(self, index: int, *, masks: bool = True) -> Film:
        """Stored grey values and masks of a film. Raises ValueError where the shard is damaged."""
        try:
            found = self.shards.read(int(self._shard[index]), int(self._row[index]), masks=masks)
        except ValueError as error:
            raise ValueError(f"packed films '{self.root}', '{self.ids[index]}': {error}") from error
        if found.image != self.ids[index]:
            raise ValueError(f"packed films '{self.root}': a shard has '{found.image}' for '{self.ids[index]}'.")
        return found

    def content(self, index: int) -> list[Any] | None:
        """Bytes of a film as axnet.data.packed.shards.Shards.content gives them; None where `film` must be asked."""
        if self.manifest.size is None:
            return None
        place = int(self._shard[index]), int(self._row[index])
        return self.shards.content(*place, self.ids[index], self.manifest.size)

    def _read(self, index: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None]:
        film = self.film(index, masks=self.masks is None)
        return grey_values(film.pixels), self._mask(index) if film.masks is None else film.masks.astype(np.float32)

    def path(self, image_id: str) -> Path:
        """Raises ValueError: packed films have no files of their own."""
        raise ValueError(f"'{image_id}' of '{self.root}' is packed, and no file of its own.")

    def boxes(self, image_id: str) -> list[Box]:
        """Boxes around findings of a film, in its pixels; empty where there are none, or the set has none at all.

        Raises ValueError for an unknown id, and for films that an older axnet packed, which kept no boxes.
        """
        found = self.boxes_in_shares(image_id)
        if not found:
            return []
        height, width = self.film(self._places[image_id], masks=False).pixels.shape
        return [Box(box.finding, box.x * width, box.y * height, box.w * width, box.h * height) for box in found]

    def boxes_in_shares(self, image_id: str) -> list[Box]:
        """The same in shares of the film's width and height; no film is read."""
        if image_id not in self._places:
            raise ValueError(f"image_id is '{image_id}', expected a film of split '{self.split}'.")
        if self.lacking:
            raise ValueError(self.lacking)
        return [Box(**box) for box in self._boxes.get(image_id, ())]

    def fingerprint(self) -> str | None:
        """Names the films: the manifest knows them by their content."""
        return None if self.transform is not None or self.masks is not None else f"{self.manifest.plan}-{self.size}"


def dataset(root: str, cache: str | None = None) -> DataSet:
    """What a packed folder is to the commands: the set that it was made of."""
    found = Place(root).manifest()

    def opened(request: Request) -> PackedFilms:
        options = {"cache": cache, **request.options}
        return PackedFilms(request.root or "", request.split, findings=request.findings, **options)

    named = load(found.data).named if found.data in names() else {}
    return DataSet(
        title=found.title,
        root=f"the packed folder '{root}' with the splits {(*found.splits, 'all')}",
        open=opened,
        splits=found.roles,
        named={name: parts for name, parts in named.items() if set(parts.values()) <= set(found.splits)},
        options=("allow_absent", "views", "uncertain", "blank"),
        real=found.real,
        masked=found.masks is not None,
    )


def _table(place: Place) -> pd.DataFrame:
    try:
        file = place.locate(FILMS)
        if sha256(file) != place.sizes[FILMS][1]:
            raise ValueError("its content is not what was written")
        return pq.read_table(file, use_threads=False).to_pandas()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"'{place.root}/{FILMS}' is damaged or cannot be read ({error}).") from error
