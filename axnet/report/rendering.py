"""Templates of a report: Jinja2 with everything escaped that is not marked as HTML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from axnet.report.style import STYLE
from axnet.report.text import number, span

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters |= {"number": number, "span": span}


def render(template: str, **values: Any) -> str:
    """A page of this package's style, which may load nothing; values that are HTML come as Markup."""
    return _TEMPLATES.get_template(template).render(policy=_POLICY, style=Markup(STYLE), **values)


def html(text: str) -> Markup:
    """What a function of this package has made as HTML."""
    return Markup(text)
