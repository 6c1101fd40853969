from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from axnet.data import NIH_FINDINGS, NIHChestXray
from axnet.data.phantom import render

TABLE = "Data_Entry_2017_v2020.csv"
OFFICIALLY_BOXED = NIH_FINDINGS[:8]


def edit(root: Path, change) -> None:
    table = pd.read_csv(root / TABLE, index_col=False)
    change(table).to_csv(root / TABLE, index=False)


def test_round_trip(phantom_root: Path) -> None:
    data = NIHChestXray(phantom_root, "all")
    assert len(data) == 60
    for index in (0, 17, 59):
        sample, item = render(index, seed=3, size=128), data[index]
        assert item["id"] == sample.name
        assert item["view"] == sample.view
        assert item["patient"] == f"{sample.patient:08d}" == data.patients[index]
        assert item["image"].shape == (1, 128, 128)
        assert item["image"].dtype == torch.float32
        assert np.array_equal(np.rint(item["image"][0].numpy() * 255), sample.image)
        assert item["label"].dtype == torch.float32
        assert np.array_equal(item["label"].numpy(), sample.label)
        row = data.table.iloc[index]
        assert (row["age"], row["sex"], row["follow_up"]) == (sample.age, sample.sex, sample.follow_up)
    assert "mask" not in data[0]
    assert list(data.table.columns) == ["image", "patient", "view", "age", "sex", "follow_up", *NIH_FINDINGS]
    assert data.labels.dtype == np.float32
    assert np.array_equal(data.labels, data.table[list(NIH_FINDINGS)])


def test_splits_partition_images_and_patients(phantom_root: Path) -> None:
    train, test = NIHChestXray(phantom_root), NIHChestXray(phantom_root, "test")
    assert train.split == "train_val"
    assert 0 < len(test) < len(train)
    assert len(train) + len(test) == 60
    assert not set(train.patients) & set(test.patients)
    assert len(set(train.patients)) < len(train), "follow-ups are missing"
    listed = sorted((phantom_root / "test_list.txt").read_text().split())
    assert sorted(test.ids) == listed
    assert test.split_hash == hashlib.sha256("".join(f"{i}\n" for i in listed).encode()).hexdigest()
    assert test.split_hash != train.split_hash


def test_size_findings_masks_transform(phantom_root: Path) -> None:
    findings = ("Hernia", "Mass", "Edema")
    seen = []

    def masks(image_id: str) -> np.ndarray:
        seen.append(image_id)
        return np.indices((2, 40, 50))[2] < 25

    def transform(item: dict) -> dict:
        return {**item, "extra": item["id"]}

    data = NIHChestXray(phantom_root, "all", size=48, findings=findings, masks=masks, transform=transform)
    item = data[4]
    assert seen == [item["id"]]
    assert item["extra"] == item["id"]
    assert item["image"].shape == (1, 48, 48)
    assert item["mask"].shape == (2, 48, 48)
    assert item["mask"].dtype == torch.float32
    assert item["mask"][:, :, :20].min() == 1
    assert item["mask"][:, :, 28:].max() == 0
    everything = NIHChestXray(phantom_root, "all").labels
    assert np.array_equal(data.labels, everything[:, [NIH_FINDINGS.index(f) for f in findings]])
    flat = NIHChestXray(phantom_root, "all", masks=lambda _: np.zeros((4, 4)))
    with pytest.raises(ValueError, match=r"masks returned shape \(4, 4\)"):
        flat[0]


def test_boxes_scale_to_the_stored_image(phantom_root: Path) -> None:
    data, everything = NIHChestXray(phantom_root, "test"), NIHChestXray(phantom_root, "all")
    read, drawn = set(), set()
    for name in data.ids:
        read |= {(name, *map(float, box[1:])) for box in data.boxes(name)}
        boxes = render(everything.ids.index(name), seed=3, size=128).boxes
        drawn |= {(name, *map(float, box[1:])) for box in boxes if box.finding in OFFICIALLY_BOXED}
    assert read == drawn
    assert len(read) > 3


