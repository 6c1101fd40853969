"""The command line: `axnet demo | prepare | fit | evaluate | predict | export | serve | segment | bench | info`."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from axnet import __version__
from axnet.cli import bench, demo, evaluate, export, fit, predict, prepare, segment, serve
from axnet.memory import keep_freed_memory

USER_ERRORS = (ValueError, OSError, KeyError, ImportError)
TRACEBACK_VARIABLE = "AXNET_TRACEBACK"

app = typer.Typer(
    name="axnet",
    help="Anatomy-XNet for chest X-rays: segment the anatomy, train, evaluate and explain. Not a medical device.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(demo.demo)
app.command()(prepare.prepare)
app.command()(fit.fit)
app.command()(evaluate.evaluate)
app.command()(predict.predict)
app.command()(export.export)
app.command()(serve.serve)
app.command()(bench.bench)
app.add_typer(segment.app, name="segment")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"axnet {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """What all commands begin with: on a CPU, the memory of freed tensors is kept for the next ones."""
    keep_freed_memory()


@app.command()
def info() -> None:
    """Print versions, backends (with the reason where one is unavailable) and how the kernels were built."""
    import axnet

    for title, facts in axnet.info().items():
        typer.echo(f"{title}:")
        width = max(map(len, facts), default=0)
        for name, value in facts.items():
            typer.echo(f"  {name:{width}}  {value}")


def main() -> None:
    """Run the command line; an error of the user's is one sentence on stderr and exit code 2.

    With AXNET_TRACEBACK=1 in the environment, errors show where they come from.
    """
    try:
        app()
    except USER_ERRORS as error:
        if os.environ.get(TRACEBACK_VARIABLE, "0") not in ("", "0"):
            raise
        typer.echo(f"axnet: {_sentence(error)}", err=True)
        sys.exit(2)


def _sentence(error: BaseException) -> str:
    said = "pip install" in str(error)  # who raised it knows best what to install
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("axnet") and not said:
        return f"this command needs the package '{error.name}': pip install 'axnet[train]'."
    if isinstance(error, KeyError):
        return f"key {error} is missing."
    text = str(error)
    if "\nOriginal Traceback" in text:  # of a process that read films, whose error ends with what it said
        text = text.strip().splitlines()[-1].partition(": ")[2]
    return " ".join(text.split()) or type(error).__name__
