"""Batches of a loader's process: what arrives is what was cut, and few tensors go over as such."""

from __future__ import annotations

import io
from multiprocessing.reduction import ForkingPickler
from typing import Any

import pytest
import torch
from torch.multiprocessing import reductions
from torch.utils.data import DataLoader

from axnet.train import handing
from axnet.train.data import Batches, as_is, with_blank_masks
from axnet.train.pace import made_up


@pytest.mark.parametrize("blank", [False, True])
def test_a_process_hands_over_what_was_cut(blank: bool) -> None:
    films = made_up(160, 12, ("Mass", "Nodule", "Edema"))
    batches = Batches(with_blank_masks(films) if blank else films)
    here, there = (
        list(DataLoader(batches, 5, num_workers=count, collate_fn=as_is))  # type: ignore[arg-type]
        for count in (0, 1)
    )
    assert [len(batch["index"]) for batch in there] == [5, 5, 2]
    for one, other in zip(here, there, strict=True):
        assert type(other) is dict
        for name, value in one.items():
            assert value.dtype == other[name].dtype
            assert torch.equal(value, other[name]), name
            other[name].clone().zero_()


def test_only_images_and_masks_are_handed_over_and_those_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every storage that torch hands over costs a connection between the processes."""
    monkeypatch.setattr(handing, "get_worker_info", lambda: "in a loader's process")
    image, mask = handing.empty((4, 1, 200, 200), (4, 2, 200, 200))
    assert image.is_shared()
    image.fill_(3)
    mask.fill_(4)
    handed: list[Any] = []
    plain = reductions.reduce_storage
    labels = {"label": torch.rand(9, 3)[2:6], "index": torch.arange(4), "none": torch.zeros(0, 3)}
    blank = torch.zeros((), dtype=torch.uint8).expand(4, 2, 200, 200)
    batch = handing.Batch(image=image, mask=mask, blank=blank, **labels)
    pickler = ForkingPickler(io.BytesIO())
    pickler.dispatch_table = {
        **pickler.dispatch_table,
        torch.UntypedStorage: lambda storage: handed.append(storage) or plain(storage),
    }
    pickler.dump(batch)
    assert len(handed) == 1
    build, (sent,) = batch.__reduce__()
    found = build(sent)
    assert type(found) is dict
    for name, value in batch.items():
        assert torch.equal(found[name], value), name
    assert found["blank"].untyped_storage().nbytes() == 1
