"""Every code block of the documentation is right: Python is executed, shell commands are executed or parsed.

`<!-- not run: reason -->` right above a block leaves it out (a GPU, a download, minutes); `<!-- run: reason -->` above
a shell block executes its axnet commands, which are otherwise parsed by the command line that they are written for.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from radiograph import radiograph

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(
    r"^(?:<!-- (?P<how>not run|run): (?P<why>.*?) -->\n)?"
    r"(?P<indent> *)```(?P<language>[^\n]*)\n(?P<code>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language and code, the line that it begins in, and what the comment above it says.

    how: "not run" or "run", "" without a comment; why: the comment's reason.
    """

    page: Path
    line: int
    language: str
    code: str
    how: str = ""
    why: str = ""

    def __str__(self) -> str:
        """Page and line."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    """The blocks of a page in their order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for m in _FENCE.finditer(text):
        code = "\n".join(line.removeprefix(m["indent"]) for line in m["code"].splitlines())
        line = text.count("\n", 0, m.start("indent")) + 1
        found.append(Block(page, line, m["language"].strip(), code, m["how"] or "", (m["why"] or "").strip()))
    return found


def commands(block: Block) -> list[str]:
    """The commands of a shell block: without comments, continued lines joined, chains taken apart."""
    text = block.code.replace("\\\n", " ")
    lines = [re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines()]
    return [part.strip() for line in lines for part in re.split(r"&&|;", line) if part.strip()]


LANGUAGES = ("python", "bash", "json", "yaml", "text", "cpp")
BLOCKS = [block for page in PAGES for block in blocks_of(page)]
PYTHON = [page for page in PAGES if any(b.language == "python" and b.how != "not run" for b in blocks_of(page))]
SHELL = [block for block in BLOCKS if block.language == "bash" and block.how != "not run"]
ELSEWHERE = {
    "export",
    "cd",
    "python",
    "python3",
    "pip",
    "pytest",
    "pre-commit",
    "mkdocs",
}  # looked at below, or of the shell


def name(value: object) -> str:
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else str(value)


@pytest.fixture(scope="session")
def films(tmp_path_factory):
    """What the pages take for granted: film.png, film.dcm and images/ with two films."""
    from PIL import Image

    from axnet.data import PhantomXray

    folder = tmp_path_factory.mktemp("films")
    (folder / "images").mkdir()
    drawn = PhantomXray(2, seed=5, size=128)
    for i in range(2):
        Image.fromarray(drawn.sample(i).image).save(folder / "images" / f"{i}.png")
    shutil.copy(folder / "images" / "0.png", folder / "film.png")
    radiograph(drawn.sample(1).image).save_as(folder / "film.dcm", enforce_file_format=True)
    return folder


@pytest.fixture
def folder(films, tmp_path, monkeypatch):
    shutil.copytree(films, tmp_path, dirs_exist_ok=True)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_blocks_say_what_they_are(page):
    text = page.read_text(encoding="utf-8")
    fences = len(re.findall(r"^ *```", text, re.MULTILINE))
    found = blocks_of(page)
    assert fences == 2 * len(found), f"{name(page)}: a fence that does not close"
    for block in found:
        assert block.language in LANGUAGES, f"{block}: language {block.language!r}, expected one of {LANGUAGES}"
        assert not block.how or block.why, f"{block}: a comment without a reason"
    assert len(re.findall(r"^<!-- (?:not )?run:", text, re.MULTILINE)) == sum(bool(b.how) for b in found), (
        f"{name(page)}: a comment that does not stand right above its block"
    )


@pytest.mark.parametrize("page", PYTHON, ids=name)
def test_python(page, folder):
    """A page's blocks in their order, in one namespace: the shell blocks between them that are to be run, too."""
    space = {"__name__": "__main__"}
    torch.manual_seed(0)
    for block in blocks_of(page):
        if block.how == "not run":
            continue
        if block.language == "python":
            code = "\n" * block.line + block.code  # so that a traceback has the page's own lines
            exec(compile(code, str(page), "exec", dont_inherit=True), space)
        elif block.language == "bash" and block.how == "run":
            for command in commands(block):
                run(command, block)


