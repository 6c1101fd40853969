"""Text of a report: escaping, numbers, tables."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from axnet.metrics import Interval


def escape(value: object) -> str:
    """Any value as text that HTML shows as it is."""
    return html.escape(str(value), quote=True)


def number(value: float, digits: int = 3, *, sign: bool = False) -> str:
    """A number with a true minus sign; a dash where it is NaN."""
    if math.isnan(value):
        return "\N{EN DASH}"
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "\N{MINUS SIGN}")


def span(interval: Interval, *, sign: bool = False) -> str:
    """The ends of an interval, "0.812 to 0.867"."""
    if math.isnan(interval.low) or math.isnan(interval.high):
        return "no interval"
    return f"{number(interval.low, sign=sign)} to {number(interval.high, sign=sign)}"


def counted(count: int, noun: str) -> str:
    """A number with its noun, "1 film" or "2 films"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def percent(level: float) -> str:
    """A coverage as text, "95 %"."""
    return f"{100 * level:g}\N{NO-BREAK SPACE}%"


def table(
    head: Sequence[str], rows: Sequence[Sequence[object]], kind: str, above: Sequence[tuple[str, int]] = ()
) -> str:
    """A table of plain text; all columns but the first are numbers. above: titles over so many columns each."""
    groups = "".join(f'<th scope="colgroup" colspan="{width}">{escape(title)}</th>' for title, width in above)
    header = "".join(f'<th scope="col">{escape(h)}</th>' for h in head)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{escape(v)}</td>" for v in row[1:]) + "</tr>"
        for row in rows
    )
    top = f"<tr><td></td>{groups}</tr>" if above else ""
    return (
        f'<div class="scroll"><table class="{kind}"><thead>{top}<tr>{header}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def facts(mapping: Mapping[str, Any]) -> str:
    """Names and values of a mapping, nested ones with their path, as a definition list."""
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in _flat(mapping))
    return f'<dl class="facts">{items}</dl>'


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in mapping.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name} / ")
        else:
            yield f"{prefix}{name}", value
