"""What the page gets of one film: all that it shows, and the report to download."""

from __future__ import annotations

import math
import zlib
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from axnet.data.cardiothoracic import cardiothoracic_lines
from axnet.data.findings import ORGANS
from axnet.imaging import fitted, resize
from axnet.report import Example, environment
from axnet.report.film import film_page
from axnet.report.pictures import MASK_COLOURS, WIDTH_COLOUR, data_uri, map_pictures, outline

if TYPE_CHECKING:
    from axnet.predictor import Prediction, Predictor

SIDE = 1024
"""Longest side of the film on the page in pixels."""

_DRAWN = 512  # and of the organs, whose borders are smooth
_RUNS = zlib.Z_RLE  # of a film as small as the default strategy, in two thirds of its time
_WINDOW = (1, 99)  # percentiles of the grey values that are black and white at first


class Answers:
    """Answers for the films that one predictor reads."""

    def __init__(self, predictor: Predictor) -> None:
        """Ask once what all answers say of the machine."""
        self.calibrated = predictor.info.calibration is not None
        self.environment = environment()

    def of(self, name: str, film: npt.NDArray[Any], found: Prediction) -> dict[str, Any]:
        """The answer as JSON takes it; film [H, W] as it is stored, of which nothing but pictures stays."""
        grey = _grey(film)
        height, width = grey.shape
        black, white = (float(level) for level in np.percentile(grey, _WINDOW))
        example = self._example(name, grey, found)
        scale = width / example.image.shape[1]
        maps = map_pictures(example)
        findings = [
            {
                "name": finding,
                "probability": probability,
                "call": found.positive.get(finding),
                "map": maps.get(finding),
                "peak": float(example.prob_maps[finding].max()) if finding in example.prob_maps else None,
            }
            for finding, probability in sorted(found.probabilities.items(), key=lambda item: -item[1])
        ]
        return {
            "name": name,
            "width": width,
            "height": height,
            "film": data_uri(Image.fromarray(grey), "png", compress_level=1, compress_type=_RUNS),
            "window": [black, white],
            "scale": scale,
            "organs": [
                {"name": organ.replace("_", " "), "colour": MASK_COLOURS[organ], "path": outline(example.masks[organ])}
                for organ in example.masks
            ],
            "ctr": example.ctr,
            "widths": {"colour": WIDTH_COLOUR, "lines": list(example.widths)},
            "findings": findings,
            "calibrated": self.calibrated,
            "flags": list(found.flags),
            "report": film_page(
                example,
                found.positive,
                calibrated=self.calibrated,
                maps=maps,
                flags=found.flags,
                environment=self.environment | {"date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")},
            ),
        }

    def _example(self, name: str, grey: npt.NDArray[np.uint8], found: Prediction) -> Example:
        size = fitted(grey.shape, _DRAWN)
        masks = found.anatomy.masks
        lines = cardiothoracic_lines(masks)
        down, across = size[0] / masks.shape[1], size[1] / masks.shape[2]
        maps = {finding: found.map_of(finding) for finding in found.probabilities}
        return Example(
            image=resize(grey, size).round().astype(np.uint8),
            masks={organ: resize(mask, size) >= 0.5 for organ, mask in zip(ORGANS, masks, strict=True)},
            prob_maps={finding: values for finding, values in maps.items() if values is not None},
            predicted=found.probabilities,
            id=name,
            ctr=None if math.isnan(found.anatomy.ctr) else found.anatomy.ctr,
            widths=() if lines is None else tuple((a * across, b * across, (row + 0.5) * down) for a, b, row in lines),
        )


def _grey(film: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """A film as the page shows it: small enough, its darkest value 0 and its brightest 255."""
    small = resize(film, fitted(film.shape, SIDE))
    low, high = float(small.min()), float(small.max())
    return np.rint((small - low) * (255 / (high - low if high > low else 1))).astype(np.uint8)
