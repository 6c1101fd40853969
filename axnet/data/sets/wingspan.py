"""A set of organ masks on disk: index.csv, images/, masks/ORGAN/ (OrganMaskSet)."""

from __future__ import annotations

from typing import Any

from axnet.data.sets import DataSet, Request


def _open_organs(request: Request) -> Any:
    from axnet.data.organs import OrganMaskSet

    return OrganMaskSet(request.root or "", request.split)


DATASET = DataSet(
    title="organ masks",
    root="the folder of the organ mask set (index.csv, images/, masks/left_lung, right_lung, heart)",
    open_organs=_open_organs,
    marks=("index.csv", "masks"),
)
