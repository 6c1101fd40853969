"""The films of the comparison in files that travel: 128 px as lossless WebP, masks at 32 px, labels, lists, boxes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from axnet.data import NIH_FINDINGS, MaskTable, NIHChestXray
from axnet.data.findings import organs_to_anatomies
from axnet.data.splits import by_patient
from axnet.imaging import percentile_normalize

SIDE, MASK_SIDE = 128, 32
VALIDATION = 0.15  # share of the training list's patients
LISTS = ("nih_128 train", "nih_128 test", "nih_subset train", "nih_subset test")


@dataclass(frozen=True)
class Films:
    """Films of all lists.

    images uint8 [N,128,128], stretched between their percentiles; masks uint8 [N,2,32,32], lungs and heart; labels
    float32 [N,14]; table: id, patient, age, sex, view, boxed, one bool column per list.
    """

    images: npt.NDArray[np.uint8]
    masks: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.float32]
    table: pd.DataFrame

    def parts(self) -> dict[str, npt.NDArray[np.intp]]:
        """Rows of: train and validation (nih_128's training list by patient), both (train and nih_subset's), tests.

        No patient of a test list, nor of validation, is in what is trained on: 12 patients of nih_subset's training
        list are on NIH's official test list.
        """
        table = self.table
        listed = {name: table[name].to_numpy() for name in LISTS}
        patient = table["patient"].to_numpy()
        tested = set(patient[listed[LISTS[1]] | listed[LISTS[3]]])
        side = np.array(by_patient(patient.tolist(), VALIDATION, seed=0))
        usable = ~np.isin(patient, list(tested)) & (side == "train")
        masks = {
            "train": listed[LISTS[0]] & usable,
            "both": (listed[LISTS[0]] | listed[LISTS[2]]) & usable,
            "validation": listed[LISTS[0]] & (side == "test"),
            "test": listed[LISTS[1]],
            "subset_test": listed[LISTS[3]],
        }
        return {name: np.flatnonzero(mask) for name, mask in masks.items()}


def pack(nih_128: Path, nih_subset: Path, masks: Sequence[Path] | None, folder: Path, parts: int) -> list[Path]:
    """Write films-0-of-5.parquet ... of about equal size; nih_subset's films that nih_128 has are taken from there.

    The others are made as small as those of nih_128 were, by means over areas: were one set's films softer, a network
    would learn to tell the sets, which have other shares of findings, by their sharpness.

    masks: tables of masks of the two sets; without them the shipped segmenter draws them where the films are unpacked.
    """
    rows: dict[str, dict[str, object]] = {}
    for number, (name, root) in enumerate((("nih_128", nih_128), ("nih_subset", nih_subset))):
        drawn = None if masks is None else MaskTable(masks[number])
        for split, kind in (("train_val", "train"), ("test", "test")):
            data = NIHChestXray(root, split)
            for index, row in enumerate(data.table.itertuples(index=False)):
                if row.image not in rows:
                    image = data[index]["image"][0].numpy()
                    rows[row.image] = {
                        "id": row.image,
                        "patient": row.patient,
                        "age": float(row.age),
                        "sex": row.sex,
                        "view": row.view,
                        "labels": data.labels[index].astype(np.uint8).tobytes(),
                        "image": _webp(_stored(_reduced(image))),
                        **({} if drawn is None else {"mask": _mask(drawn, row.image)}),
                        "boxed": bool(data.boxes(row.image)),
                        **dict.fromkeys(LISTS, False),
                    }
                rows[row.image][f"{name} {kind}"] = True
    table = pd.DataFrame(list(rows.values()))
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"films-{part}-of-{parts}.parquet" for part in range(parts)]
    for part, file in enumerate(files):
        table.iloc[part::parts].to_parquet(file, compression="zstd", index=False)
    return files


def unpack(folder: Path, processes: int, device: str, masks: Path | None = None) -> Films:
    """Read the files of pack; masks: those that an earlier run drew; device: where the segmenter draws them else."""
    table = _read(folder)
    with ProcessPoolExecutor(processes) as pool:
        images = np.stack(list(pool.map(_stretched, table["image"], chunksize=64)))
    if masks is not None:
        planes = np.load(masks)["masks"]
    elif "mask" in table:
        planes = np.frombuffer(b"".join(table["mask"]), np.uint8).reshape(len(table), 2, MASK_SIDE, MASK_SIDE)
    else:
        planes = _drawn(images, device)
    return _films(table, images, planes)


def labels_of(folder: Path) -> Films:
    """As unpack, without images and masks."""
    none = np.zeros((0,), np.uint8)
    return _films(_read(folder), none, none)


def _films(table: pd.DataFrame, images: npt.NDArray[np.uint8], masks: npt.NDArray[np.uint8]) -> Films:
    labels = np.frombuffer(b"".join(table["labels"]), np.uint8).reshape(len(table), len(NIH_FINDINGS))
    kept = table[["id", "patient", "age", "sex", "view", "boxed", *LISTS]]
    return Films(images, masks, labels.astype(np.float32), kept)


def _read(folder: Path) -> pd.DataFrame:
    files = sorted(folder.rglob("films-*-of-*.parquet"))
    count = int(files[0].stem.rpartition("-")[2]) if files else 0
    if not files or len(files) != count:
        raise FileNotFoundError(f"'{folder}' has {len(files)} of the files of --pack, expected {count or 'all'}.")
    return pd.concat([pd.read_parquet(file) for file in files]).sort_values("id").reset_index(drop=True)


def save(films: Films, folder: Path) -> None:
    """For the workers, who map the files into memory."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("images", "masks", "labels"):
        np.save(folder / f"{name}.npy", getattr(films, name))
    partial = folder / "partial"
    films.table.to_parquet(partial)
    partial.replace(folder / "table.parquet")  # says that all is there


def load(folder: Path) -> Films:
    arrays = {name: np.load(folder / f"{name}.npy") for name in ("images", "masks", "labels")}
    return Films(**arrays, table=pd.read_parquet(folder / "table.parquet"))


def _mask(drawn: MaskTable, name: str) -> bytes:
    planes: bytes = _stored(organs_to_anatomies(drawn.coverage(name, (MASK_SIDE, MASK_SIDE)))).tobytes()
    return planes


def _reduced(image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BOX))


def _stored(planes: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    return np.rint(planes.clip(0, 1) * 255).astype(np.uint8)


def _drawn(images: npt.NDArray[np.uint8], device: str, batch: int = 128) -> npt.NDArray[np.uint8]:
    import torch

    from axnet.segment import load_pretrained

    segmenter = load_pretrained().to(device)
    found = []
    for start in range(0, len(images), batch):
        film = torch.from_numpy(images[start : start + batch]).to(device)[:, None].float() / 255
        organs = segmenter.predict_batch(film)
        small = torch.nn.functional.adaptive_avg_pool2d(organs_to_anatomies(organs), MASK_SIDE)
        found.append(_stored(small.float().cpu().numpy()))
    return np.concatenate(found)


def _webp(image: npt.NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "WEBP", lossless=True, quality=80, method=4)
    return stream.getvalue()


def _stretched(data: bytes) -> npt.NDArray[np.uint8]:
    image = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
    return _stored(percentile_normalize(image.astype(np.float32) / 255))
