"""The site builds without a warning and without a network, and holds every page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
for package in ("material", "mkdocstrings_handlers.python"):
    pytest.importorskip(package, reason="the extra [docs] is not installed")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert not built.returncode, built.stderr
    assert "WARNING" not in built.stderr
    return folder


def test_every_page_is_in_the_navigation(site):
    index = (site / "index.html").read_text(encoding="utf-8")
    pages = [p.relative_to(ROOT / "docs").with_suffix(".html") for p in (ROOT / "docs").rglob("*.md")]
    pages += [p.relative_to(ROOT / "docs").with_suffix(".html") for p in (ROOT / "docs").rglob("*.ipynb")]
    for page in pages:
        assert (site / page).is_file()
        assert page.name == "index.html" or f'href="{page.as_posix()}"' in index, f"{page} is not in the navigation"
    named = re.findall(r'<a href="([^"#]+\.html)" class="md-nav__link', index)
    assert "faq.html" in named
    assert not (twice := {page for page in named if named.count(page) > 1}), f"{twice} are twice in the navigation"


def test_nothing_is_fetched(site):
    """Pages may link to the web; scripts, styles, fonts and pictures are the site's own."""
    loaded = re.compile(
        r"<(?:script|img|iframe|source)[^>]*\ssrc=\"?(https?:|//)[^\s>]*|<link[^>]*(?:stylesheet|preload|preconnect)[^>]*https?:"
    )
    for page in site.rglob("*.html"):
        assert not (found := loaded.search(page.read_text(encoding="utf-8"))), f"{page.name}: {found[0]}"
    for style in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import )['\"]?(?:https?:|//)", style.read_text(encoding="utf-8")), style.name


def test_the_api_is_in_it(site):
    layers = (site / "api" / "nn.html").read_text(encoding="utf-8")
    for name in ("AnatomyAwareAttention", "PWAP", "PCAMHead", "MaskedAttention", "average_heads"):
        assert f'id="axnet.nn.{name}"' in layers, name
    assert 'id="axnet.accelerate"' in (site / "api" / "index.html").read_text(encoding="utf-8")


def test_what_lies_outside_of_docs_is_reached(site):
    page = (site / "segmentation.html").read_text(encoding="utf-8")
    (card,) = re.findall(r'href="(project/[^"#]*frontal\.html)"', page)[:1]
    assert (site / card).is_file()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("# A page\n\n[gone](../axnet/gone.md)\n", "which is no file of the repository"),
        ("# A page\n\n[gone](gone.md)\n", "gone.md"),
    ],
)
def test_a_broken_link_ends_the_build(text, said, tmp_path):
    (tmp_path / "mkdocs.yml").write_text(f"INHERIT: {ROOT / 'mkdocs.yml'}\nplugins: []\n")  # the API takes seconds
    (tmp_path / "docs").mkdir()
    for file in (ROOT / "docs").iterdir():
        (tmp_path / "docs" / file.name).symlink_to(file)
    (tmp_path / "docs" / "other.md").write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert built.returncode
    assert said in built.stderr
