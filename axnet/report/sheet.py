"""A contact sheet: many films with their organs outlined, the worst first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from axnet.data.findings import ORGANS
from axnet.imaging import fitted, resize
from axnet.paths import StrPath
from axnet.report.page import document, write_page
from axnet.report.pictures import outlined
from axnet.report.results import Example
from axnet.report.text import escape, number

SIDE = 192
"""Longer side of a thumbnail in pixels."""


@dataclass(frozen=True, eq=False)
class Thumbnail:
    """A film on the sheet: name, small image and masks, cardiothoracic ratio, quality and flags."""

    example: Example
    quality: float
    flags: tuple[str, ...]

    @classmethod
    def of(
        cls,
        name: str,
        image: NDArray[Any],
        masks: NDArray[np.bool_],
        ctr: float,
        quality: float,
        flags: Sequence[str],
    ) -> Thumbnail:
        """Shrink an image [H, W], shown from its darkest to its brightest value, and its masks [3, H, W]."""
        size = fitted(image.shape, SIDE)
        small = resize(image, size)
        low, high = float(small.min()), float(small.max())
        grey = (small - low) / (high - low) if high > low else np.zeros_like(small)
        organs = {organ: resize(mask, size) for organ, mask in zip(ORGANS, masks, strict=True)}
        return cls(Example(grey, organs, id=name, ctr=ctr), quality, tuple(flags))


def write_sheet(path: StrPath, thumbnails: Sequence[Thumbnail], *, title: str, description: str) -> Path:
    """Write films as one HTML file that needs no network and no script; they come in the order of their quality.

    Returns the path, which appears complete or not at all.
    """
    figures = []
    for index, thumbnail in enumerate(sorted(thumbnails, key=lambda t: t.quality)):
        ratio = thumbnail.example.ctr
        shown = "" if ratio is None or ratio != ratio else f", CTR {number(ratio, 2)}"
        note = "; ".join(thumbnail.flags) or "nothing implausible"
        caption = (
            f"{escape(thumbnail.example.id)}<br><span class='quiet'>quality {number(thumbnail.quality, 2)}{shown}<br>"
            f"{escape(note)}</span>"
        )
        figures.append(outlined(thumbnail.example, f"film-{index}", caption))
    body = (
        f"<header><h1>{escape(title)}</h1><p>{escape(description)}</p></header>"
        f'<div class="pictures">{"".join(figures)}</div>'
        "<footer><p><strong>Not a medical device.</strong></p></footer>"
    )
    return write_page(Path(path), document(title, body))
