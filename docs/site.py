"""What MkDocs does not do by itself: navigation, API pages, notebooks as pages, links that leave docs/.

No page is listed by hand: every file of docs/ is in the navigation, under its title, those of FIRST in their order and
all others behind them. A folder is a section.
"""

from __future__ import annotations

import ast
import json
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
FIRST = (
    "index",
    "quickstart",
    "tutorial",
    "datasets",
    "data",
    "segmentation",
    "dropin",
    "method",
    "backends",
)
LAST = ("performance", "faq", "api", "project")
SECTIONS = {"api": "API", "project": "Project"}
_LINK = re.compile(r"(?<=\]\()(\.\./[^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made: API, notebooks, and every file outside docs/ that a page links to."""
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            uri = file.src_uri.removesuffix(".ipynb") + ".md"
            files.append(File.generated(config, uri, content=notebook(json.loads(file.content_string), file.name)))
        elif file.is_documentation_page():
            for link in _LINK.findall(file.content_string):
                source = (ROOT / "docs" / file.src_uri).parent / link
                outside = os.path.relpath(source, ROOT)
                if not source.is_file() or outside.startswith(".."):
                    raise PluginError(f"docs/{file.src_uri} links to {link}, which is no file of the repository.")
                if files.get_file_from_path(_uri(outside)) is None:
                    files.append(File.generated(config, _uri(outside), abs_src_path=str(source)))
    for name in public_modules():
        files.append(File.generated(config, f"api/{name}.md", content=f"# axnet.{name}\n\n::: axnet.{name}\n"))
    own = "\n".join(f"::: axnet.{n}\n    options:\n      show_root_heading: true\n" for n in public_functions())
    files.append(File.generated(config, "api/index.md", content=f"# axnet\n\n{own}"))
    config.nav = navigation([f.src_uri for f in files.documentation_pages()])
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links that leave docs/ to the copies within the site."""

    def moved(match: re.Match[str]) -> str:
        outside = os.path.relpath(ROOT / "docs" / Path(page.file.src_uri).parent / match[1], ROOT)
        return os.path.relpath(_uri(outside), PurePosixPath(page.file.src_uri).parent)

    if page.file.src_uri.startswith("project/"):
        return re.sub(r"\[([^\]]*)\]\((?!https?:)[^)]*\)", r"\1", markdown)  # written to be read in the repository
    return _LINK.sub(moved, markdown)


def navigation(pages: list[str]) -> list[Any]:
    """Every page once; a folder is a section of its pages."""
    tops: dict[str, list[str]] = {}
    for uri in sorted(pages, key=lambda u: (not u.endswith("index.md"), u)):
        tops.setdefault(uri.partition("/")[0].removesuffix(".md"), []).append(uri)
    missing = [name for name in FIRST if name not in tops]
    if missing:
        raise PluginError(f"docs/site.py orders the pages {', '.join(missing)}, which docs/ does not have.")
    between = [name for name in tops if name not in (*FIRST, *LAST)]
    order = [name for name in (*FIRST, *between, *LAST) if name in tops]
    named = [(SECTIONS.get(n, n.replace("_", " ").capitalize()), tops[n]) for n in order]
    return [uris[0] if "/" not in uris[0] else {title: uris} for title, uris in named]


def _exported() -> tuple[set[str], set[str]]:
    """Names of axnet's functions and of its modules, read from its source: a build needs no torch."""
    tree = ast.parse((ROOT / "axnet" / "__init__.py").read_text(encoding="utf-8"))
    names = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
    )
    modules = {n for n in names if (ROOT / "axnet" / n).is_dir() or (ROOT / "axnet" / f"{n}.py").is_file()}
    return {n for n in names if not n.startswith("_")} - modules, modules


def public_functions() -> list[str]:
    """What axnet itself offers."""
    return sorted(_exported()[0])


def public_modules() -> list[str]:
    """Modules of the public API."""
    return sorted(_exported()[1])


def notebook(cells: dict[str, Any], name: str) -> str:
    """A notebook as Markdown: its texts, its code, and the outputs that it was saved with."""
    parts = []
    for cell in cells["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                parts.append(f"![output](data:image/png;base64,{''.join(data['image/png']).strip()})")
            else:
                text = "".join(output.get("text") or data.get("text/plain", ""))
                parts.append(f"```text\n{text.rstrip()}\n```")
    parts.insert(1, f"As a notebook: [{name}.ipynb]({name}.ipynb)")
    return "\n\n".join(parts) + "\n"


def _uri(outside: str) -> str:
    """Where a file of the repository lies in the site."""
    return f"project/{outside.replace('/', '-').lower() if outside.endswith('.md') else outside}"
