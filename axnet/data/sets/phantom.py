"""The built-in phantom: drawn from a seed, with exact masks."""

from __future__ import annotations

from typing import Any

from axnet.data.findings import NIH_FINDINGS
from axnet.data.sets import DataSet, Request


def _open(request: Request) -> Any:
    from axnet.data.phantom import PhantomXray

    return PhantomXray(
        request.count,
        seed=request.seed,
        size=request.size,
        split=request.split,
        findings=NIH_FINDINGS if request.findings is None else request.findings,
        with_masks=request.with_masks,
    )


DATASET = DataSet(
    title="the phantom",
    root=None,
    open=_open,
    open_organs=_open,
    splits={"train": "train", "test": "test"},
    real=False,
    masked=True,
)
