"""Radiographs without labels: every image file below a folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset

from axnet.data.dicom import SUFFIXES, begins_as_dicom
from axnet.data.image import read_image
from axnet.data.nih import NIHChestXray
from axnet.paths import StrPath

EXTENSIONS = (".png", ".jpg", ".jpeg", *SUFFIXES)
"""Names of image files end in one of these, in small or capital letters; other files count where they are DICOM."""

_NO_IMAGES = ("__MACOSX", "@eaDir", "DICOMDIR")  # copies and thumbnails of systems, and the index of a DICOM medium


class ImageFile(NamedTuple):
    """A file, and the name by which its results are known."""

    id: str
    path: Path


def find_images(root: StrPath) -> list[ImageFile]:
    """The PNG, JPEG and DICOM files below a folder in the order of their paths; ids are their paths below it.

    A file without one of EXTENSIONS is taken when it begins as DICOM does. Files and folders whose name begins with a
    dot (as macOS's "._film.png") are left out. Links to folders are followed. Raises OSError for a folder that cannot
    be listed, ValueError for a name that is not UTF-8, which no table can hold.
    """
    folder = Path(root)
    found = [ImageFile(path.relative_to(folder).as_posix(), path) for path in _files(folder) if _is_image(path)]
    for file in found:
        _check_name(file.id)
    return sorted(found, key=lambda file: file.id)


def image_files(paths: Iterable[Path], *, file_id: Callable[[Path], str] = lambda path: path.name) -> list[ImageFile]:
    """The images that a user names: files, which are taken as they are, and folders, through find_images.

    file_id: the id of a file named by itself. Raises FileNotFoundError for a path that does not exist, ValueError for
    a folder without images, a name that is not UTF-8, or when two images have one id.
    """
    files: list[ImageFile] = []
    for path in paths:
        _check_name(str(path))
        if path.is_dir():
            found = find_images(path)
            if not found:
                raise ValueError(f"folder '{path}' holds no PNG or JPEG image and no DICOM file.")
            files += found
        elif path.exists():
            files.append(ImageFile(file_id(path), path))
        else:
            raise FileNotFoundError(f"image '{path}' does not exist.")
    seen: dict[str, Path] = {}
    for file in files:
        if file.id in seen:
            raise ValueError(
                f"images holds the name '{file.id}' twice ('{seen[file.id]}', '{file.path}'), expected different names "
                "in one run."
            )
        seen[file.id] = file.path
    return files


def _check_name(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"images holds the name {name!a}, which is not UTF-8, expected one that is.") from None


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder that are not hidden."""

    def stop(error: OSError) -> None:
        raise error

    entered: set[str] = set()
    for parent, folders, names in os.walk(folder, onerror=stop, followlinks=True):
        entered.add(os.path.realpath(parent))
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".")
            and name not in _NO_IMAGES
            and os.path.realpath(os.path.join(parent, name)) not in entered  # a link to a folder above
        ]
        yield from (Path(parent, name) for name in names if not name.startswith(".") and name not in _NO_IMAGES)


def _is_image(path: Path) -> bool:
    if path.suffix.lower() in EXTENSIONS:
        return True
    try:
        return path.is_file() and begins_as_dicom(path)
    except OSError:  # cannot be read: whoever asks for the image learns why
        return True


class RadiographFolder(Dataset[dict[str, Any]]):
    """The PNG, JPEG and DICOM files below a folder, as find_images finds them.

    Items: image float32 [1, H, W] in [0, 1] and id, the path below root. Attributes: root, ids.
    Raises FileNotFoundError when there is no such folder or it holds no image.
    """

    def __init__(self, root: StrPath) -> None:
        """Look for the files."""
        self.root = Path(root)
        self.ids = [file.id for file in find_images(self.root)] if self.root.is_dir() else []
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
