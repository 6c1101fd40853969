"""Batches of a loader's process: what arrives is what was cut, and lies in memory that is used again."""

from __future__ import annotations

import copy
import gc
import io
import multiprocessing
from multiprocessing.reduction import ForkingPickler
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.multiprocessing import reductions

from axnet.train import handing
from axnet.train.data import Batches, loader, with_blank_masks
from axnet.train.handing import Batch, Slots
from axnet.train.pace import made_up


def batches(blank: bool = False) -> Batches:
    films = made_up(160, 24, ("Mass", "Nodule", "Edema"))
    return Batches(with_blank_masks(films) if blank else films)


def slots_of(made: Any) -> Slots | None:
    found: Slots | None = made.dataset.slots
    return found


def owners(slots: Slots) -> list[int]:
    return slots._state[0].tolist()


@pytest.mark.parametrize("blank", [False, True])
def test_a_process_hands_over_what_was_cut(blank: bool) -> None:
    here = list(loader(batches(blank), batch_size=5, workers=0))
    for one, other in zip(here, loader(batches(blank), batch_size=5, workers=1), strict=True):
        assert type(other) is dict
        assert list(one) == list(other)
        for name, value in one.items():
            assert value.dtype == other[name].dtype
            assert torch.equal(value, other[name]), name
            other[name].clone().zero_()
            if name != "mask":
                other[name].zero_()  # what arrives is the receiver's own


@pytest.mark.parametrize("kept", [0, 2, 24])
def test_no_batch_changes_while_it_is_held(kept: int) -> None:
    """Also where more are held than there is room for, and where an epoch is left before its end."""
    cut = batches()
    made = loader(cut, batch_size=1, workers=2)
    slots = slots_of(made)
    assert slots is not None
    assert len(owners(slots)) < 24
    for _ in range(2):
        held: list[Any] = []
        for place, batch in enumerate(made):
            held = [*held, (place, batch["image"], batch["mask"])][-kept:] if kept else []
            for number, image, mask in held:
                assert torch.equal(image, cut.data.images[number : number + 1])
                assert torch.equal(mask, cut.masks[number : number + 1])
            if kept == 2 and place == 7:
                break
        del batch
    held.clear()
    gc.collect()
    assert handing._HELD not in owners(slots)


def test_room_is_free_when_the_last_tensor_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    slots = Slots(2, 400_000)
    sent = [Batch({"image": torch.full((2, 70_000), fill, dtype=torch.uint8)}, slots) for fill in (1, 2, 3)]
    assert [one.place is None for one in sent] == [False, False, True]
    build, arguments = sent[0].__reduce__()
    image = build(*arguments)["image"]
    part = image[1, 3:9]
    del image
    assert owners(slots)[0] == handing._HELD
    slots._freed(0, -7)  # of a process that was forked while this one held it
    assert owners(slots)[0] == handing._HELD
    assert part.tolist() == [1] * 6
    del part
    assert owners(slots)[0] == handing._FREE
    # a process that has ended will not send what it claimed
    child = multiprocessing.get_context("fork").Process(target=int)
    child.start()
    child.join()
    slots._state[0, 1] = child.pid
    again = [Batch({"image": torch.full((2, 70_000), fill, dtype=torch.uint8)}, slots) for fill in (4, 5, 6)]
    assert [one.place is None for one in again] == [False, False, True]
    build, arguments = sent[1].__reduce__()
    with pytest.raises(RuntimeError, match="overwritten before it arrived, since the process that cut it has ended"):
        build(*arguments)
    build, arguments = again[1].__reduce__()
    assert build(*arguments)["image"].unique().tolist() == [5]
    slots._lock.acquire()
    monkeypatch.setattr(slots, "_lock", Waiting())  # a process was killed that had it
    assert Batch({"image": torch.zeros(70_000, dtype=torch.uint8)}, slots).place is None


class Waiting:
    def acquire(self, timeout: float) -> bool:
        return False


def test_nothing_is_handed_over_by_a_connection_but_what_has_no_room() -> None:
    handed: list[Any] = []
    plain = reductions.reduce_storage
    image = torch.full((4, 1, 200, 200), 3, dtype=torch.uint8)
    mask = torch.full((4, 2, 200, 200), 4, dtype=torch.uint8)
    labels = {"label": torch.rand(9, 3)[2:6], "index": torch.arange(4), "none": torch.zeros(0, 3)}
    blank = torch.zeros((), dtype=torch.uint8).expand(4, 2, 200, 200)
    slots = Slots(1, image.nbytes + mask.nbytes)
    for count in (0, 2):
        batch = Batch({"image": image, "mask": mask, "blank": blank, **labels}, slots)
        pickler = ForkingPickler(io.BytesIO())
        pickler.dispatch_table = {
            **pickler.dispatch_table,
            torch.UntypedStorage: lambda storage: handed.append(storage) or plain(storage),
        }
        pickler.dump(batch)
        assert len(handed) == count
        build, arguments = batch.__reduce__()
        found = build(*arguments)
        assert type(found) is dict
        assert list(found) == list(batch)
        for name, value in batch.items():
            assert torch.equal(found[name], value), name
        assert found["blank"].untyped_storage().nbytes() == 1


@pytest.mark.parametrize("free", [1 << 20, 1 << 40])
def test_without_as_much_shared_memory(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    def refuse(size: int) -> None:
        assert free == 1 << 40
        raise RuntimeError("unable to allocate shared memory")

    monkeypatch.setattr(handing, "_shared", refuse)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=free))
    cut = batches()
    made = loader(cut, batch_size=5, workers=1)
    found = [batch["image"] for batch in made]
    assert slots_of(made) is None
    assert torch.equal(torch.cat(found), cut.data.images)


def test_a_copy_of_the_batches_shares_no_room() -> None:
    made = loader(batches(), batch_size=5, workers=1)
    assert slots_of(made) is not None
    assert copy.deepcopy(made.dataset).slots is None  # type: ignore[attr-defined]
