from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from axnet.data import NIHChestXray, RadiographFolder, write_nih
from axnet.data.folder import find_images, image_files, open_unlabelled

GREY = np.arange(64, dtype=np.uint8).reshape(8, 8)
APPLE_DOUBLE = b"\0\5\x16\7\0\2\0\0Mac OS X        " + b"\0" * 160


def png(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(GREY).save(path, format="PNG")


def dicom(path: Path) -> None:
    """The beginning of a DICOM file: enough to be found."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 8)


@pytest.fixture
def messy(tmp_path: Path) -> Path:
    root = tmp_path / "films"
    for name in ("a.png", "B.PNG", "patient1/study1/view1_frontal.jpg", "patient1/study2/view1_frontal.jpg", "c.jpeg"):
        png(root / name)
    for name in ("IM0001", "1.2.840.10008.1", "d.dcm", "e.DICOM", "series.7/f.ima"):
        dicom(root / name)
    for name in ("._a.png", "patient1/._view.jpg", "__MACOSX/._a.png", "__MACOSX/b.png", ".cache/x.png", "._IM0001"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(APPLE_DOUBLE)
    png(root / "@eaDir" / "a.png" / "SYNOPHOTO_THUMB_M.jpg")
    dicom(root / "DICOMDIR")
    (root / "notes.txt").write_text("no image")
    (root / "README").write_text("DICM")
    os.mkfifo(root / "pipe")
    return root


IDS = sorted(
    [
        "a.png",
        "B.PNG",
        "c.jpeg",
        "patient1/study1/view1_frontal.jpg",
        "patient1/study2/view1_frontal.jpg",
        "IM0001",
        "1.2.840.10008.1",
        "d.dcm",
        "e.DICOM",
        "series.7/f.ima",
    ]
)


def test_images_are_found_by_name_or_content_and_known_by_their_path(messy: Path) -> None:
    found = find_images(messy)
    assert [file.id for file in found] == IDS
    assert all(file.path == messy / file.id for file in found)
    assert RadiographFolder(messy).ids == IDS
    assert image_files([messy]) == found


def test_links_to_folders_are_followed_once(messy: Path, tmp_path: Path) -> None:
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "link").symlink_to(messy)
    (messy / "patient1" / "up").symlink_to(messy)
    assert [file.id for file in find_images(tmp_path / "all")] == [f"link/{name}" for name in IDS]


def test_files_and_folders_together(messy: Path, tmp_path: Path) -> None:
    named = messy / "._a.png"  # a hidden file that is asked for by name is taken
    files = image_files([messy / "patient1", named])
    assert [file.id for file in files] == ["study1/view1_frontal.jpg", "study2/view1_frontal.jpg", "._a.png"]
    assert image_files([named], file_id=str)[0].id == str(named)
    with pytest.raises(FileNotFoundError, match=r"image '.*none.png' does not exist"):
        image_files([tmp_path / "none.png"])
    (tmp_path / "empty" / ".git").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"folder '.*empty' holds no PNG or JPEG image and no DICOM file"):
        image_files([tmp_path / "empty"])
    with pytest.raises(ValueError, match=r"images holds the name 'view1_frontal.jpg' twice \('.*study1/.*study2/"):
        image_files([messy / "patient1" / "study1", messy / "patient1" / "study2"])


def test_hidden_files_beside_a_data_set(tmp_path: Path) -> None:
    root = write_nih(tmp_path / "nih", 12, size=32, test_fraction=0.3)
    ids = NIHChestXray(root, "train_val").ids
    for folder in (root, root / "images"):
        for path in list(folder.iterdir()):
            if path.is_file():
                (folder / f"._{path.name}").write_bytes(APPLE_DOUBLE)
    (root / "__MACOSX" / "images").mkdir(parents=True)
    assert NIHChestXray(root, "train_val").ids == ids
    assert NIHChestXray(root, "train_val")[0]["image"].shape == (1, 32, 32)
    assert open_unlabelled(root).ids == ids


def test_a_name_that_no_table_can_hold(tmp_path: Path) -> None:
    """Found before the work, not when the table is written."""
    name = os.fsdecode(b"bad\xff.png")
    (tmp_path / name).write_bytes(b"")
    for find in (
        lambda: find_images(tmp_path),
        lambda: image_files([tmp_path]),
        lambda: image_files([tmp_path / name]),
    ):
        with pytest.raises(ValueError, match=r"images holds the name '.*bad\\udcff.png', which is not UTF-8"):
            find()
