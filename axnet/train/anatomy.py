"""The segmenter that draws the anatomy masks: loaded, or trained on an organ mask set first."""

from __future__ import annotations

import shutil
from pathlib import Path

from axnet.data import OrganMaskSet
from axnet.data.files import replacing
from axnet.models.storage import is_shipped
from axnet.paths import StrPath
from axnet.segment import Segmenter
from axnet.segment.pretrained import WEIGHTS
from axnet.train.sources import DataConfig

SEGMENTER_NAME = "segmenter.safetensors"
SEGMENTER_EPOCHS = 60


def find_segmenter(
    config: DataConfig,
    *,
    needed: bool = True,
    segmenter: StrPath | None,
    organ_root: StrPath | None,
    out: StrPath,
    seed: int = 0,
    progress: bool = True,
    epochs: int = SEGMENTER_EPOCHS,
) -> Segmenter | None:
    """The segmenter for a run; its weights are also put in out, beside the classifier's, for prediction.

    segmenter: weights to load. organ_root: an OrganMaskSet folder to train one on, for epochs, when segmenter is None.
    With neither, None for a set that carries masks, as drawn and packed ones do, and for other data the segmenter that
    comes with axnet; it is put there for packed films of patients, too. needed: whether the classifier takes masks.
    """
    target = Path(out) / SEGMENTER_NAME
    if segmenter is not None:
        loaded = Segmenter.load(segmenter)
        if Path(segmenter).resolve() != target.resolve():
            _copy(segmenter, target)
        return loaded
    if organ_root is not None:
        from axnet.segment import fit_segmenter

        trained = fit_segmenter(
            OrganMaskSet(organ_root, "train"),
            OrganMaskSet(organ_root, "val"),
            epochs=epochs,
            seed=seed,
            progress=progress,
        )
        trained.save(target)
        return trained
    found = config.dataset
    if not needed or (found.masked and not found.real):
        return None
    _copy(WEIGHTS, target)
    return None if found.masked else Segmenter.load(target)


def _copy(source: StrPath, target: Path) -> None:
    with replacing(target) as partial:
        shutil.copyfile(source, partial)


def segmenter_for(weights: StrPath, segmenter: StrPath | None) -> Segmenter:
    """The segmenter that belongs to a classifier: the one named, else segmenter.safetensors beside its weights.

    Raises FileNotFoundError when neither is there.
    """
    found = segmenter_of(weights, segmenter)
    if found is None:
        raise FileNotFoundError(f"segmenter is not given and '{_beside(weights)}' does not exist.")
    return found


def segmenter_of(weights: StrPath, segmenter: StrPath | None) -> Segmenter | None:
    """As segmenter_for, but None when neither is there."""
    file = Path(_beside(weights) if segmenter is None else segmenter)
    return Segmenter.load(file) if segmenter is not None or file.is_file() else None


def _beside(weights: StrPath) -> Path:
    """Where the segmenter of a classifier is: in its folder, or that of the package for the one that comes with it."""
    return WEIGHTS if is_shipped(weights) else Path(weights).parent / SEGMENTER_NAME


def optional_segmenter(
    config: DataConfig, weights: StrPath, segmenter: StrPath | None, *, needed: bool = True
) -> Segmenter | None:
    """As segmenter_for, but None where there is none to find and none is needed.

    Packed films with masks need none, nor does a set that is drawn, unless a segmenter lies beside the weights, which
    has drawn the masks that they were trained with. needed: whether the classifier takes masks.
    """
    beside = _beside(weights)
    found = config.dataset
    if segmenter is None and found.masked and (found.real or not beside.is_file()):
        return None
    if segmenter is None and not beside.is_file() and not needed:
        return None
    return segmenter_for(weights, segmenter)
