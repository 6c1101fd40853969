"""What a data set knows of its films besides labels: sex, age and view, and boxes that readers drew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import numpy as np

from axnet.data import Joined, NIHChestXray, PhantomXray
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
    unknown; those that the set knows at all. boxes: of the films that have some.
    """

    attributes: Mapping[str, tuple[str | None, ...]] = field(default_factory=dict)
    boxes: tuple[FilmBox, ...] = ()

    @classmethod
    def of(cls, source: XraySource) -> Facts:
        """Of a data set, as far as it knows. Boxes are NIH's, or the phantom's on its first 300 films."""
        if isinstance(source, Joined):
            return _joined([(cls.of(cast(XraySource, one)), len(one)) for one in source.sets.values()])
        known = {name: tuple(values) for name, values in _attributes(source) if any(v is not None for v in values)}
        return cls(known, tuple(_boxes(source)))


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
    return Facts(attributes, tuple(moved))


def _attributes(source: XraySource) -> Iterator[tuple[str, list[str | None]]]:
    if isinstance(source, PhantomXray):
        shots = [source.study(index) for index in range(len(source))]
        table: dict[str, list[Any]] = {name: [getattr(shot, name) for shot in shots] for name in ATTRIBUTES}
    else:
        frame = getattr(source, "table", None)
        table = {} if frame is None else {name: frame[name].tolist() for name in ATTRIBUTES if name in frame.columns}
    for name, values in table.items():
        yield name, [_age(value) if name == "age" else _text(name, value) for value in values]


def _age(value: Any) -> str | None:
    try:
        return age_band(float(value))
    except (TypeError, ValueError):
        return None


def _text(name: str, value: Any) -> str | None:
    text = str(value).strip()
    if name == "sex":
        return {"F": "F", "M": "M"}.get(text[:1].upper())
    return text if text and text.lower() != "nan" else None


def _boxes(source: XraySource) -> Iterator[FilmBox]:
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