def test_box_header_quirk_and_infiltrate(nih_root: Path) -> None:
    data = NIHChestXray(nih_root, "all")
    name, other, bare = data.ids[:3]
    for tail in (",,,", ""):
        rows = f"{name},Infiltrate,512,256,128.5,64{tail}\n{other},Mass,0,0,1024,1024{tail}\n"
        (nih_root / "BBox_List_2017.csv").write_text("Image Index,Finding Label,Bbox [x,y,w,h],,,\n" + rows)
        data = NIHChestXray(nih_root, "all")
        assert data.boxes(name) == [("Infiltration", 32, 16, 128.5 / 16, 4)]
        assert data.boxes(other) == [("Mass", 0, 0, 64, 64)]
        assert data.boxes(bare) == []
    with pytest.raises(ValueError, match=r"image_id is 'nobody\.png'"):
        data.boxes("nobody.png")
    (nih_root / "BBox_List_2017.csv").write_text(f"h\n{name},Cough,1,1,1,1\n")
    with pytest.raises(ValueError, match="unknown finding 'Cough'"):
        NIHChestXray(nih_root, "all").boxes(name)
    (nih_root / "BBox_List_2017.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"BBox_List_2017\.csv"):
        NIHChestXray(nih_root, "all").boxes(name)


def test_official_folders_of_parts(nih_root: Path) -> None:
    before = NIHChestXray(nih_root, "all")
    files = sorted((nih_root / "images").iterdir())
    for part, chunk in (("images_001", files[:7]), ("images_012", files[7:])):
        (nih_root / part / "images").mkdir(parents=True)
        for file in chunk:
            shutil.move(file, nih_root / part / "images" / file.name)
    (nih_root / "images").rmdir()
    after = NIHChestXray(nih_root, "all")
    assert after.ids == before.ids
    assert after.path(after.ids[0]).is_file()
    assert after[15]["image"].shape == (1, 64, 64)


def test_first_release_of_the_table(nih_root: Path) -> None:
    new = NIHChestXray(nih_root, "all").table
    text = (nih_root / TABLE).read_text().splitlines()
    text = [text[0] + ",", *(line + "," for line in text[1:])]  # the first release ends every line in a comma
    (nih_root / TABLE).unlink()
    (nih_root / "Data_Entry_2017.csv").write_text("\n".join(text))
    old = NIHChestXray(nih_root, "all").table
    pd.testing.assert_frame_equal(old, new)
    table = pd.read_csv(nih_root / "Data_Entry_2017.csv", index_col=False)
    table["Patient Age"] = ["058Y", "006M", *(f"{age:03d}Y" for age in table["Patient Age"][2:])]
    table.to_csv(nih_root / "Data_Entry_2017.csv", index=False)
    assert NIHChestXray(nih_root, "all").table["age"][:2].tolist() == [58, 0.5]


def test_table_errors(nih_root: Path) -> None:
    backup = (nih_root / TABLE).read_text()

    def broken(change, match: str) -> None:
        (nih_root / TABLE).write_text(backup)
        edit(nih_root, change)
        with pytest.raises(ValueError, match=match):
            NIHChestXray(nih_root, "all")

    for column in ("Image Index", "Finding Labels", "Patient ID", "Patient Gender", "View Position"):
        broken(lambda t, c=column: t.drop(columns=c), f"lacks column '{column}'")
    broken(lambda t: t.assign(**{"Finding Labels": "Mass|Scoliosis"}), "unknown finding 'Scoliosis'")
    broken(lambda t: pd.concat([t, t.iloc[:2]]), "lists 2 images more than once")
    broken(lambda t: t.assign(**{"Patient Age": "old"}), "Patient Age 'old'")
    broken(lambda t: t.assign(**{"View Position": [None, *t["View Position"][1:]]}), "1 incomplete rows")


def test_root_without_table(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no Data_Entry_2017"):
        NIHChestXray(tmp_path)


def test_missing_images_are_counted(nih_root: Path) -> None:
    names = NIHChestXray(nih_root).ids[:5]
    for name in names:
        (nih_root / "images" / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"5 of \d+ images are missing .*{names[0]}.*, \.\.\.\."):
        NIHChestXray(nih_root)
    assert len(NIHChestXray(nih_root, "test")) > 0, "images of another split are not needed"


def test_truncated_image_fails_when_read(nih_root: Path) -> None:
    data = NIHChestXray(nih_root, "all")
    path = data.path(data.ids[2])
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(ValueError, match=rf"{data.ids[2]}' is truncated"):
        data[2]
    data[3]


def test_list_errors(nih_root: Path) -> None:
    train, test = nih_root / "train_val_list.txt", nih_root / "test_list.txt"
    lists = train.read_text(), test.read_text()
    test.write_text(lists[1] + "99999999_000.png\n")
    with pytest.raises(ValueError, match=r"test_list.txt names 1 images that the table lacks: 99999999_000.png"):
        NIHChestXray(nih_root)
    test.write_text(lists[1] + lists[0].split()[0] + "\n")
    with pytest.raises(ValueError, match=r"1 patients are in both"):
        NIHChestXray(nih_root, "test")
    test.unlink()
    with pytest.raises(FileNotFoundError, match=r"split 'test' needs '.*test_list.txt'"):
        NIHChestXray(nih_root, "test")
    assert len(NIHChestXray(nih_root)) == len(lists[0].split())


def test_argument_errors(nih_root: Path) -> None:
    with pytest.raises(ValueError, match="split is 'train', expected one of"):
        NIHChestXray(nih_root, "train")
    with pytest.raises(ValueError, match="findings has 'Infiltrate'"):
        NIHChestXray(nih_root, findings=["Mass", "Infiltrate"])


def test_real_subset(nih_subset: Path) -> None:
    train, test = NIHChestXray(nih_subset, "train_val", size=64), NIHChestXray(nih_subset, "test")
    assert (len(train), len(test), len(NIHChestXray(nih_subset, "all"))) == (1124, 250, 1374)
    assert not set(train.patients) & set(test.patients)
    assert train.labels.sum(0).min() > 0
    assert set(train.table["view"]) == {"PA", "AP"}
    item = train[100]
    assert item["image"].shape == (1, 64, 64)
    assert 0 <= item["image"].min() < item["image"].max() <= 1
    everything = NIHChestXray(nih_subset, "all")
    boxes = [(box, name) for name in everything.ids for box in everything.boxes(name)]
    assert len(boxes) == 51
    assert {box.finding for box, _ in boxes} >= {"Infiltration", "Cardiomegaly"}
    for box, name in boxes:
        assert min(box.x, box.y) >= 0, name
        assert max(box.x + box.w, box.y + box.h) <= 256, name
        assert box.w > 3
        assert box.h > 3


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int64, np.float32, np.float64])
@pytest.mark.parametrize("scale", [1, 255])
def test_masks_of_any_type_are_from_0_to_1(nih_root: Path, kind: type, scale: int) -> None:
    inside = np.indices((2, 64, 64))[2] < 20
    if kind is bool:
        scale = 1
    data = NIHChestXray(nih_root, "all", masks=lambda _: (inside * scale).astype(kind))
    assert np.array_equal(data[0]["mask"].numpy(), inside.astype(np.float32))
    for wrong in (inside * 3.0, inside - 1.0, inside * 300.0):
        data = NIHChestXray(nih_root, "all", masks=lambda _, wrong=wrong: wrong)
        with pytest.raises(
            ValueError, match=rf"masks for '{data.ids[0]}' has values from .* expected 0 to 1 or 0 to 255"
        ):
            data[0]


