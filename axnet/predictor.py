"""Read radiographs: anatomy, calibrated probabilities, calls at the stored operating points, and when to make none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from axnet import segment
from axnet.data.findings import organs_to_anatomies
from axnet.data.image import read_stored
from axnet.devices import in_channels_last
from axnet.imaging import grey_values, resize
from axnet.models.storage import SHIPPED, ClassifierInfo, load_classifier
from axnet.paths import StrPath
from axnet.segment import Anatomy, Segmenter
from axnet.segment.segmenter import check_list
from axnet.segment.view import LATERAL, is_lateral


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of one film.

    probabilities: per finding, calibrated where the checkpoint says how. positive: per finding, whether it is called at
    the stored operating point; empty where flags speak against the film, or without operating points. A finding
    for which too few films chose an operating point is in probabilities alone. prob_maps: per stage, fine to coarse,
    the maps float32 [K,h,w] that pooled the features, empty for a classifier without. anatomy: organs, cardiothoracic
    ratio and quality. flags: why no call is made: what the segmenter drew is no plausible chest (another part of the
    body, a film turned or cut), its grey values are inverted, or it has no mediastinum between the lungs, as a lateral
    film (axnet.segment.view).
    """

    probabilities: dict[str, float]
    positive: dict[str, bool]
    prob_maps: tuple[npt.NDArray[np.float32], ...]
    anatomy: Anatomy
    flags: tuple[str, ...]

    def map_of(self, finding: str) -> npt.NDArray[np.float32] | None:
        """The finest map [h,w] of a finding, or of all together where they share one; None for a classifier without."""
        if not self.prob_maps:
            return None
        maps = self.prob_maps[0]  # the last stage has a few cells a side
        return maps[list(self.probabilities).index(finding) if len(maps) > 1 else 0]


class Predictor:
    """A classifier with the segmenter that draws its masks.

    model, info: of axnet.models.load_classifier. segmenter: None for the one that comes with axnet.
    Attributes: findings, in the order of the logits. Not a medical device.
    """

    def __init__(self, model: nn.Module, info: ClassifierInfo, segmenter: Segmenter | None = None) -> None:
        """The class describes the arguments."""
        self.model = in_channels_last(model.eval())
        self.info = info
        self.segmenter = segment.load_pretrained() if segmenter is None else segmenter

    @property
    def findings(self) -> tuple[str, ...]:
        """Findings, in the order of the logits."""
        return self.info.classes

    def to(self, device: str | torch.device) -> Predictor:
        """Move classifier and segmenter to a device; returns itself."""
        self.model.to(device)
        self.segmenter.to(device)
        return self

    def predict(self, images: Sequence[StrPath | npt.NDArray[Any]], batch_size: int = 16) -> list[Prediction]:
        """Read frontal radiographs: files, or arrays [H, W] of any real type, in batches of batch_size.

        Returns one Prediction per image. Raises as Segmenter.predict does.
        """
        check_list(images)
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected 1 or more.")
        found: list[Prediction] = []
        for start in range(0, len(images), batch_size):
            part = images[start : start + batch_size]
            stored = [read_stored(image) if isinstance(image, (str, PathLike)) else image for image in part]
            read = [isinstance(image, (str, PathLike)) for image in part]
            pixels = [grey_values(image) if file else image for image, file in zip(stored, read, strict=True)]
            # films of 8 and 16 bits are quicker to store than numbers in [0, 1]
            quick = [film if film.dtype in (np.uint8, np.uint16) else grey_values(film) for film in stored]
            found += self.read(pixels, np.stack([self.info.preprocessing.store(film) for film in quick]))
        return found

    def read(self, pixels: Sequence[npt.NDArray[Any]], stored: npt.NDArray[np.uint8]) -> list[Prediction]:
        """The same for films that are prepared already, as packed ones are.

        pixels: arrays [H, W] of any real type, for the segmenter; stored: the same films uint8 [N,S,S], as
        Preprocessing.store makes them, for the classifier.
        """
        anatomies = self.segmenter.predict(pixels, batch_size=len(pixels), keep_probabilities=True)
        device = next(self.model.parameters()).device
        image = torch.from_numpy(stored)[:, None].to(device, torch.float32) / 255
        with torch.inference_mode():
            masks = torch.from_numpy(self._masks(anatomies)).to(device)
            output = self.model(self.info.preprocessing.normalize(image), masks)
        logits = output.logits.float().cpu()
        maps = [stage.float().cpu().numpy() for stage in output.prob_maps]
        calibration = self.info.calibration
        calls: list[list[bool | None]] = [[]] * len(pixels)
        if calibration is None:
            probabilities = logits.sigmoid()
        else:
            probabilities = calibration.probabilities(logits)
            calls = calibration.calls(probabilities)
        flags = [_flags(film, anatomy) for film, anatomy in zip(stored, anatomies, strict=True)]
        return [
            Prediction(
                probabilities=dict(zip(self.findings, probabilities[index].tolist(), strict=True)),
                positive={} if flags[index] else self._called(calls[index]),
                prob_maps=tuple(stage[index] for stage in maps),
                anatomy=anatomy,
                flags=flags[index],
            )
            for index, anatomy in enumerate(anatomies)
        ]

    def _called(self, calls: Sequence[bool | None]) -> dict[str, bool]:
        return {finding: call for finding, call in zip(self.findings, calls, strict=False) if call is not None}

    def _masks(self, anatomies: Sequence[Anatomy]) -> npt.NDArray[np.float32]:
        """Lungs and heart [N,2,S,S]; the mean anatomy where the organs found are implausible, as in training."""
        size = self.info.preprocessing.size
        atlas = self.segmenter.atlas.float().cpu().numpy()
        planes = [atlas if a.flags or a.probabilities is None else a.probabilities for a in anatomies]
        return organs_to_anatomies(np.stack([resize(each, size) for each in planes]))


def _flags(film: npt.NDArray[np.uint8], anatomy: Anatomy) -> tuple[str, ...]:
    """Of a film [S, S] as the classifier sees it: the segmenter's, and that of a lateral film before them."""
    rows, columns = (
        np.arange(size) * full // size for size, full in zip(film.shape, anatomy.masks.shape[1:], strict=True)
    )
    masks = anatomy.masks[:, rows[:, None], columns]
    return ((LATERAL,) if is_lateral(film, masks) else ()) + anatomy.flags


def load_pretrained(name: str = "frontal") -> Predictor:
    """The classifier of frontal chest X-rays of adults that comes with axnet; needs no network. Not a medical device.

    name: of one of the classifiers in the package. Raises ValueError for another name, FileNotFoundError when the
    installation lacks the weights.
    """
    return Predictor(*load_classifier(shipped(name)))


def shipped(name: str = "frontal") -> Path:
    """The file of a classifier that comes with axnet. Raises as load_pretrained."""
    known = sorted(file.stem for file in SHIPPED.glob("*.safetensors"))
    if not known:
        raise FileNotFoundError(f"'{SHIPPED}' holds no classifier, expected frontal.safetensors in it.")
    if name not in known:
        raise ValueError(f"name is {name!r}, expected one of {known}.")
    return SHIPPED / f"{name}.safetensors"
