"""A command of axnet that is expected to succeed, which several test files run."""

from __future__ import annotations

from typer.testing import CliRunner

from axnet.cli import app


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output