def test_a_mask_a_rounding_step_above_one_is_clipped(nih_root: Path) -> None:
    data = NIHChestXray(nih_root, "all", masks=lambda _: np.full((2, 64, 64), 1 + 1e-6))
    assert data[0]["mask"].max() == 1


def test_views_and_policies_as_the_other_readers_take_them(nih_root: Path) -> None:
    everything = NIHChestXray(nih_root, "all", uncertain={"Edema": "ones"})
    views = everything.table["view"].tolist()
    for view in ("PA", "AP"):
        chosen = NIHChestXray(nih_root, "all", views=view)
        assert chosen.ids == [name for name, other in zip(everything.ids, views, strict=True) if other == view]
        assert len(chosen) == len(chosen.labels) == views.count(view)
    assert NIHChestXray(nih_root, "all", views="frontal").ids == everything.ids
    with pytest.raises(ValueError, match="views 'lateral' leaves none of the 16 films of split 'all'"):
        NIHChestXray(nih_root, "all", views="lateral")
    with pytest.raises(ValueError, match="uncertain is 'perhaps', expected"):
        NIHChestXray(nih_root, "all", uncertain="perhaps")
    with pytest.raises(ValueError, match="uncertain has the entry 'Fracture'"):
        NIHChestXray(nih_root, "all", uncertain={"Fracture": "ones"})
