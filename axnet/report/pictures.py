"""Pictures of an example as SVG: the X-ray, contours of its masks over it, probability maps over it."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from contourpy import LineType, contour_generator
from numpy.typing import NDArray
from PIL import Image

from axnet.report.results import Example
from axnet.report.text import escape, number

MASK_COLOURS = {"lungs": "#22b8cf", "left_lung": "#22b8cf", "right_lung": "#22b8cf", "heart": "#ff922b"}
WIDTH_COLOUR = "#ffe066"
_OTHER_MASKS = "#94d82d"
_LONGEST = 512  # pixels of an X-ray's longer side in the page
_MAP_SIDE = 96  # pixels of a probability map in the page
_COLOUR_MAP = "inferno"
_OPACITY = 0.75


def example_figures(example: Example, key: str, maps: Mapping[str, str] | None = None) -> str:
    """All pictures of an example; the X-ray is stored once, under the identifier `key`, and used again by the rest.

    maps: what map_pictures made of it, None to make them here.
    """
    height, width = example.image.shape
    maps = map_pictures(example) if maps is None else maps
    image = f'<image id="{key}" width="{width}" height="{height}" href="{_xray(example.image)}"/>'
    again = f'<use href="#{key}"/>'
    figures = [_figure(example, image, "X-ray")]
    if example.masks:
        figures.append(_figure(example, again + _contours(example), _anatomy_caption(example)))
    order = sorted(example.prob_maps, key=lambda name: -example.predicted.get(name, 0.0))
    for finding in order:
        stretched = f'width="{width}" height="{height}" preserveAspectRatio="none"'
        overlay = f'<image {stretched} href="{maps[finding]}"/>'
        highest = number(float(example.prob_maps[finding].max()), 2)
        caption = f"{escape(finding)} <span class='quiet'>map, up to {highest}</span>"
        figures.append(_figure(example, again + overlay, caption))
    return f'<div class="pictures">{"".join(figures)}</div>'


def outlined(example: Example, key: str, caption: str) -> str:
    """One picture of an example with the contours of its masks; caption: HTML."""
    height, width = example.image.shape
    image = f'<image id="{key}" width="{width}" height="{height}" href="{_xray(example.image)}"/>'
    return _figure(example, image + _contours(example), caption)


def map_colours() -> list[str]:
    """Nine colours of the probability maps, from 0 to their maximum."""
    return [matplotlib.colors.to_hex(matplotlib.colormaps[_COLOUR_MAP](v)) for v in np.linspace(0, 1, 9)]


def map_note(more: str = "") -> str:
    """The note, as HTML, on how probability maps are coloured; more: a sentence after it."""
    return (
        '<p class="note">Probability maps are coloured from 0 '
        f'<span class="scale" style="background:linear-gradient(90deg, {", ".join(map_colours())})"></span>'
        f"to their own maximum, which the caption states.{more}</p>"
    )


def cardiothoracic_ratio(example: Example) -> float:
    """The example's own ratio, else width of the heart over width of the lungs in its masks; NaN without them."""
    if example.ctr is not None:
        return example.ctr
    heart = [inside(example.masks[name]) for name in ("heart",) if name in example.masks]
    lungs = [inside(example.masks[name]) for name in ("lungs", "left_lung", "right_lung") if name in example.masks]
    if not heart or not lungs or ("lungs" not in example.masks and len(lungs) < 2):
        return math.nan
    across, thorax = _width(heart[0]), _width(np.logical_or.reduce(lungs))
    return across / thorax if across and thorax else math.nan


def inside(mask: NDArray[Any]) -> NDArray[np.bool_]:
    """Pixels [H, W] of a mask that are set: at least half of 255 (uint8) or of 1."""
    return np.asarray(mask >= 128 if mask.dtype == np.uint8 and mask.max() > 1 else mask >= 0.5)


def _width(mask: NDArray[np.bool_]) -> int:
    columns = np.flatnonzero(mask.any(axis=0))
    return int(columns[-1] - columns[0] + 1) if columns.size else 0


def _figure(example: Example, drawing: str, caption: str) -> str:
    height, width = example.image.shape
    return (
        f'<figure><svg viewBox="0 0 {width} {height}" role="img">{drawing}</svg>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _anatomy_caption(example: Example) -> str:
    names = dict.fromkeys("lungs" if name.endswith("_lung") else name for name in example.masks)
    keys = ", ".join(
        f'<span style="border-bottom:2px solid {MASK_COLOURS.get(name, _OTHER_MASKS)}">{escape(name)}</span>'
        for name in names
    )
    ratio = cardiothoracic_ratio(example)
    return keys if math.isnan(ratio) else f"{keys} <span class='quiet'>CTR {number(ratio, 2)}</span>"


def _contours(example: Example) -> str:
    width = max(example.image.shape) / 130
    paths = (
        f'<path d="{outline(inside(mask))}" fill="none" stroke="{MASK_COLOURS.get(name, _OTHER_MASKS)}" '
        f'stroke-width="{width:.2f}" stroke-linejoin="round"/>'
        for name, mask in example.masks.items()
    )
    lines = (
        f'<path d="M{first:g} {row:g}H{last:g}" stroke="{WIDTH_COLOUR}" stroke-width="{width:.2f}"/>'
        for first, last, row in example.widths
    )
    return "".join([*paths, *lines])


def outline(mask: NDArray[np.bool_]) -> str:
    """The border of a mask [H, W] as an SVG path in its pixels, empty for an empty mask."""
    if not mask.any():
        return ""
    # A border of zeros closes the lines; a pixel's centre lies half a pixel from its corner.
    lines = contour_generator(z=np.pad(mask, 1).astype(np.float64), line_type=LineType.Separate).lines(0.5)
    parts = (" ".join(f"{x - 0.5:g} {y - 0.5:g}" for x, y in np.asarray(line)) for line in lines)
    return " ".join(f"M{part}Z" for part in parts)


def _xray(image: NDArray[Any]) -> str:
    grey = image if image.dtype == np.uint8 else np.rint(np.asarray(image, dtype=np.float64) * 255).astype(np.uint8)
    picture = Image.fromarray(grey)
    picture.thumbnail((_LONGEST, _LONGEST), Image.Resampling.BOX)
    return data_uri(picture, "jpeg", quality=88)


def map_pictures(example: Example) -> dict[str, str]:
    """The probability maps of an example as data URIs, each coloured up to its own maximum."""
    height, width = example.image.shape
    return {
        finding: _map(np.asarray(values, np.float64), height / width) for finding, values in example.prob_maps.items()
    }


def _map(values: NDArray[np.float64], aspect: float) -> str:
    top = values.max()
    shown = Image.fromarray((values / top if top > 0 else values).astype(np.float32))
    size = (_MAP_SIDE, max(1, round(_MAP_SIDE * aspect)))
    share = np.clip(np.asarray(shown.resize(size, Image.Resampling.BILINEAR)), 0, 1)
    coloured = np.asarray(matplotlib.colormaps[_COLOUR_MAP](share))
    coloured[..., 3] = _OPACITY * share
    return data_uri(
        Image.fromarray(np.rint(coloured * 255).astype(np.uint8)), "png"
    )  # optimised takes four times as long for 2 % less


def data_uri(picture: Image.Image, kind: str, **options: Any) -> str:
    """A picture inside a page; kind: png or jpeg, options: Pillow's for writing it."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
