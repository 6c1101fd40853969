"""NIH ChestX-ray14 with its official lists."""

from __future__ import annotations

from typing import Any

from axnet.data.findings import NIH_FINDINGS
from axnet.data.sets import DataSet, Request


def _open(request: Request) -> Any:
    from axnet.data.nih import NIHChestXray

    findings = NIH_FINDINGS if request.findings is None else request.findings
    return NIHChestXray(request.root or "", request.split, findings=findings, **request.options)


DATASET = DataSet(
    title="NIH ChestX-ray14",
    root="the folder of the NIH download (Data_Entry_2017*.csv, images*/, the split lists)",
    open=_open,
    splits={"train": "train_val", "test": "test"},
    named={
        "nih-official": {"train": "train_val", "test": "test"},
        "nih-chexnet": {"train": "chexnet-train", "test": "chexnet-test"},
    },
    options=("allow_absent", "views", "uncertain"),
    marks=("Data_Entry_2017*.csv",),
)
