"""What a data set knows of its films besides labels: sex, age and view, and boxes that readers drew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import numpy as np

from axnet.data import Joined, NIHChestXray, PackedFilms, PhantomXray
from axnet.data.nih import BOX_FRAME
from axnet.metrics import age_band
from axnet.train.data import XraySource

ATTRIBUTES: tuple[str, ...] = ("sex", "age", "view")
_MOST_DRAWN = 300  # phantoms, which are drawn again for their boxes


class FilmBox(NamedTuple):
    """A box around a finding of the film in that row of its set, in shares of the film's width and height."""

    row: int
    finding: str
    x: float
    y: float
    w: float
    h: float

    @property
    def share(self) -> float:
        """Share of the film that it covers."""
        return self.w * self.h


@dataclass(frozen=True)
class Facts:
    """Facts of N films.

    attributes: "sex", "age" (a band of axnet.metrics.age_band) and "view", each with a value per film, None where it is
    unknown; those that the set knows at all. boxes: of the films that have some. lacking: a sentence for each set that
    may know more than is kept of it.
    """

    attributes: Mapping[str, tuple[str | None, ...]] = field(default_factory=dict)
    boxes: tuple[FilmBox, ...] = ()
    lacking: tuple[str, ...] = ()

    @classmethod
    def of(cls, source: XraySource) -> Facts:
        """Of a data set, as far as it knows. Boxes are NIH's, or the phantom's on its first 300 films."""
        if isinstance(source, Joined):
            return _joined([(cls.of(cast(XraySource, one)), len(one)) for one in source.sets.values()])
        known = known_attributes(source)
        if "age" in known:
            known["age"] = [None if years is None else age_band(years) for years in known["age"]]
        shown = {name: tuple(values) for name, values in known.items() if any(value is not None for value in values)}
        lacking = source.lacking if isinstance(source, PackedFilms) else ""
        return cls(shown, tuple(known_boxes(source)), (lacking,) if lacking else ())


def _joined(parts: Sequence[tuple[Facts, int]]) -> Facts:
    attributes = {
        name: tuple(value for facts, count in parts for value in facts.attributes.get(name, (None,) * count))
        for name in ATTRIBUTES
        if any(name in facts.attributes for facts, _ in parts)
    }
    starts = np.cumsum([0, *(count for _, count in parts)]).tolist()
    moved = [
        box._replace(row=box.row + start)
        for (facts, _), start in zip(parts, starts, strict=False)
        for box in facts.boxes
    ]
    return Facts(attributes, tuple(moved), tuple(line for facts, _ in parts for line in facts.lacking))


def known_attributes(source: XraySource) -> dict[str, list[Any]]:
    """sex ("F", "M"), age in years and view of every film, None where unknown; those of which the set says anything."""
    if isinstance(source, PhantomXray):
        shots = [source.study(index) for index in range(len(source))]
        table: dict[str, list[Any]] = {name: [getattr(shot, name) for shot in shots] for name in ATTRIBUTES}
    else:
        frame = getattr(source, "table", None)
        table = {} if frame is None else {name: frame[name].tolist() for name in ATTRIBUTES if name in frame.columns}
    return {
        name: [_years(value) if name == "age" else _text(name, value) for value in values]
        for name, values in table.items()
    }


def _years(value: Any) -> float | None:
    try:
        years = float(value)
    except (TypeError, ValueError):
        return None
    return None if np.isnan(years) else years


def _text(name: str, value: Any) -> str | None:
    text = str(value).strip()
    if name == "sex":
        return {"F": "F", "M": "M"}.get(text[:1].upper())
    return text if text and text.lower() != "nan" else None


def known_boxes(source: XraySource) -> Iterator[FilmBox]:
    """The boxes that Facts.of gives."""
    if isinstance(source, PhantomXray):
        for row in range(min(len(source), _MOST_DRAWN)):
            if source.labels[row].any():
                side = source.size
                for box in source.boxes(source.ids[row]):
                    yield FilmBox(row, box.finding, box.x / side, box.y / side, box.w / side, box.h / side)
    elif isinstance(source, NIHChestXray) and source.has_boxes:
        for row, name in enumerate(source.ids):
            for box in source.framed_boxes(name):
                if box.finding in source.findings:
                    yield FilmBox(row, box.finding, *(side / BOX_FRAME for side in box[1:]))
    elif isinstance(source, PackedFilms) and not source.lacking:
        for row, name in enumerate(source.ids):
            for box in source.boxes_in_shares(name):
                if box.finding in source.findings:
                    yield FilmBox(row, *box)
