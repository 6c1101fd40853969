"""The report of one film: what was found, where, and with what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from axnet.report.page import document
from axnet.report.pictures import example_figures, map_note
from axnet.report.results import Example
from axnet.report.text import escape, facts, number, table

CALLS = {True: "positive", False: "negative", None: "\N{EN DASH}"}
"""How a call is written; None where none is made."""


def film_page(
    example: Example,
    calls: Mapping[str, bool],
    *,
    calibrated: bool,
    maps: Mapping[str, str] | None = None,
    flags: Sequence[str] = (),
    environment: Mapping[str, Any] | None = None,
) -> str:
    """The report of one film as one HTML page that needs no network and no script.

    example: the film with its organs, maps and probabilities. calls: finding to whether it is called. calibrated:
    whether the probabilities are. maps: what map_pictures made of example, None to make them here. flags: why no call
    is made. environment: names to values of what it was read with.
    """
    ranked = sorted(example.predicted, key=lambda name: -example.predicted[name])
    rows = [[name, f"{example.predicted[name]:.1%}", CALLS[calls.get(name)]] for name in ranked]
    probability = "Probability" if calibrated else "Probability, not calibrated"
    ratio = "" if example.ctr is None else f"<p>Cardiothoracic ratio {number(example.ctr, 2)}.</p>"
    title = f"Reading of {example.id}"
    return document(
        title,
        f"<header><h1>{escape(title)}</h1><p><strong>Not a medical device.</strong> For research; not for diagnosis, "
        "treatment or any other clinical decision.</p></header>"
        + (f"<p><strong>No call is made:</strong> {escape('; '.join(flags))}.</p>" if flags else "")
        + f"<h2>Findings</h2>{table(['Finding', probability, 'Call'], rows, 'plain')}"
        + f"<h2>Pictures</h2>{ratio}{map_note()}{example_figures(example, 'film', maps)}"
        + (f"<h2>Environment</h2>{facts(environment)}" if environment else ""),
    )