def run(command: str, block: Block) -> None:
    """An axnet command in this process."""
    from typer.testing import CliRunner

    from axnet.cli import app

    words = shlex.split(command)
    assert words[0] == "axnet", f"{block}: only axnet's commands can be run, not {command!r}"
    result = CliRunner().invoke(app, words[1:])
    assert result.exit_code == 0, (
        f"{block}: {command!r} ends with {result.exit_code}\n{result.output}{result.exception}"
    )


@pytest.mark.parametrize("block", SHELL, ids=name)
def test_shell(block, folder):
    for command in commands(block):
        words = shlex.split(command)
        while words and re.fullmatch(r"\w+=\S*", words[0]):  # variables for one command
            words.pop(0)
        if not words or words[0] in (".", "source"):
            continue
        program = Path(words[0]).name
        if program == "axnet":
            parsed(words[1:], block)
        elif (ROOT / words[0]).is_file():
            continue  # a script of the repository
        else:
            assert program in ELSEWHERE, f"{block}: {program!r} is not known here; mark the block as not run, with why"
        if program in ("python", "python3", "pytest"):
            for path in (w for w in words[1:] if re.match(r"(benchmarks|tests|csrc)/|.*\.py$", w)):
                assert (ROOT / path).exists(), f"{block}: {path} is no file of the repository"
        if program == "pip":
            installable(words, block)


def parsed(arguments: list[str], block: Block) -> None:
    """Whether axnet's command line takes these arguments; what it would do is not done."""
    import typer

    from axnet.cli import app

    command, context = typer.main.get_command(app), None
    while True:
        try:
            context = command.make_context(command.name, list(arguments), parent=context)
        except Exception as error:  # typer brings click's errors in a copy of its own
            why = error.format_message() if hasattr(error, "format_message") else str(error)
            pytest.fail(f"{block}: axnet does not take {' '.join(arguments)!r}: {why}")
        rest = [*context._protected_args, *context.args] if hasattr(context, "_protected_args") else context.args
        if not hasattr(command, "resolve_command"):
            return
        try:
            _, command, arguments = command.resolve_command(context, rest)
        except Exception as error:
            pytest.fail(f"{block}: axnet has no such command: {error}")


def installable(words: list[str], block: Block) -> None:
    """Whether pip's command names extras and files that there are."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = set(re.findall(r"^(\w+) = \[", text.partition("[project.optional-dependencies]")[2], re.MULTILINE))
    for word in words:
        found = re.fullmatch(r"(?:\.|axnet)\[(.+)\]", word)
        for extra in found[1].split(",") if found else ():
            assert extra in extras, f"{block}: there is no extra {extra!r}"
    for option, file in pairwise(words):
        if option in ("-r", "-c"):
            assert (ROOT / file).is_file(), f"{block}: {file} is no file of the repository"


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language in ("json", "yaml")], ids=name)
def test_data(block):
    json.loads(block.code) if block.language == "json" else yaml.safe_load(block.code)


def test_a_wrong_block_is_found(tmp_path):
    block = Block(ROOT / "README.md", 1, "bash", "axnet predict film.png --overlay pictures")
    with pytest.raises(pytest.fail.Exception, match=r"README.md:1: axnet does not take .*overlay"):
        parsed(shlex.split(block.code)[1:], block)
    with pytest.raises(pytest.fail.Exception, match="no such command"):
        parsed(["predicted", "film.png"], block)
    with pytest.raises(AssertionError, match="no extra 'tarin'"):
        installable(["pip", "install", ".[tarin]"], block)
    assert commands(Block(ROOT, 1, "bash", "a --b \\\n  c # d\n\n# e\nf && g")) == ["a --b    c", "f", "g"]
